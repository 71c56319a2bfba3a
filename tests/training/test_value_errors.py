"""V against the returns that episodes realised, by sums over windows, beside keeping every step."""

import math

import pytest
import torch

from merlin.experience import Unroll
from merlin.training.value_errors import explained, initial_sums, sum_window

DISCOUNT, BATCH, STEPS = 0.9, 3, 60


def experience(seed, end_share=0.15, next_step=False):
    """Return columns [STEPS, BATCH] in which episodes end, some of them cut."""
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda: torch.rand(STEPS, BATCH, generator=generator)  # noqa: E731
    is_end, is_cut = uniform() < end_share, uniform() < 0.3
    is_valid = torch.ones(STEPS, BATCH, dtype=torch.bool)
    reward, value = 5 * uniform() - 1, 9 * uniform()
    if next_step:  # the row after an end is none of any episode
        for t in range(1, STEPS):
            is_end[t] &= ~(is_end[t - 1] & is_valid[t - 1])
            is_valid[t] = ~(is_end[t - 1] & is_valid[t - 1])
        reward = reward.masked_fill(~is_valid, 0)
    return {"reward": reward, "value": value, "is_end": is_end, "is_valid": is_valid, "truncated": is_end & is_cut}


def unroll_of(columns):
    nothing = torch.zeros_like(columns["reward"])
    known = {name: x for name, x in columns.items() if name != "truncated"}
    return Unroll(
        observation={}, is_first=nothing.bool(), previous_reward=nothing, action=nothing, log_prob=nothing,
        discount=nothing, next_value=nothing, **known,
    )  # fmt: skip


def by_windows(columns, length):
    """Return the sums of all episodes that ended, window by window, in order of environments and time."""
    sums, found = initial_sums(BATCH, torch.device("cpu")), []
    for begin in range(0, STEPS, length):
        window = {name: x[begin : begin + length] for name, x in columns.items()}
        ended, sums = sum_window(unroll_of(window), sums, window["truncated"], DISCOUNT)
        found.append(ended)
    return torch.cat(found).transpose(0, 1)[columns["is_end"].transpose(0, 1)]


def step_by_step(columns):
    """Return the same of every step kept, and all returns and values of episodes that terminated."""
    rows, pairs = [], []
    for b in range(BATCH):
        kept = []
        for t in range(STEPS):
            if columns["is_valid"][t, b]:
                kept.append((columns["reward"][t, b].item(), columns["value"][t, b].item()))
            if columns["is_end"][t, b]:
                ahead, returns = 0.0, []
                for reward, _ in reversed(kept):
                    ahead = reward + DISCOUNT * ahead
                    returns.insert(0, ahead)
                values = [value for _, value in kept]
                errors = [(g - v) ** 2 for g, v in zip(returns, values, strict=True)]
                rows.append([len(kept), sum(errors), sum(returns), sum(g * g for g in returns)])
                if columns["truncated"][t, b]:
                    rows[-1] = [math.nan] * 4
                else:
                    pairs += zip(returns, values, strict=True)
                kept = []
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(pairs, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 2, 7, 20, STEPS])
@pytest.mark.parametrize("next_step", [False, True])
@pytest.mark.parametrize("end_share", [0.02, 0.15, 0.6])
def test_sums_over_windows_are_those_of_every_step(length, next_step, end_share):
    columns = experience(7, end_share, next_step)
    expected, _ = step_by_step(columns)
    assert len(expected) > 0
    torch.testing.assert_close(by_windows(columns, length), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("length", [3, 20])
def test_explained_is_the_fraction_of_the_variance_whatever_the_window(length):
    columns = experience(3)
    returns, values = step_by_step(columns)[1].unbind(1)
    expected = 1 - (returns - values).square().mean() / returns.var(correction=0)
    assert explained(by_windows(columns, length)) == pytest.approx(expected.item(), abs=1e-9)


def test_a_constant_explains_nothing_and_the_return_itself_all():
    """However short the window. Returns that V completes would be close to V whatever it says."""
    columns = experience(5, 0.05)
    columns["truncated"] = torch.zeros_like(columns["is_end"])
    assert explained(by_windows(columns | {"value": torch.full((STEPS, BATCH), 40.0)}, 2)) < 0
    returns = torch.zeros(STEPS, BATCH)
    ahead = torch.zeros(BATCH)
    for t in range(STEPS - 1, -1, -1):
        ahead = columns["reward"][t] + DISCOUNT * ahead.masked_fill(columns["is_end"][t], 0)
        returns[t] = ahead
    assert explained(by_windows(columns | {"value": returns}, 2)) == pytest.approx(1, abs=1e-6)


def test_there_is_nothing_to_explain_of_cut_episodes_or_equal_returns():
    columns = experience(5)
    assert math.isnan(explained(by_windows(columns | {"truncated": columns["is_end"]}, 20)))
    assert math.isnan(explained(torch.empty(0, 4, dtype=torch.float64)))
    always = {"reward": torch.full((STEPS, BATCH), 0.3), "is_end": torch.ones(STEPS, BATCH, dtype=torch.bool)}
    always["truncated"] = torch.zeros_like(always["is_end"])
    assert math.isnan(explained(by_windows(columns | always, 20)))


def test_large_returns_with_a_small_spread_keep_their_digits():
    columns = experience(9, 1.0)
    columns["truncated"] = torch.zeros_like(columns["is_end"])
    columns["reward"] = 1e4 + torch.randn(STEPS, BATCH)
    columns["value"] = columns["reward"] + 0.1
    returns, values = step_by_step(columns)[1].unbind(1)
    expected = 1 - (returns - values).square().mean() / returns.var(correction=0)
    assert explained(by_windows(columns, 20)) == pytest.approx(expected.item(), abs=1e-4)
