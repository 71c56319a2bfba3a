"""The play loop: what observers are told, when it ends, and that observers change nothing."""

from itertools import pairwise

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from merlin.agents import AGENTS
from merlin.analysis.predictions import PredictionRecorder
from merlin.analysis.recording import TrajectoryRecorder
from merlin.analysis.saliency import SaliencyProbe
from merlin.environments.batch import Environment, make_environment
from merlin.experience import StepOutput
from merlin.training.evaluation import Evaluation, evaluate
from merlin.training.play import Observer, Player, play
from merlin.viewer.episodes import EpisodeRecorder
from tests.agents.helpers import tensors
from tests.environments.examples import Episodes

B = 3
SIZES = {"latent_size": 4, "hidden_size": 8, "policy_hidden_size": 6, "memory_size": 6}


class Dice:
    """A player that throws a die, and counts the steps since an episode began."""

    def initial_state(self, batch_size):
        self.calls = []
        return torch.zeros(batch_size)

    def step(self, observation, state, is_first, reward=None, *, generator=None, greedy=False):
        state = state.masked_fill(is_first, 0) + 1
        self.calls.append((state, reward, greedy))
        action = torch.randint(-1, 2, state.shape, generator=generator)
        return StepOutput(action, torch.zeros_like(state), state, state.unsqueeze(-1)), state


class Witness(Observer):
    """Keeps all moments, is done after `steps` of them, and notes what came in which order."""

    def __init__(self, steps=None):
        self.steps, self.moments, self.order = steps, [], []

    def before_step(self, environment):
        self.order.append("before")
        self.clock = environment.vector_env.envs[0].clock.copy()

    def observe(self, moment):
        assert not torch.is_grad_enabled()
        self.order.append("step")
        assert tuple(self.clock) == tuple(moment.timestep.observation["clock"][0]), "before the environment acts"
        self.moments.append(moment)
        self.is_done = len(self.moments) == self.steps


def episodes(mode=AutoresetMode.NEXT_STEP):
    return Environment(SyncVectorEnv([Episodes] * B, autoreset_mode=mode))


def make_agent(name, environment):
    torch.manual_seed(0)
    config_class = AGENTS[name].config_class
    settings = SIZES | {"observe_reward": True, "latent": "gaussian"}
    known = {key: value for key, value in settings.items() if key in config_class.__dataclass_fields__}
    agent = AGENTS[name].agent_class(environment.spaces, environment.action_space, config_class(**known))
    if name == "dreamer":  # whose policy starts with weights of 0, and so says the same of everything
        torch.nn.init.normal_(agent.policy[-1].weight)
    return agent


