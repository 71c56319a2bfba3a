"""Repeat previous by hand, and its scores: oracle exactly length − k, all else 1/num_symbols of it."""

import pytest
import torch

from merlin.tasks.classic.repeat import Memoryless, Oracle, RepeatPrevious, scores
from tests.tasks.play import assert_mean, play, random_policy


def rigged(symbols, **kwargs):
    env = RepeatPrevious(num_envs=1, length=len(symbols), num_symbols=3, **kwargs)
    env.reset()
    env.symbols = torch.tensor([symbols])
    return env


def name(env, symbols):
    """Return (what is shown, whether it is a cue, what naming the symbol then earned) of each step."""
    steps = []
    for symbol in symbols:
        shown, is_cue = int(env._observe()), bool(env.shows_cue())
        steps.append((shown, is_cue, float(env.step(torch.tensor([symbol - 1]))[1])))
    return steps


def test_an_episode_by_hand():
    env = rigged([1, 3, 2, 2, 1], k=2)
    assert name(env, [1, 1, 1, 2, 2]) == [(1, True, 0), (3, True, 0), (2, True, 1), (2, False, 0), (1, False, 1)]


def test_success_is_every_answer():
    for last, success in ((2, 1.0), (3, 0.0)):
        env = rigged([1, 3, 2, 2], k=1)
        name(env, [1, 1, 3])
        _, reward, terminated, truncated, info = env.step(torch.tensor([last - 1]))
        assert float(info["is_success"]) == float(reward) == success and terminated and not truncated
        assert int(info["final_obs"]) == 0


def test_symbols_are_uniform_and_independent():
    env = RepeatPrevious(num_envs=4000, k=1, num_symbols=3, length=10)
    env.reset(seed=0)
    counts = torch.stack([(env.symbols == symbol).sum() for symbol in (1, 2, 3)])
    assert counts.sum() == 40_000 and ((counts - 40_000 / 3).abs() < 4 * (40_000 * 2 / 9) ** 0.5).all()
    repeats = (env.symbols[:, 1:] == env.symbols[:, :-1]).sum()
    assert abs(int(repeats) - 12_000) < 4 * (36_000 * 2 / 9) ** 0.5
    before = env.symbols
    [env.step(torch.zeros(4000)) for _ in range(10)]
    assert abs(int((env.symbols == before).sum()) - 40_000 / 3) < 4 * (40_000 * 2 / 9) ** 0.5  # a new sequence


@pytest.mark.parametrize("settings", [{}, {"k": 1, "length": 2, "num_symbols": 2}, {"k": 7, "length": 20}])
def test_scores_are_what_the_policies_earn(settings):
    env = RepeatPrevious(num_envs=4000, **settings)
    expected, oracle = scores(**settings), Oracle(env)
    assert expected == env.scores
    for seed in range(2):
        returns, success = play(env, oracle, seed)
        assert (returns == expected["oracle"]).all() and (success == 1).all()
    assert_mean(play(env, Memoryless(env))[0], expected["memoryless"])
    assert_mean(play(env, random_policy(env))[0], expected["random"])


def test_scores_by_hand():
    assert scores(k=2, num_symbols=4, length=10) == {"random": 2.0, "memoryless": 2.0, "oracle": 8.0}


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"k": 0}, "k must be at least 1, but is 0"),
        ({"k": 5, "length": 5}, "length must be more than k = 5, but is 5"),
        ({"num_symbols": 1}, "num_symbols must be at least 2, but is 1"),
    ],
)
def test_bad_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RepeatPrevious(**settings)
