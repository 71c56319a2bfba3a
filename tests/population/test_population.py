"""The arena and the population: what holds exactly."""

from dataclasses import replace

import pytest
import torch

from merlin.agents import AGENTS
from merlin.environments.batch import make_environment
from merlin.errors import MerlinError
from merlin.population.evolution import Copy
from merlin.population.games import players_of
from merlin.population.population import Population, PopulationConfig
from merlin.runs.presets import preset
from merlin.training.plain import from_plain, to_plain
from merlin.training.trainer import Trainer
from tests.population import duel

SIZES = {"hidden_size": 5, "latent_size": 4, "memory_size": 3, "word_size": 4, "head_size": 6, "num_read_keys": 1}
PLAIN = {"evolves": False, "internal_rewards": False, "initial_spread": 1.0}


def parts(name="rl-lstm", count=4, games=4, minibatches=1, env_kwargs=None, **training):
    """Return tiny agents, an environment, and how they are trained."""
    environment = make_environment(duel.ID, 4 * games, env_kwargs=env_kwargs)
    config = preset(name, duel.ID)
    model = replace(config.model, **{key: x for key, x in SIZES.items() if hasattr(config.model, key)})
    agents = []
    for seed in range(count):
        torch.manual_seed(seed)
        agents.append(AGENTS[name].agent_class(environment.spaces, environment.action_space, model))
    training = {"unroll_length": 4, "staggered_episodes": True, "learning_rate": 1e-2} | training
    return agents, environment, replace(config.training, minibatches=minibatches, passes=1, **training)


def make(name="rl-lstm", count=4, games=4, minibatches=1, env_kwargs=None, training=None, **settings):
    agents, environment, config = parts(name, count, games, minibatches, env_kwargs, **(training or {}))
    settings = {"burn_in_games": 8, "agents": count} | settings
    population = PopulationConfig(**settings)
    return Population(agents, environment, config, population, total_steps=10_000, seed=3)


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [x for child in tree for x in tensors(child)] if isinstance(tree, list | tuple) else []


def same(one, other):
    """Return whether two trees hold the same numbers, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name, minibatches", [("rl-lstm", 1), ("ftw", 1), ("rl-mem", 2)])
def test_one_agent_that_does_not_evolve_learns_as_the_trainer_has_it(name, minibatches):
    population = make(name, 1, minibatches=minibatches, **PLAIN)
    (agent,), environment, config = parts(name, 1, minibatches=minibatches)
    trainer = Trainer(agent, environment, config, total_steps=10_000, seed=3)
    for _ in range(3):
        population.update()
        trainer.update()
    assert population.env_steps == trainer.env_steps == 3 * 4 * 16
    assert same(dict(population.members[0].agent.state_dict()), dict(agent.state_dict()))
    assert same(to_plain(population.members[0].learner.state_dict()), to_plain(trainer.learner.state_dict()))


@pytest.mark.parametrize("name", ["rl-lstm", "ftw"])
def test_a_population_goes_on_from_its_state_bit_for_bit(name):
    settings = {"evolution_threshold": 1.0, "burn_in_games": 3, "count": 2}  # evolves whenever it may
    whole, first = make(name, **settings), make(name, **settings)
    for _ in range(2):
        whole.update()
        first.update()
    weights = [{key: x.clone() for key, x in member.agent.state_dict().items()} for member in first.members]
    state = to_plain(first.state_dict())
    second = make(name, **settings)
    second.update()  # is elsewhere
    now = second.arena.timestep
    second.arena.timestep = now._replace(final_observation=now.observation)  # which is there after any step on a GPU
    for member, own in zip(second.members, weights, strict=True):
        member.agent.load_state_dict(own)
    assert second.load_state_dict(from_plain(state, state))
    copies = 0
    for _ in range(3):
        one, other = whole.update(), second.update()
        assert same(one.losses, other.losses) and same(tuple(one.results), tuple(other.results))
        assert torch.equal(one.seats, other.seats) and one.evolutions == other.evolutions
        copies += len(one.evolutions)
    assert copies > 0
    assert same(to_plain(whole.state_dict()), to_plain(second.state_dict()))


def test_a_population_of_another_kind_of_device_goes_on_with_other_games():
    """Random states of a GPU mean nothing to a CPU; a GPU's has 16 bytes."""
    first, second = make(past_selves=1, past_every=1), make(past_selves=1, past_every=1)
    while not first.num_frozen:
        first.update()
    state = to_plain(first.state_dict())
    for saved in (*state["members"], *state["past"], state["arena"]["environment"]):
        saved["generator"] = torch.zeros(16, dtype=torch.uint8)
    assert not second.load_state_dict(state)
    assert torch.equal(second.ratings, first.ratings) and second.env_steps == first.env_steps
    assert second.arena.timestep.is_first.all() and (second.arena.agent_of >= 0).all()
    assert second.update().losses


