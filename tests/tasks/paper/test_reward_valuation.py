"""Reward valuation by hand, what is drawn, and its scores: nothing is earned but by regard to rewards."""

import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.cells import FORWARD, LEFT, RIGHT
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.paper.reward_valuation import BALLS, Memoryless, RewardValuation
from merlin.tasks.solvers.planning import Planner
from tests.tasks.play import assert_mean, play, random_policy

RED, GREEN = BALLS[:2]


def rigged(is_good, chances, **settings):
    """Return a room of 5: red at (2, 1), green at (3, 1), green at (3, 3), the agent at (1, 1) looking right."""
    env = RewardValuation(size=5, kinds=2, objects=3, max_steps=len(chances), **settings)
    env.reset(seed=0)
    layout = env._generate(1, torch.Generator().manual_seed(0))
    layout.cells[0, 1:-1, 1:-1] = cells.EMPTY
    layout.cells[0, 1, 2], layout.cells[0, 1, 3], layout.cells[0, 3, 3] = RED, GREEN, GREEN
    extra = layout.extra | {
        "is_good": torch.tensor([is_good]),
        "chances": torch.tensor([chances], dtype=torch.float64),
    }
    one = torch.ones(1, dtype=torch.int64)
    env.set_layout(Layout(layout.cells, one, one, 0 * one, extra))
    return env


def board(env):
    """Return the inside of the room: R and G are balls, A the agent."""
    names = {cells.EMPTY: ".", RED: "R", GREEN: "G"}
    rows = [[names[int(code)] for code in row] for row in cells.code_of(env.grid()[0, 1:-1, 1:-1])]
    x, y = env.coordinates(env.position[0])
    assert rows[y - 1][x - 1] == "."
    rows[y - 1][x - 1] = "A"
    return ["".join(row) for row in rows]


def test_an_episode_by_hand():
    #                          ate red  ate green  wall  turns     none  end
    env = rigged([False, True], [0.0, 0.999, 0.5, 0.5, 0.5, 0.5])
    assert board(env) == ["ARG", "...", "..G"]
    steps = []
    for action, expected in [
        (FORWARD, ["RAG", "...", "..G"]),  # to the first free cell: where the agent was
        (FORWARD, ["R.A", "...", ".GG"]),  # to the last free cell
        (FORWARD, ["R.A", "...", ".GG"]),
        (RIGHT, ["R.A", "...", ".GG"]),
        (FORWARD, ["R..", "..A", ".GG"]),
    ]:
        _, reward, terminated, truncated, info = env.step(torch.tensor([action]))
        steps.append((float(reward), bool(env.shows_cue()), int(info["num_good"]), int(info["num_bad"])))
        assert board(env) == expected and not terminated and not truncated and info["is_success"].isnan()
    assert steps == [(-1, True, 0, 1), (1, True, 1, 1), (0, False, 1, 1), (0, False, 1, 1), (0, False, 1, 1)]
    env.autoreset = False
    _, reward, terminated, truncated, info = env.step(torch.tensor([FORWARD]))
    assert float(reward) == 1 and not env.shows_cue() and truncated and not terminated  # green was tasted before
    assert float(info["is_success"]) == 1 and int(info["num_good"]) == 2


@pytest.mark.parametrize("num_good, num_bad, success", [(2, 1, 1), (1, 0, 1), (1, 1, 0), (3, 2, 0), (0, 0, 0)])
def test_success_is_more_good_than_bad_and_each_bad_colour_once(num_good, num_bad, success):
    env = rigged([False, True], [0.5])
    env.num_good, env.num_bad = torch.tensor([num_good]), torch.tensor([num_bad])
    assert float(env.step(torch.tensor([LEFT]))[4]["is_success"]) == success


def test_a_ball_appears_anywhere_equally_often():
    env = rigged([True, False], [0.0])
    layout = env._generate(20_000, torch.Generator().manual_seed(1))
    grid = env.grid().clone()
    codes = cells.code_of(grid).to(torch.uint8).repeat(20_000, 1, 1)
    many = RewardValuation(20_000, size=5, kinds=2, objects=3, max_steps=1)
    many.reset(seed=0)
    many.autoreset = False
    one = torch.ones(20_000, dtype=torch.int64)
    many.set_layout(Layout(codes, one, one, 0 * one, layout.extra))
    many.step(FORWARD * one)
    places = (cells.code_of(many.grid()[:, 1:-1, 1:-1]) == RED).flatten(1)
    assert (places.sum(1) == 1).all()
    counts = places.sum(0)
    free = torch.tensor([1, 0, 0, 1, 1, 1, 1, 1, 0]).bool()  # not the agent's cell nor another ball's
    assert (counts[~free] == 0).all() and ((counts[free] - 20_000 / 6).abs() < 4 * (20_000 * 5 / 36) ** 0.5).all()


