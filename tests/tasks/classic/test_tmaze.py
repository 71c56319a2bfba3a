"""The T-maze by hand, and its scores: oracle exactly 1, best memoryless 1/2, random by backward induction."""

import pytest
import torch

from merlin.tasks.classic.tmaze import FORWARD, LEFT, RIGHT, Memoryless, Oracle, TMaze, random_score, scores, time_limit
from tests.tasks.play import assert_mean, play, random_policy


def walk(env, actions):
    """Return (reward, terminated, truncated) of each action in the first environment."""
    steps = [env.step(torch.full((env.num_envs,), action)) for action in actions]
    return [(round(float(r[0]), 3), bool(te[0]), bool(tr[0])) for _, r, te, tr, _ in steps]


def rigged(cue, **kwargs):
    """Return a maze of length 2 with a given cue: 0 left, 1 right."""
    env = TMaze(num_envs=1, length=2, **kwargs)
    env.reset()
    env.node = torch.tensor([3 * cue])
    return env


@pytest.mark.parametrize("cue, turn, reward", [(0, LEFT, 1.0), (0, RIGHT, 0.0), (1, LEFT, 0.0), (1, RIGHT, 1.0)])
def test_an_episode_by_hand(cue, turn, reward):
    steps = walk(rigged(cue), [LEFT, FORWARD, RIGHT, FORWARD, FORWARD, turn])
    bump, move = (-0.1, False, False), (0.0, False, False)
    assert steps == [bump, move, bump, move, bump, (reward, True, False)]


def test_time_limit_truncates():
    steps = walk(rigged(0), [LEFT] * (2 * time_limit(2)))
    assert time_limit(2) == 16
    assert [index for index, (_, _, truncated) in enumerate(steps) if truncated] == [15, 31]
    assert not any(terminated for _, terminated, _ in steps)


def test_ending_on_the_last_step_is_termination():
    steps = walk(rigged(1), [FORWARD, FORWARD, *[FORWARD] * 13, RIGHT])
    assert steps[-1] == (1.0, True, False)


def test_vector_view():
    env = rigged(1)
    seen = [env.views[3].tolist()] + [env.step(torch.tensor([FORWARD]))[0][0].tolist() for _ in range(2)]
    assert seen == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert rigged(0)._observe()[0].tolist() == [1, 0, 0, 0]


def test_egocentric_view():
    env = rigged(1, view="egocentric")
    start, corridor = env._observe(), env.step(torch.tensor([FORWARD]))[0]
    junction = env.step(torch.tensor([FORWARD]))[0]
    picture = {0: ".", 1: "#", 2: "L", 3: "R"}
    drawn = [
        ["".join(picture[int(cell)] for cell in row) for row in view[0, :, :, 0]]
        for view in (start, corridor, junction)
    ]
    assert drawn == [
        ["#####", "#####", ".....", "##.##", "##R##"],
        ["#####", "#####", "#####", ".....", "##.##"],
        ["#####", "#####", "#####", "#####", "....."],
    ]


@pytest.mark.parametrize("view", ["vector", "egocentric"])
def test_the_cue_is_shown_in_the_start_cell_only(view):
    env = TMaze(length=7, view=view)
    left, right = env.views[:8], env.views[8:]
    assert not torch.equal(left[0], right[0])
    assert torch.equal(left[1:], right[1:])


def test_cues_are_fair_and_redrawn():
    env = TMaze(num_envs=10_000, length=1)
    env.reset(seed=0)
    first = env.node > 0
    for action in (FORWARD, LEFT):
        env.step(torch.full((10_000,), action))
    second = env.node > 0
    for samples in (first, second, first == second):
        assert abs(int(samples.sum()) - 5000) < 4 * 50


@pytest.mark.parametrize("view", ["vector", "egocentric"])
@pytest.mark.parametrize("length", [1, 2, 10, 200])
def test_oracle_scores_exactly_the_maximum(length, view):
    env = TMaze(num_envs=100, length=length, view=view)
    policy = Oracle(env)
    for seed in range(2):
        returns, success = play(env, policy, seed)
        assert (returns == 1).all() and (success == 1).all()


@pytest.mark.parametrize("view", ["vector", "egocentric"])
def test_memoryless_policy_earns_its_score(view):
    env = TMaze(num_envs=10_000, length=3, view=view)
    returns, success = play(env, Memoryless(env))
    assert_mean(returns, scores(length=3)["memoryless"])
    assert torch.equal(returns, success)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_random_play_earns_its_score(length):
    env = TMaze(num_envs=40_000, length=length)
    returns, success = play(env, random_policy(env))
    assert_mean(returns, random_score(length))
    assert not success.isnan().any()