def test_a_copy_is_equal_and_shares_no_storage():
    population = make("ftw", 3)
    population.update()
    population.update()
    evolution = population._copy(Copy(2, 0, 0.1))
    member, model = population.members[2], population.members[0]
    assert same(dict(member.agent.state_dict()), dict(model.agent.state_dict()))
    assert same(*(x.learner.state_dict()["agent"]["state"] for x in (member, model)))
    places = [
        {x.untyped_storage().data_ptr() for x in tensors([dict(m.agent.state_dict()), m.learner.state_dict()])}
        for m in (member, model)
    ]
    assert len(places[0]) > 20 and not places[0] & places[1]
    # what evolves is what the agent learns by
    settings = evolution.after
    assert member.hyperparameters == settings and member.learner.base_rates == {
        "agent": settings.rates["learning_rate"]
    }
    assert member.agent.hyperparameters.entropy_cost == settings.costs["entropy_cost"]
    assert member.agent.hyperparameters.tick_steps == settings.tick_steps
    before = {name: x.clone() for name, x in model.agent.state_dict().items()}
    with torch.no_grad():
        for x in member.agent.parameters():
            x.add_(1.0)
    assert same(before, dict(model.agent.state_dict()))


def test_the_running_games_of_a_copy_are_masked_until_they_end():
    population = make()
    population.update()  # half of the games have ended, the others are half-way
    running = ~population.arena.timestep.is_first
    assert 0 < running.sum() < len(running)
    population._copy(Copy(1, 0, 0.1))
    member = population.members[1]
    mine = torch.zeros_like(running).index_fill(0, member.rows, True)
    assert torch.equal(population.arena.is_stale, running & mine)
    assert all((x == 0).all() for x in tensors(member.state.agent_state))
    windows, results = population.arena.collect(4)
    for index, (window, episodes) in windows.items():
        rows = population.members[index].rows
        expected = ~(running & mine)[rows]
        assert torch.equal(window.unroll.is_valid, expected.expand(4, -1))
        assert episodes.lengths.tolist() == [duel.LENGTH] * int((running & ~mine)[rows].sum())
    # a game that the old agent began counts for nobody; here all agents play in all games
    assert len(results.scores) == 0 and not population.arena.is_stale.any()


def test_of_a_window_that_is_masked_altogether_nothing_is_learnt():
    population = make(training={"staggered_episodes": False})
    population.update()
    population.update()  # which begins all games anew; momentum is left
    population.arena.collect(2)
    population._copy(Copy(1, 0, 0.1))
    before = {name: x.clone() for name, x in population.members[1].agent.state_dict().items()}
    happened = population.update()
    assert happened.losses[1] == {} and happened.losses[0] and not happened.diverged
    assert same(before, dict(population.members[1].agent.state_dict()))


def test_internal_rewards_begin_at_those_that_the_task_is_given():
    given = {"env_kwargs": {"rewards": [5.0, 0.0, -1.0]}, "evolves": False}
    for spread, internal, wanted in ((1.0, True, (5.0, 0.0, -1.0)), (1.0, False, None)):
        population = make(games=2, initial_spread=spread, internal_rewards=internal, **given)
        assert [member.hyperparameters.rewards for member in population.members] == [wanted] * len(population.members)


def test_agents_learn_from_their_own_rewards_of_events():
    population = make("ftw", games=2)
    weights = [torch.tensor(member.hyperparameters.rewards) for member in population.members]
    assert all((x.sign() == torch.tensor(duel.Duel.event_signs)).all() for x in weights)
    events = []
    step = population.environment.step

    def recorded(action):
        timestep = step(action)
        events.append(population.environment.events)
        return timestep

    population.environment.step = recorded
    windows, _ = population.arena.collect(4)
    for index, (window, _) in windows.items():
        rows = population.members[index].rows
        expected = torch.stack(events)[:, rows] @ weights[index]
        torch.testing.assert_close(window.unroll.reward, expected)
        torch.testing.assert_close(window.unroll.previous_reward[1:], expected[:-1])
    assert torch.stack(events).sum() > 0


def test_every_row_is_played_by_the_agent_of_its_seat_and_dealt_with_its_game():
    population = make(count=5, games=6, evolves=False)
    total = population.ratings.sum()
    for _ in range(5):
        begin = population.arena.agent_of.clone()
        happened = population.update()
        rows = torch.cat([member.rows for member in population.members])
        assert torch.equal(rows.sort().values, torch.arange(24))
        for index, member in enumerate(population.members):
            assert (population.arena.agent_of[member.rows] == index).all()
        games = population.arena.agent_of.view(6, 4)
        assert all(len(set(game)) == 4 for game in games.tolist())
        ended = population.arena.timestep.is_first.view(6, 4)[:, 0]
        assert torch.equal(games[~ended], begin.view(6, 4)[~ended])
        assert torch.equal(games[ended], happened.seats)
        torch.testing.assert_close(population.ratings.sum(), total)
    assert population.games_played > 6 and population.ratings.std() > 0