def test_what_is_drawn():
    env = RewardValuation(size=6, kinds=4, objects=9)
    layout = env._generate(6000, torch.Generator().manual_seed(0))
    inside = layout.cells[:, 1:-1, 1:-1].flatten(1)
    for kind, code in enumerate(BALLS):
        assert ((inside == code).sum(1) == [3, 2, 2, 2, 0, 0][kind]).all()
    assert ((inside == cells.EMPTY).sum(1) == 7).all()
    assert (layout.cells[torch.arange(6000), layout.y, layout.x] == cells.EMPTY).all()
    counts = (inside != cells.EMPTY).sum(0)
    assert ((counts - 6000 * 9 / 16).abs() < 4 * (6000 * 9 * 7 / 256) ** 0.5).all()
    values, counts = layout.extra["is_good"].unique(dim=0, return_counts=True)
    assert len(values) == 6 and (values.sum(1) == 2).all()
    assert ((counts - 1000).abs() < 4 * (6000 * 5 / 36) ** 0.5).all()


def test_the_number_of_balls_stays():
    env = RewardValuation(num_envs=50, size=5, kinds=4, objects=8)
    env.reset(seed=0)
    policy = random_policy(env)
    for _ in range(150):
        env.step(policy(None))
        codes = cells.code_of(env.grid())
        assert all(((codes == code).flatten(1).sum(1) == 2).all() for code in BALLS[:4])
        here = env.cells.gather(1, env.position.unsqueeze(1))
        assert (cells.code_of(here) == cells.EMPTY).all()


SMALL = {"size": 5, "kinds": 2, "objects": 3, "max_steps": 40}


@pytest.mark.parametrize("settings", [{}, SMALL])
def test_scores_are_what_the_policies_earn(settings):
    env = RewardValuation(num_envs=400, agent_view_size=3, **settings)
    expected = env.scores
    assert (play(env, Memoryless(env))[0] == expected["memoryless"]).all()
    returns, success = play(env, random_policy(env))
    assert_mean(returns, expected["random"])
    assert 0.05 < success.mean() < 0.6
    few = RewardValuation(num_envs=128, agent_view_size=3, **settings)
    returns, success = play(few, Planner(few), seed=1)
    assert_like(returns, expected["oracle"])
    assert success.mean() > 0.95


def assert_like(returns, score):
    """Assert that returns could have the mean that another 256 episodes had."""
    assert abs(returns.mean() - score) < 4 * returns.std() * (1 / len(returns) + 1 / 256) ** 0.5


def test_scores_where_a_bad_ball_costs_less_than_a_good_one_earns():
    env = RewardValuation(num_envs=256, bad_reward=-0.5, **SMALL)
    expected = env.scores
    returns = play(env, Memoryless(env), seed=1)[0]
    assert_like(returns, expected["memoryless"])
    assert_like(play(env, random_policy(env))[0], expected["random"])
    free = RewardValuation(num_envs=256, bad_reward=0, **SMALL)
    good = play(free, Memoryless(free), seed=1)[0]  # the same balls
    bad = 2 * (good - returns)
    assert good.min() > 0 and (bad == bad.round()).all() and bad.min() >= 0
    assert_mean(good - bad, 0)  # without regard to rewards
    same = RewardValuation(num_envs=4, **SMALL).scores
    assert same["random"] == same["memoryless"] == 0
    assert 0 < expected["random"] < expected["memoryless"] < expected["oracle"] == same["oracle"]


def test_where_a_bad_ball_costs_more_who_remembers_nothing_eats_nothing():
    scores = RewardValuation(num_envs=4, bad_reward=-2, **SMALL).scores
    assert scores["random"] < scores["memoryless"] == 0 < scores["oracle"]


def test_what_a_bad_ball_earns_is_told():
    env = rigged([False, True], [0.0, 0.999], bad_reward=-0.25)
    assert [float(env.step(torch.tensor([FORWARD]))[1]) for _ in range(2)] == [-0.25, 1]


def test_oracle_leaves_the_bad_alone():
    env = RewardValuation(num_envs=20, agent_view_size=3)
    env.reset(seed=0)
    env.autoreset = False
    policy = Planner(env)
    for _ in range(env.max_steps):
        info = env.step(policy({}))[4]
    assert (info["num_bad"] == 0).all() and info["num_good"].min() > 10


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"size": 3}, "size must be at least 4, but is 3"),
        ({"kinds": 3}, "kinds must be 2, 4 or 6, half of them good, but is 3"),
        ({"objects": 3}, r"objects must be from 4 \(kinds\) to 35 in a room of size 8, but is 3"),
        ({"bad_reward": 1}, "bad_reward must be a number below 1, which a good ball earns, but is 1"),
        ({"bad_reward": float("nan")}, "bad_reward must be a finite number, but is nan"),
        ({"objects": 36}, r"objects must be from 4 \(kinds\) to 35 in a room of size 8, but is 36"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RewardValuation(**settings)


def test_turning_shows_no_cue():
    env = rigged([True, False], [0.5] * 3)
    env.step(torch.tensor([LEFT]))
    assert not env.shows_cue().any()
