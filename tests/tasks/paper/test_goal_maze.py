"""Goal navigation by hand, what it reports of its sub-episodes, moving doors, and its scores."""

import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.layouts import Layout
from merlin.tasks.paper.goal_maze import CLOSED_DOOR, OPEN_DOOR, GoalMaze
from merlin.tasks.solvers.planning import Planner, passable
from tests.tasks.play import assert_mean, at_pose, distances, play, random_policy

LEFT, RIGHT, FORWARD = range(3)
DOORS = {"size": 13, "rooms_per_side": 3, "moving_doors": True}


def rigged():
    """Return a maze drawn by hand: the agent starts at the left of the goal, then below it, then above."""
    signs = {"#": cells.WALL, ".": cells.EMPTY, "G": cells.GOAL}
    picture = ["#####", "#..G#", "#.###", "#...#", "#####"]
    grid = torch.tensor([[[signs[sign] for sign in row] for row in picture]], dtype=torch.uint8)
    env = GoalMaze(1, size=5, max_steps=11)
    env.reset(seed=0)
    poses = [(1, 1, 0), (3, 3, 2), (2, 1, 0), *[(1, 3, 1)] * 9]
    x, y, direction = torch.tensor([poses]).unbind(2)
    itinerary = (4 * env.place(x, y) + direction).int()
    one, zero = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    extra = {"itinerary": itinerary, "sub_episode": zero, "sub_episode_steps": zero}
    env.set_layout(Layout(grid, one, one, zero, extra))
    return env


def test_an_episode_by_hand():
    env = rigged()
    home = [FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, RIGHT, FORWARD, FORWARD]
    rewards, told, poses = [], [], []
    for action in [FORWARD, FORWARD, *home, FORWARD]:
        env.autoreset = False
        _, reward, terminated, truncated, info = env.step([action])
        x, y = env.coordinates(env.position)
        rewards.append(float(reward))
        told.append([float(info[name]) for name in ("reached_goal", "steps_to_goal", "sub_episode")])
        poses.append((int(x), int(y), int(env.direction)))
        assert not terminated
    assert rewards == [0, 1, *[0] * 7, 1, 1]
    assert [told[1], told[9], told[10]] == [[1, 2, 0], [1, 8, 1], [1, 1, 2]]
    assert [row[2] for row in told] == [0, 0, *[1] * 8, 2]
    assert all(row[0] == 0 and row[1] != row[1] for i, row in enumerate(told) if i not in (1, 9, 10))
    assert [poses[0], poses[1], poses[9], poses[10]] == [(2, 1, 0), (3, 3, 2), (2, 1, 0), (1, 3, 1)]
    assert truncated and info["is_success"] == 1
    assert (cells.code_of(env.grid()) == cells.GOAL).nonzero().tolist() == [[0, 1, 3]]  # it stays


@pytest.mark.parametrize("arrivals, success", [(0, 0.0), (1, 0.0), (2, 1.0)])
def test_success_is_to_have_come_back(arrivals, success):
    env = rigged()
    home = [FORWARD, FORWARD, FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, LEFT]
    for action in [home, [*home[:2], *[LEFT] * 9], [LEFT] * 11][2 - arrivals]:
        info = env.step([action])[-1]
    assert info["is_success"] == success and env.sub_episode == 0  # the next episode has begun