def test_a_window_ends_where_a_cohort_of_games_does():
    population = make(training={"unroll_length": 3})
    lengths = [len(next(iter(population.arena.collect(3)[0].values()))[0].unroll.reward) for _ in range(6)]
    assert lengths == [3, 1, 3, 1, 3, 1]  # cohorts of games begin four steps apart


@pytest.mark.parametrize("unroll_length", [3, 8, 20])
def test_games_that_begin_a_step_after_others_ended_are_dealt_anew_and_learnt_from(unroll_length):
    """In gymnasium's autoreset mode NEXT_STEP an episode's last observation is a row of its own."""
    training = {"unroll_length": unroll_length, "staggered_episodes": False}
    population = make(count=5, env_kwargs={"autoreset_mode": "NEXT_STEP"}, training=training, evolution_threshold=1.0)
    ended, dealt, steps, copies = 0, 0, 0, 0
    while ended < 6 * 4:
        happened = population.update()
        ended, dealt = ended + len(happened.results.scores), dealt + len(happened.seats)
        copies += len(happened.evolutions)
        assert not population.arena.is_stale.any(), "copies are made where games end, and none runs on"
        steps += sum(x.lengths.sum() for x in happened.episodes.values())
    assert copies > 0 and steps == ended * 4 * duel.LENGTH
    assert dealt == ended - 4 * bool(population.arena.timestep.is_last.all())  # those that ended now begin next


def test_results_are_those_of_the_task():
    population = make(games=8, evolves=False, env_kwargs={"rewards": [5.0, 0.0, 0.0]})  # returns that say nothing
    while not len((happened := population.update()).results.scores):
        pass
    assert set(happened.results.scores.tolist()) <= {0.0, 0.5, 1.0}
    assert happened.results.teams.shape[1:] == (2, 2)


@pytest.mark.parametrize(
    "settings, message",
    [({"env_kwargs": {"team_of": (0, 0, 0, 1)}}, "games of two teams with as many players each, .* of 3 and 1")],
)
def test_what_is_no_game_of_two_teams_is_refused(settings, message):
    with pytest.raises(MerlinError, match=message):
        make(**settings)
    with pytest.raises(MerlinError, match=r"says the game and the team of each row, but merlin/TMaze-v0 does not"):
        players_of(make_environment("merlin/TMaze-v0", 4))


def test_one_agent_cannot_evolve():
    with pytest.raises(MerlinError, match="agents must be at least 2, but are 1"):
        PopulationConfig(agents=1)


def test_agents_that_learn_otherwise_are_refused():
    with pytest.raises(MerlinError, match="Dreamer learns otherwise"):
        make("dreamer")


def test_bots_take_a_team_in_some_games_and_are_rated():
    population = make(count=4, games=40, bots="second", bot_games=0.5, evolves=False)
    actions = []
    step = population.environment.step
    population.environment.step = lambda action: actions.append(action.clone()) or step(action)
    seats = population.arena.agent_of.view(40, 2, 2)
    are_bots = seats == 4
    assert torch.equal(are_bots[..., 0], are_bots[..., 1]) and not are_bots.all(2).all(1).any()  # one team or none
    assert 10 <= are_bots.any(2).any(1).sum() <= 30 and are_bots.any(2).any(0).all()
    symbols = population.environment.vector_env.unwrapped.symbol.clone()
    population.update()
    mine = are_bots.flatten()
    assert torch.equal(actions[0][mine], symbols[mine])  # these bots name the symbol
    for _ in range(3):
        population.update()
    assert population.ratings.shape == (5,) and population.ratings.argmax() == 4
    torch.testing.assert_close(population.ratings.sum(), torch.tensor(5000.0).double())
    assert population.env_steps < 40 * 4 * 4 * 4  # bots' rows are nobody's steps


def test_unknown_bots_are_refused():
    with pytest.raises(MerlinError, match=r"population.bots must be bots of .*Duel-v0 \(random, second\), but is 'x'"):
        make(bots="x")


def test_an_agent_that_cannot_learn_ends_the_training_only_where_nobody_evolves(monkeypatch):
    def fail(*_):
        raise FloatingPointError

    population = make(count=2)
    population.update()  # which the agents' running scales take in
    weights = [{name: x.clone() for name, x in member.agent.state_dict().items()} for member in population.members]
    monkeypatch.setattr(population.members[1].learner, "update", fail)
    happened = population.update()
    assert happened.diverged == [1] and happened.losses[1] == {} and happened.losses[0]
    assert [same(dict(m.agent.state_dict()), w) for m, w in zip(population.members, weights, strict=True)] == [
        False,
        True,
    ]
    population = make(count=2, evolves=False)
    population.update()
    monkeypatch.setattr(population.members[1].learner, "update", fail)
    with pytest.raises(MerlinError, match="those of agent 1 after 64 steps"):
        population.update()