def same(one, other):
    """Return whether nested values hold the same numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other or one != one


def test_an_observer_sees_every_step_once_and_what_one_leads_to_is_what_the_next_starts_from():
    player, witness, other = Dice(), Witness(12), Witness(12)
    assert isinstance(player, Player)
    play(player, episodes(), witness, other, seed=5)
    moments = witness.moments
    assert len(moments) == len(player.calls) == 12 and moments == other.moments
    assert witness.order == ["before", "step"] * 12
    assert moments[0].timestep.is_first.all() and (moments[0].state == 0).all()
    for moment, after in pairwise(moments):
        assert moment.next_timestep is after.timestep and moment.next_state is after.state
    for moment, (state, reward, _) in zip(moments, player.calls, strict=True):
        assert moment.next_state is state and moment.timestep.reward is reward
        earned = 10 * moment.next_timestep.observation["clock"][:, 1] + moment.output.action
        acted = ~(moment.timestep.is_last | moment.next_timestep.is_last)
        assert torch.equal(moment.next_timestep.reward[acted], earned[acted].float())
    assert any(moment.timestep.is_first.any() for moment in moments[1:])


def test_play_ends_when_all_are_done_and_whoever_is_done_before_is_told_no_more():
    player, soon, late = Dice(), Witness(3), Witness(7)
    play(player, episodes(), soon, late, seed=5)
    assert (len(soon.moments), len(late.moments), len(player.calls)) == (3, 7, 7)
    assert soon.order == ["before", "step"] * 3


@pytest.mark.parametrize("max_steps", [0, 4])
def test_play_ends_at_the_most_steps(max_steps):
    witness = Witness()
    play(Dice(), episodes(), witness, seed=5, max_steps=max_steps)
    assert len(witness.moments) == max_steps and not witness.is_done


def test_where_nobody_looks_nothing_is_played():
    player = Dice()
    play(player, episodes(), seed=5)
    assert player.calls == []


def test_the_seed_is_that_of_the_environment_and_of_a_generator_unless_there_is_one():
    found = []
    for seed, generator_seed in ((5, None), (5, 5), (5, 6), (6, 5)):
        witness, generator = (
            Witness(8),
            None if generator_seed is None else torch.Generator().manual_seed(generator_seed),
        )
        play(Dice(), episodes(), witness, seed=seed, generator=generator, greedy=seed == 6)
        ends = torch.stack([moment.next_timestep.is_end for moment in witness.moments])
        found.append((ends, torch.stack([moment.output.action for moment in witness.moments])))
    assert same(found[0], found[1])
    assert same(found[2][0], found[0][0]) and not same(found[2][1], found[0][1])
    assert same(found[3][1], found[0][1]) and not same(found[3][0], found[0][0])


def test_greedy_reaches_the_player():
    for greedy in (False, True):
        player = Dice()
        play(player, episodes(), Witness(2), seed=5, greedy=greedy)
        assert [call[2] for call in player.calls] == [greedy] * 2


@pytest.mark.parametrize("name", AGENTS)
def test_a_step_taken_again_from_its_moment_is_the_same(name):
    environment, witness = episodes(), Witness(6)
    agent = make_agent(name, environment)
    play(agent, environment, witness, seed=5)
    again = torch.Generator()
    for moment in witness.moments:
        timestep = moment.timestep
        again.set_state(moment.generator_state)
        output, state = agent.step(
            timestep.observation, moment.state, timestep.is_first, timestep.reward, generator=again
        )
        assert same(output, moment.output) and same(tensors(state), tensors(moment.next_state))
        assert not moment.output.value.requires_grad


@pytest.mark.parametrize("name", AGENTS)
def test_the_previous_reward_that_an_agent_sees_is_0_where_an_episode_starts(name):
    environment, witness = episodes(AutoresetMode.SAME_STEP), Witness(12)
    agent = make_agent(name, environment)
    play(agent, environment, witness, seed=5)
    starts = 0
    for moment in witness.moments[1:]:
        timestep = moment.timestep
        assert (timestep.reward != 0).all()  # of the episode before, where one starts
        for rows, is_seen in ((timestep.is_first, False), (~timestep.is_first, True)):
            if not rows.any():
                continue
            again = torch.Generator()
            again.set_state(moment.generator_state)
            reward = timestep.reward.masked_fill(rows, 0)
            output, _ = agent.step(timestep.observation, moment.state, timestep.is_first, reward, generator=again)
            assert torch.equal(output.policy_parameters, moment.output.policy_parameters) != is_seen
        starts += int(timestep.is_first.sum())
    assert starts > B


def test_several_observers_find_what_each_finds_alone():
    with make_environment("merlin/GoalMaze-v0", 4, env_kwargs={"size": 5, "max_steps": 12}) as environment:
        agent = make_agent("merlin", environment)

        def observers():
            recorder, probe = TrajectoryRecorder(agent, environment, 8), SaliencyProbe(agent, environment, {1, 4, 30})
            return Evaluation(environment, 6), recorder, probe, Evaluation(environment, 9, skip=1)

        def found(one, recorder, probe, other):
            saliency = {name: x.nan_to_num(-1.0) for name, x in probe.saliency().items()}  # of what never differs
            return [one.result(), tuple(recorder.trajectories()), saliency, other.result()]

        together, alone = observers(), observers()
        play(agent, environment, *together, seed=2)
        for observer in alone:
            play(agent, environment, observer, seed=2)
        assert same(found(*together), found(*alone))
        assert same(together[0].result(), evaluate(agent, environment, episodes=6, seed=2))


def test_an_episode_is_recorded_and_predicted_in_one_play_as_in_two():
    with make_environment("merlin/MemoryGame-v0", 1, render_mode="rgb_array") as environment:
        agent = make_agent("merlin", environment)
        together, alone = ((EpisodeRecorder(agent, environment), PredictionRecorder(agent)) for _ in range(2))
        play(agent, environment, *together, seed=2)
        for observer in alone:
            play(agent, environment, observer, seed=2)
        (episode, predictions), (same_episode, same_predictions) = together, alone
        assert len(episode.steps) == len(predictions.seen) == 9
        assert same(episode.episode().steps, same_episode.episode().steps)
        names = ("seen", "expected", "inferred", "slots")
        assert all(same(getattr(predictions, name), getattr(same_predictions, name)) for name in names)
