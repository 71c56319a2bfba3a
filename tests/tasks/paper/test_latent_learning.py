"""Latent learning by hand, and its scores: oracle exactly 1, best memoryless 1/2, random by backward induction."""

import pytest
import torch

from merlin.tasks.grid import cells
from merlin.tasks.grid.mazes import FLOORS
from merlin.tasks.paper.latent_learning import LatentLearning, Memoryless, Oracle, random_score, scores
from tests.tasks.play import assert_mean, play, random_policy

LEFT, RIGHT, FORWARD = range(3)
SETTINGS = [{}, {"stem_length": 1, "arm_length": 1, "explore_steps": 9, "return_steps": 5},
            {"stem_length": 2, "arm_length": 6, "agent_view_size": 3}]  # fmt: skip


def rigged(colours=(0, 1), valued_arm=0):
    """Return a maze of stem 2 and arms 1, with these numbers of colours in its left and right arm."""
    env = LatentLearning(1, 2, 1, explore_steps=6, return_steps=6)
    env.autoreset = False
    env.reset(seed=0)
    env.colours = torch.tensor([[FLOORS[colour] for colour in colours]], dtype=torch.uint8)
    env.grid()[0, 1, [1, 3]] = env.packed[env.colours[0].long()]
    env.valued_arm = torch.tensor([valued_arm])
    return env


def floor_colours(env):
    """Return what lies where there is no wall: the number of its colour, -1 for none."""
    codes = cells.code_of(env.grid())[0]
    return [[FLOORS.index(code) if code in FLOORS else -1 for code in row if code != cells.WALL] for row in
            (codes[1].tolist(), codes[2].tolist(), codes[3].tolist())]  # fmt: skip


@pytest.mark.parametrize("arm, turn, reward", [(0, LEFT, 1), (0, RIGHT, 0), (1, LEFT, 0), (1, RIGHT, 1)])
def test_an_episode_by_hand(arm, turn, reward):
    env = rigged(valued_arm=arm)
    for action in [FORWARD, FORWARD, LEFT, FORWARD, LEFT, LEFT]:  # to the end of the left arm, which earns nothing
        assert floor_colours(env) == [[0, -1, 1], [-1], [-1]]
        _, earned, terminated, truncated, _ = env.step([action])
        assert earned == 0 and not terminated and not truncated
    assert floor_colours(env) == [[arm, arm, arm], [arm], [arm]]
    assert [int(x) for x in env.coordinates(env.position)] == [2, 3] and env.direction == 3
    *steps, last = [env.step([action])[1:] for action in [FORWARD, FORWARD, turn, FORWARD]]
    assert not any(earned or terminated for earned, terminated, *_ in steps)
    assert last[0] == reward and last[1] and last[3]["is_success"] == reward


def test_time_limit_truncates():
    env = rigged()
    ends = [bool(env.step([LEFT])[3]) for _ in range(12)]
    assert ends == [False] * 11 + [True]


def test_the_second_phase_does_not_show_the_arms():
    one, other = rigged((0, 1), valued_arm=1), rigged((1, 0), valued_arm=0)
    differs = []
    for action in [LEFT] * 6 + [FORWARD, FORWARD, LEFT, LEFT, LEFT]:
        seen, also_seen = one.step([action])[0], other.step([action])[0]
        differs.append(not torch.equal(seen["image"], also_seen["image"]))
    assert any(differs[:5]) and not any(differs[5:])


def test_the_arms_are_the_cue_in_the_first_phase():
    env = LatentLearning(1, 4, 1, explore_steps=8, return_steps=8)
    env.reset(seed=0)
    shown = []
    for action in [LEFT, RIGHT] * 5:
        env.step([action])
        shown.append(bool(env.shows_cue()))
    assert shown == [False, True, False, True, False, True, False, False, False, False]


def test_colours_and_arms_are_fair():
    env = LatentLearning(6000)
    env.reset(seed=0)
    codes = env.colours.tolist()
    assert all(one != other for one, other in codes)
    for code in FLOORS:
        assert abs(sum(one == code for one, _ in codes) - 1000) < 4 * 1000**0.5
    assert abs(int(env.valued_arm.sum()) - 3000) < 4 * 39


@pytest.mark.parametrize("settings", SETTINGS)
def test_oracle_scores_exactly_the_maximum(settings):
    env = LatentLearning(100, **settings)
    policy = Oracle(env)
    for seed in range(2):
        returns, success = play(env, policy, seed)
        assert (returns == 1).all() and (success == 1).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_memoryless_policy_earns_its_score(settings):
    env = LatentLearning(2000, **settings)
    returns, success = play(env, Memoryless(env))
    assert_mean(returns, env.scores["memoryless"])
    assert torch.equal(returns, success)


@pytest.mark.parametrize("settings", SETTINGS)
def test_random_play_earns_its_score(settings):
    returns, _ = play(LatentLearning(5000, **settings), random_policy(LatentLearning(5000, **settings)))
    assert_mean(returns, scores(**settings)["random"])


def test_score_of_random_play_by_hand():
    """Of stem 1 and arms 1, two ways lead to an end in three steps: forward, a turn, forward."""
    assert random_score(1, 1, 3) == pytest.approx(2 * 0.5 / 27)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"stem_length": 0}, "stem_length must be at least 1, but is 0"),
        ({"arm_length": 0}, "arm_length must be at least 1"),
        ({"explore_steps": 5}, "explore_steps must be at least 6, to reach the end of an arm, but is 5"),
        ({"return_steps": 5}, "return_steps must be at least 6"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        LatentLearning(**settings)
