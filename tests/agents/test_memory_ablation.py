"""Memory ablations: what stays the same, what changes, which agents have none."""

import pytest
import torch

from merlin.agents import AGENTS
from merlin.agents.memory_ablation import ABLATIONS, MemoryAblation, MemoryAblationState
from merlin.agents.merlin import Merlin
from merlin.environments.batch import make_environment
from merlin.errors import MerlinError
from merlin.memory import ContentMemory
from merlin.runs.presets import preset
from merlin.states import choose_rows
from merlin.training.evaluation import evaluate
from tests.agents.helpers import make_agent, random_observation

STEPS, EPISODE = 12, 5  # with 5 slots: an episode fills them


def play(player, batch_size: int, other_card: bool = False) -> list:
    """Return outputs and memories of a player that is shown the same observations whoever it is.

    Args:
        other_card: Show the first row another card in the second step.
    """
    generator = torch.Generator().manual_seed(0)
    state, found = player.initial_state(batch_size), []
    for t in range(STEPS):
        torch.manual_seed(t)
        observation = random_observation(batch_size)
        if other_card and t == 1:
            observation["card"][0] = (observation["card"][0] + 1) % 5
        is_first = torch.full((batch_size,), t % EPISODE == 0)
        output, state = player.step(observation, state, is_first, torch.zeros(batch_size), generator=generator)
        agent = getattr(player, "agent", player)
        found.append((output, agent.memory_state(_inner(state))))
    return found


def _inner(state):
    return state.agent_state if isinstance(state, MemoryAblationState) else state


@pytest.mark.parametrize("name", ["merlin", "rl-mem"])
def test_an_agent_that_is_shuffled_with_itself_is_as_ever(name):
    """Of one environment the other is the same: the memory that is written apart equals the agent's."""
    agent = make_agent(name)
    for (ours, memory), (plain, its) in zip(play(MemoryAblation(agent, "shuffled"), 1), play(agent, 1), strict=True):
        torch.testing.assert_close(ours.action, plain.action)
        torch.testing.assert_close(ours.read_weights, plain.read_weights)
        for x, y in zip(memory, its, strict=True):
            torch.testing.assert_close(x, y)


def test_a_shuffled_agent_reads_what_the_environment_before_wrote():
    """What the first row saw in the second step, the second reads in the third, and the third row does not."""
    player = MemoryAblation(make_agent("merlin"), "shuffled")
    (one, _), (other, _) = play(player, 3)[2], play(player, 3, other_card=True)[2]
    assert not torch.allclose(one.policy_parameters[1], other.policy_parameters[1])
    torch.testing.assert_close(one.policy_parameters[2], other.policy_parameters[2])


def test_a_shuffled_agent_keeps_what_it_wrote_itself():
    played = play(MemoryAblation(make_agent("merlin"), "shuffled"), 3)[:EPISODE]
    held = played[-1][1].memory[..., :6]
    torch.testing.assert_close(held, torch.stack([output.latent for output, _ in played], 1))


class Picky(Merlin):
    """Writes in the first row alone."""

    def advance(self, perceived, action):
        advanced = super().advance(perceived, action)
        is_kept = torch.arange(len(action)) == 0
        memory = choose_rows(is_kept, self.memory_state(advanced.state), self.memory_state(perceived.state))
        return advanced._replace(state=self.with_memory(advanced.state, memory))


class Doubling(ContentMemory):
    """Writes twice the word."""

    def write(self, state, word, read_weights, slot=None):
        return super().write(state, 2 * word, read_weights, slot)


@pytest.mark.parametrize("changes", [{"agent_class": Picky}, {"memory": Doubling}])
def test_an_agent_that_writes_by_a_rule_of_its_own_is_not_shuffled_as_if_it_had_none(changes):
    agent = make_agent("merlin")
    agent.__class__ = changes.get("agent_class", Merlin)
    if "memory" in changes:
        agent.memory = agent.predictor.memory = changes["memory"](6, agent.config)
    assert len(play(MemoryAblation(agent, "zeroed"), 3)) == STEPS
    with pytest.raises(MerlinError, match="every step writes its last_word by the step's reads, but"):
        play(MemoryAblation(agent, "shuffled"), 3)


@pytest.mark.parametrize("name", ["merlin", "rl-mem"])
def test_a_zeroed_memory_is_never_read(name):
    outputs = [output for output, _ in play(MemoryAblation(make_agent(name), "zeroed"), 3)]
    assert all((output.read_weights == 0).all() for output in outputs)


@pytest.mark.parametrize("name", ["merlin", "ftw", "rl-mem"])
def test_a_frozen_memory_stays_as_the_first_episode_left_it(name):
    agent = make_agent(name)
    frozen, plain = play(MemoryAblation(agent, "frozen"), 3), play(agent, 3)
    for t in range(EPISODE):
        torch.testing.assert_close(frozen[t][0].action, plain[t][0].action)
    left = plain[EPISODE - 1][1]
    for _, memory in frozen[EPISODE:]:
        for x, y in zip(memory, left, strict=True):
            torch.testing.assert_close(x, y)
    assert (frozen[EPISODE + 1][0].read_weights.sum(-1) > 0.99).all()  # of slots that this episode never wrote


def test_an_agent_without_memory_is_refused():
    with pytest.raises(MerlinError, match="Only a memory can be zeroed, and RLLSTM has none"):
        MemoryAblation(make_agent("rl-lstm"), "zeroed")


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_as_many_episodes_count_whatever_the_ablation(ablation):
    skip = 1 if ablation == "frozen" else 0
    with make_environment("merlin/TMaze-v0", 3, env_kwargs={"length": 4}) as environment:
        agent = AGENTS["merlin"].agent_class(environment.spaces, environment.action_space, preset("merlin").model)
        result = evaluate(MemoryAblation(agent, ablation), environment, episodes=7, seed=1, skip=skip)
    assert result["episodes"] == 7
    assert result["env_steps"] == round(7 * result["episode_length_mean"])