@pytest.mark.parametrize("settings", [{"size": 7}, DOORS])
def test_starts_are_free_and_not_the_goal(settings):
    env = GoalMaze(200, **settings)
    env.reset(seed=0)
    x, y = env.coordinates(env.itinerary.long() // 4)
    assert (env.itinerary.shape[1] == env.max_steps + 1) and (env.itinerary % 4).unique().tolist() == [0, 1, 2, 3]
    there = cells.code_of(env.grid())[torch.arange(200).unsqueeze(1), y, x]
    kinds = {cells.CELLS[code].kind for code in there.unique().tolist()}
    assert kinds <= {"empty", "floor"}
    pose = 4 * env.position + env.direction
    assert torch.equal(pose, env.itinerary[:, 0].long())


def test_told_steps_are_those_since_the_agent_was_put_there():
    env = GoalMaze(64, size=5, max_steps=50)
    env.reset(seed=1)
    policy, counts, episodes = random_policy(env), torch.zeros(64), torch.zeros(64)
    for _ in range(49):
        _, reward, _, _, info = env.step(policy(None))
        counts += 1
        assert torch.equal(info["sub_episode"].float(), episodes)
        assert torch.equal(info["reached_goal"], reward == 1)
        assert torch.equal(info["steps_to_goal"][reward == 1], counts[reward == 1])
        assert torch.equal(info["steps_to_goal"].isnan(), reward == 0)
        counts[reward == 1] = 0
        episodes += reward
    assert episodes.max() >= 3


def test_the_goal_in_view_is_the_cue():
    env = rigged()
    shown = [bool(env.shows_cue())]
    for action in (LEFT, LEFT, LEFT):
        observation = env.step([action])[0]
        shown.append(bool(env.shows_cue()))
        assert bool((observation["image"][..., 0] == 8).any()) == shown[-1]
    assert shown == [True, True, False, True]  # it is two cells to a side when the agent looks up or down


def test_doors_move_when_a_sub_episode_begins():
    env = GoalMaze(32, **DOORS)
    env.autoreset = False
    env.reset(seed=0)
    policy, rows = Planner(env), torch.arange(32).unsqueeze(1)
    y, x = env.coordinates(env.doors)[::-1]
    doors = lambda: cells.code_of(env.grid())[rows, y, x]  # noqa: E731
    before, opened, closed, moved = doors(), 0, 0, 0
    for _ in range(100):
        codes = cells.code_of(env.grid()).long()
        ways = distances(passable(False)[codes], codes == cells.GOAL)
        assert at_pose(ways, env.direction, *env.coordinates(env.position)).isfinite().all()
        info = env.step(policy(env._observe()))[-1]
        after = doors()
        changes = (after != before).any(1)
        assert not (changes & ~info["reached_goal"]).any()
        opened, closed = opened + int((after == OPEN_DOOR).sum()), closed + int((after == CLOSED_DOOR).sum())
        moved, before = moved + int(changes.sum()), after
    assert opened + closed == 100 * 32 * 12 and moved > 100
    assert abs(closed / (opened + closed) - 4 / 12 / 2) < 0.03  # 8 of 12 are in the tree, half of the others open


def test_rooms_without_doors_have_openings():
    env = GoalMaze(300, size=13, rooms_per_side=3)
    env.reset(seed=0)
    walls = (cells.code_of(env.grid()) == cells.WALL)[:, :, [4, 8]].sum() + (cells.code_of(env.grid()) == cells.WALL)[
        :, [4, 8]
    ].sum()
    assert abs((300 * 2 * 26 - int(walls)) / 300 - (8 + 4 / 2)) < 0.25


def test_oracle_arrives_as_often_as_shortest_ways_allow():
    env = GoalMaze(50, size=7, max_steps=60)
    policy = Planner(env)
    env.reset(seed=2)
    goal = cells.code_of(env.grid()) == cells.GOAL
    steps = distances(cells.code_of(env.grid()) != cells.WALL, goal)
    poses = env.itinerary.long()
    ways = [at_pose(steps, pose % 4, *env.coordinates(pose // 4)) for pose in poses.T]
    arrivals = (torch.stack(ways).cumsum(0) <= 60).sum(0)
    returns, success = play(env, policy, seed=2)
    assert torch.equal(returns.long(), arrivals) and torch.equal(success == 1, arrivals >= 2)


@pytest.mark.parametrize(
    "settings", [{"size": 7, "max_steps": 40}, DOORS | {"size": 9, "rooms_per_side": 2, "max_steps": 40}]
)
def test_policies_earn_their_scores(settings):
    settings = settings | {"max_steps": 40}
    env, expected = GoalMaze(128, **settings), GoalMaze(**settings).scores
    for name, make in (env.players | {"random": random_policy}).items():
        returns, _ = play(env, make(env), seed=5)
        assert_mean(returns / 2**0.5, expected[name] / 2**0.5)  # the score is itself a mean of as many
    assert expected["random"] < expected["memoryless"] < expected["oracle"]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"size": 8}, "size must be odd and at least 5, but is 8"),
        ({"rooms_per_side": 7}, "rooms_per_side must be from 1 to 6, but is 7"),
        ({"rooms_per_side": 3, "size": 12}, "1 more than a multiple of 3 .* but is 12: take 13"),
        ({"rooms_per_side": 3, "size": 15}, "but is 15: take 16"),
        ({"rooms_per_side": 4, "size": 13}, "but is 13: take 17"),
        ({"moving_doors": True}, "moving_doors must be False in a perfect maze"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        GoalMaze(**settings)
