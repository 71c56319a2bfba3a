"""Water mazes by hand: platforms that cannot be seen, and stay; their scores."""

import numpy as np
import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.mazes import FLOORS
from merlin.tasks.paper.water_maze import Memoryless, WaterMaze
from merlin.tasks.solvers.planning import Planner
from tests.tasks.play import assert_mean, at_pose, distances, play, random_policy

LEFT, RIGHT, FORWARD = range(3)


def rigged(platform=(3, 1), **settings):
    """Return one pool of 3 x 3 cells; one looks right from its upper left, then its lower left, then its middle."""
    env = WaterMaze(1, num_rooms=1, room_size=3, **settings)
    env.autoreset = False
    env.reset(seed=0)
    x, y = torch.tensor([[1, 1], [1, 3], [2, 2], *[[2, 3]] * (env.max_steps - 2)]).T
    env.itinerary = 4 * env.place(x, y).int().unsqueeze(0)
    env.position, env.direction = env.place(x[:1], y[:1]), torch.tensor([0])
    env.platforms = env.place(*torch.tensor([[platform[0]], [platform[1]]])).unsqueeze(1)
    return env


def test_an_episode_by_hand():
    env = rigged(max_steps=12)
    told = []
    # there, a rest, there another way, a rest, there by yet another, a step too many
    for action in [FORWARD, FORWARD, FORWARD, LEFT, FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, LEFT, FORWARD, LEFT]:
        _, reward, terminated, truncated, info = env.step([action])
        x, y = env.coordinates(env.position)
        steps = info["steps_to_goal"].nan_to_num(0)
        told.append([int(value) for value in (reward, steps, info["sub_episode"], x, y, env.shows_cue())])
        assert bool(info["reached_goal"]) == (float(reward) == 1) and not terminated
    assert told == [
        [0, 0, 0, 2, 1, False],
        [1, 2, 0, 3, 1, True],
        [0, 0, 0, 1, 3, False],  # it rested, and is elsewhere
        [0, 0, 1, 1, 3, False],
        [0, 0, 1, 1, 2, False],
        [0, 0, 1, 1, 1, False],
        [0, 0, 1, 1, 1, False],
        [0, 0, 1, 2, 1, False],
        [1, 6, 1, 3, 1, True],
        [0, 0, 1, 2, 2, False],
        [0, 0, 2, 3, 2, False],
        [0, 0, 2, 3, 2, False],
    ]
    assert truncated and info["is_success"] == 1


def test_platforms_are_not_seen():
    one, other = rigged(), rigged(platform=(2, 3))
    for action in [LEFT, RIGHT, RIGHT, FORWARD, FORWARD, LEFT, FORWARD]:  # past it, then onto it
        seen, also_seen = one.step([action])[0], other.step([action])[0]
        assert all(torch.equal(seen[name], also_seen[name]) for name in seen)
    assert bool(other.shows_cue()) and not bool(one.shows_cue())


def test_pools_differ_in_their_floors():
    env = WaterMaze(100, num_rooms=3, room_size=4)
    env.reset(seed=0)
    grid = cells.code_of(env.grid())
    pools = torch.stack([grid[:, 1:5, 1 + 5 * room : 5 + 5 * room].flatten(1) for room in range(3)], 1)
    assert torch.equal(pools, pools[..., :1].expand_as(pools))
    colours = pools[..., 0]
    assert all(len(set(row)) == 3 and set(row) <= set(FLOORS) for row in colours.tolist())
    assert len(colours[:, 0].unique()) == 6
    assert (grid[:, :, ::5] == cells.WALL).all() and (grid[:, [0, -1]] == cells.WALL).all()


def test_platforms_and_starts_are_everywhere_but_apart():
    env = WaterMaze(500, num_rooms=2, room_size=3)
    env.reset(seed=0)
    x, y = env.coordinates(env.platforms)
    assert [x[:, room].unique().tolist() for room in (0, 1)] == [[1, 2, 3], [5, 6, 7]]
    assert y.unique().tolist() == [1, 2, 3]
    starts = env.itinerary.long() // 4
    assert not (starts.unsqueeze(2) == env.platforms.unsqueeze(1)).any()
    share = (env.coordinates(starts)[0] < 4).float().mean()
    assert abs(float(share) - 0.5) < 4 * 0.5 / starts.numel() ** 0.5


@pytest.mark.parametrize("room_size", [3, 4, 5, 6])
def test_memoryless_sweeps_the_whole_pool_from_anywhere(room_size):
    env = WaterMaze(200, num_rooms=1, room_size=room_size, max_steps=1000)
    env.reset(seed=0)
    env.platforms = torch.zeros_like(env.platforms)  # none
    policy, visited = Memoryless(env), torch.zeros(200, env.area, dtype=torch.bool)
    for _ in range(2 * room_size * (room_size + 2) + 4):  # down and up, with two turns a row, from any pose
        visited.scatter_(1, env.position.unsqueeze(1), True)
        env.step(policy(env._observe()))
    assert (visited.sum(1) == room_size**2).all()


def test_oracle_arrives_as_often_as_shortest_ways_allow():
    env = WaterMaze(50, max_steps=60)
    policy = Planner(env)
    env.reset(seed=2)
    platforms = (env.grid_positions == env.platforms[:, :, None, None]).any(1)
    steps, poses = distances(cells.code_of(env.grid()) != cells.WALL, platforms), env.itinerary.long()
    ways = [at_pose(steps, pose % 4, *env.coordinates(pose // 4)) + 1 for pose in poses.T]  # each with a rest
    arrivals = (torch.stack(ways).cumsum(0) - 1 <= 60).sum(0)
    returns, success = play(env, policy, seed=2)
    assert torch.equal(returns.long(), arrivals) and torch.equal(success == 1, arrivals >= 2)


@pytest.mark.parametrize("settings", [{"max_steps": 50}, {"num_rooms": 1, "room_size": 4, "max_steps": 30}])
def test_policies_earn_their_scores(settings):
    env, expected = WaterMaze(256, **settings), WaterMaze(**settings).scores
    for name, make in (env.players | {"random": random_policy}).items():
        returns, _ = play(env, make(env), seed=5)
        assert_mean(returns / 2**0.5, expected[name] / 2**0.5)  # the score is itself a mean of as many
    assert expected["random"] < expected["memoryless"] < expected["oracle"]


def test_pictures_show_the_platform():
    one, other = rigged(platform=(3, 1)).draw(0), rigged(platform=(3, 2)).draw(0)
    different = np.argwhere((one != other).any(2)) // 16
    assert {tuple(place) for place in different.tolist()} == {(1, 3), (2, 3)}


@pytest.mark.parametrize("settings, sentence", [({"num_rooms": 7}, "num_rooms must be from 1 to 6, but is 7"),
                                                ({"room_size": 2}, "room_size must be at least 3, but")])  # fmt: skip
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        WaterMaze(**settings)
