"""Playback by hand, and its scores: oracle exactly `length`, all else 1/num_symbols of it."""

import pytest
import torch

from merlin.tasks.classic.playback import Memoryless, Oracle, Playback, scores
from tests.tasks.play import assert_mean, play, random_policy


def episode(symbols, named, **kwargs):
    """Return (what is shown, whether it is a cue, what naming the symbol then earned) of each step, and the success."""
    env = Playback(num_envs=1, length=len(symbols), num_symbols=3, **kwargs)
    env.reset()
    env.symbols = torch.tensor([symbols])
    steps = []
    for symbol in named:
        shown, is_cue = int(env._observe()), bool(env.shows_cue())
        _, reward, terminated, _, info = env.step(torch.tensor([symbol - 1]))
        steps.append((shown, is_cue, float(reward)))
    assert terminated
    return steps, float(info["is_success"])


def test_an_episode_by_hand():
    steps, success = episode([1, 3, 2], [1, 3, 2, 1, 3, 3])
    assert steps == [(1, True, 0), (3, True, 0), (2, True, 0), (0, False, 1), (0, False, 1), (0, False, 0)]
    assert success == 0


def test_in_reverse_by_hand():
    steps, success = episode([1, 3, 2], [1, 1, 1, 2, 3, 1], reverse=True)
    assert [reward for *_, reward in steps] == [0, 0, 0, 1, 1, 1] and success == 1


def test_picture_is_a_timeline():
    env = Playback(num_envs=1, length=2, num_symbols=3)
    env.reset()
    env.symbols = torch.tensor([[1, 3]])
    [env.step(torch.tensor([0])) for _ in range(2)]
    picture = env.draw(0)
    first, second, nothing, future = picture[4, [4, 12, 20, 28]].tolist()
    assert picture.shape == (20, 32 + 8, 3) and (first != second) and nothing == [76] * 3 and min(future) >= 200
    assert picture[12, 20].tolist() == first and picture[12, 4].tolist() == nothing
    assert (picture[0, 16:24] == 0).all() and (picture[0, :16] == 255).all()


@pytest.mark.parametrize("settings", [{}, {"length": 1, "num_symbols": 2}, {"length": 20, "reverse": True}])
def test_scores_are_what_the_policies_earn(settings):
    env = Playback(num_envs=4000, **settings)
    expected, oracle = scores(**settings), Oracle(env)
    assert expected == env.scores
    for seed in range(2):
        returns, success = play(env, oracle, seed)
        assert (returns == expected["oracle"]).all() and (success == 1).all()
    assert_mean(play(env, Memoryless(env))[0], expected["memoryless"])
    assert_mean(play(env, random_policy(env))[0], expected["random"])


def test_scores_by_hand():
    assert scores(length=6, num_symbols=3) == {"random": 2.0, "memoryless": 2.0, "oracle": 6.0}


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"length": 0}, "length must be at least 1, but is 0"),
        ({"num_symbols": 1}, "num_symbols must be at least 2, but is 1"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Playback(**settings)
