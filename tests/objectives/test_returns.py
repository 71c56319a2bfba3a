"""Returns and advantages against loops, hand-derived values and their special cases."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.objectives.columns import check_shapes
from merlin.objectives.policy_gradient import (
    ActorCriticConfig,
    advantages_and_returns,
    masked_mean,
    normalized,
    policy_loss,
)
from merlin.objectives.returns import generalized_advantages, lambda_returns, n_step_returns, vtrace

T, B = 7, 3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def window() -> dict[str, torch.Tensor]:
    """Rows 2 of column 0 and 4 of column 1 terminate; row 3 of column 2 is truncated."""
    discount = torch.full((T, B), 0.9, dtype=torch.float64)
    is_end = torch.zeros(T, B, dtype=torch.bool)
    is_end[2, 0] = is_end[4, 1] = is_end[3, 2] = True
    discount[2, 0] = discount[4, 1] = 0
    return {"reward": randn(T, B), "discount": discount, "next_value": randn(T, B, seed=1), "is_end": is_end}


def test_advantages_equal_the_sum_of_discounted_td_errors():
    w, value, gae_lambda = window(), randn(T, B, seed=2), 0.8
    # What follows a row that ends nothing is the next row, and worth its value.
    following = torch.cat([value[1:], w["next_value"][-1:]])
    w["next_value"] = torch.where(w["is_end"], w["next_value"], following)
    ours = generalized_advantages(value=value, gae_lambda=gae_lambda, **w)
    td_errors = w["reward"] + w["discount"] * w["next_value"] - value
    for b in range(B):
        for t in range(T):
            expected, weight = 0.0, 1.0
            for s in range(t, T):
                expected += weight * td_errors[s, b]
                if w["is_end"][s, b]:
                    break
                weight *= w["discount"][s, b] * gae_lambda
            assert ours[t, b] == pytest.approx(float(expected))


def test_n_step_returns_by_hand():
    reward = torch.tensor([[1.0], [2.0], [4.0], [8.0]], dtype=torch.float64)
    discount = torch.tensor([[0.5], [0.5], [0.5], [0.5]], dtype=torch.float64)
    next_value = torch.tensor([[99.0], [16.0], [99.0], [32.0]], dtype=torch.float64)
    is_end = torch.tensor([[False], [True], [False], [False]])
    # Row 1 is truncated: 2 + 0.5 · 16 = 10, then row 0: 1 + 0.5 · 10. Row 3 is cut by the window: 8 + 0.5 · 32.
    expected = torch.tensor([[6.0], [10.0], [16.0], [24.0]], dtype=torch.float64)
    torch.testing.assert_close(n_step_returns(reward, discount, next_value, is_end), expected)


def test_termination_ignores_every_value_after_it_and_truncation_only_the_next_row():
    w = window()
    before = n_step_returns(**w)
    changed = {**w, "next_value": w["next_value"].clone(), "reward": w["reward"].clone()}
    changed["next_value"][2, 0] = changed["reward"][3, 0] = 100.0
    assert torch.equal(n_step_returns(**changed)[:3, 0], before[:3, 0])
    changed = {**w, "next_value": w["next_value"].clone(), "reward": w["reward"].clone()}
    changed["reward"][4, 2] = 100.0
    assert torch.equal(n_step_returns(**changed)[:4, 2], before[:4, 2])
    changed["next_value"][3, 2] += 1.0
    assert n_step_returns(**changed)[3, 2] == pytest.approx(float(before[3, 2]) + 0.9)


def test_lambda_one_is_n_step_and_zero_is_one_step():
    w, value = window(), randn(T, B, seed=2)
    torch.testing.assert_close(lambda_returns(gae_lambda=1.0, **w), n_step_returns(**w))
    one_step = w["reward"] + w["discount"] * w["next_value"]
    torch.testing.assert_close(lambda_returns(gae_lambda=0.0, **w), one_step)
    torch.testing.assert_close(generalized_advantages(value=value, gae_lambda=0.0, **w), one_step - value)


def follows(w, value):
    """The window with what follows a row that ends nothing being the next row, worth its value."""
    following = torch.cat([value[1:], w["next_value"][-1:]])
    return w | {"next_value": torch.where(w["is_end"], w["next_value"], following)}


@pytest.mark.parametrize("vtrace_lambda", [1.0, 0.7, 0.0])
def test_vtrace_equals_its_sum_of_corrected_td_errors(vtrace_lambda):
    """Remark 1 of the paper: v = V + Σ γ^… (Π c) δ, cut where an episode ends; ratios on both sides of 1."""
    value, ratio = randn(T, B, seed=2), randn(T, B, seed=3).exp()
    w = follows(window(), value)
    ours = vtrace(value=value, ratio=ratio, vtrace_lambda=vtrace_lambda, **w)
    assert (ratio > 1).any() and (ratio < 1).any()
    for b in range(B):
        targets = []
        for t in range(T):
            total, weight = float(value[t, b]), 1.0
            for s in range(t, T):
                rho = min(1.0, float(ratio[s, b]))
                error = w["reward"][s, b] + w["discount"][s, b] * w["next_value"][s, b] - value[s, b]
                total += weight * rho * float(error)
                if w["is_end"][s, b]:
                    break
                weight *= float(w["discount"][s, b]) * vtrace_lambda * rho
            targets.append(total)
            assert ours.returns[t, b] == pytest.approx(total)
        for t in range(T):
            goes_on = t + 1 < T and not w["is_end"][t, b]
            following = targets[t + 1] if goes_on else float(w["next_value"][t, b])
            advantage = w["reward"][t, b] + w["discount"][t, b] * following - value[t, b]
            assert ours.advantages[t, b] == pytest.approx(min(1.0, float(ratio[t, b])) * float(advantage))


@pytest.mark.parametrize("most", [1.0, 3.0])
def test_vtrace_of_ones_own_experience_is_n_step_and_gae(most):
    value = randn(T, B, seed=2)
    w = follows(window(), value)
    returns, advantages = vtrace(value=value, ratio=torch.full((T, B), most, dtype=torch.float64), **w)
    torch.testing.assert_close(returns, n_step_returns(**w))
    torch.testing.assert_close(advantages, generalized_advantages(value=value, gae_lambda=1.0, **w))


def test_vtrace_learns_nothing_from_what_the_policy_would_never_do():
    value = randn(T, B, seed=2)
    returns, advantages = vtrace(value=value, ratio=torch.zeros(T, B, dtype=torch.float64), **window())
    assert torch.equal(returns, value) and not advantages.any()


def test_columns_are_independent_and_inputs_stay_as_they_were():
    w = window()
    before = {name: x.clone() for name, x in w.items()}
    whole = lambda_returns(gae_lambda=0.7, **w)
    alone = lambda_returns(gae_lambda=0.7, **{name: x[:, 1:2] for name, x in w.items()})
    assert torch.equal(whole[:, 1:2], alone)
    assert all(torch.equal(w[name], before[name]) for name in w)


def test_policy_loss_is_the_policy_gradient_in_the_first_pass_and_clipped_beyond():
    log_prob, advantages = randn(T, B).requires_grad_(), randn(T, B, seed=1)
    loss = policy_loss(log_prob, log_prob.detach(), advantages, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    torch.testing.assert_close(gradient, -advantages)
    far = policy_loss(log_prob, log_prob.detach() - 1, advantages, 0.2)  # ratio e, above 1.2
    (gradient,) = torch.autograd.grad(far.sum(), log_prob)
    assert (gradient[advantages > 0] == 0).all() and (gradient[advantages < 0] != 0).all()


def test_masked_mean_leaves_out_even_what_is_not_a_number():
    x = torch.tensor([[1.0, torch.nan], [3.0, torch.inf]])
    assert masked_mean(x, x.isfinite()) == 2
    assert masked_mean(x, torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_config_defaults_are_the_papers():
    config = ActorCriticConfig()
    assert (config.discount_factor, config.gae_lambda, config.entropy_cost) == (0.96, 0.9, 0.01)


def test_returns_of_doubles_have_their_digits():
    reward, discount, value = torch.tensor([[[1.0], [2.0]], [[0.9], [0.9]], [[3.0], [5.0]]], dtype=torch.float64)
    last = 2 + 0.9 * 5
    first = 1 + 0.9 * (0.05 * 3 + 0.95 * last)
    returns = lambda_returns(reward, discount, value, torch.zeros(2, 1, dtype=torch.bool), 0.95)
    assert returns.flatten().tolist() == pytest.approx([first, last], rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_an_end_may_be_told_by_a_number(dtype):
    w = window() | {"value": randn(T, B, seed=2)}
    numbers = w | {"is_end": w["is_end"].to(dtype)}
    assert torch.equal(generalized_advantages(gae_lambda=0.8, **numbers), generalized_advantages(gae_lambda=0.8, **w))
    ratio = randn(T, B, seed=3).exp()
    for found, expected in zip(vtrace(ratio=ratio, **numbers), vtrace(ratio=ratio, **w), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["discount", "value", "next_value", "is_end", "ratio"])
@pytest.mark.parametrize("reshape", [lambda x: x.unsqueeze(-1), lambda x: x[:, :1], lambda x: x[0], lambda x: x.T])
def test_columns_of_another_shape_are_refused(name, reshape):
    """As [T, B, 1] of a value head, they would be broadcast to returns of something else."""
    columns = window() | {"value": randn(T, B, seed=2), "ratio": randn(T, B, seed=3).exp()}
    wrong = columns | {name: reshape(columns[name])}
    sentence = rf"{name} must have the shape of reward, \[7, 3\], but it has|Type-check error"
    with pytest.raises((MerlinError, TypeCheckError), match=sentence):
        vtrace(**wrong)
    del wrong["ratio"]
    if name != "ratio":
        with pytest.raises((MerlinError, TypeCheckError), match=sentence):
            generalized_advantages(gae_lambda=0.8, **wrong)


def test_shapes_are_told_and_one_number_does_for_all():
    column = torch.zeros(T, B)
    check_shapes(reward=column, discount=0.9, value=torch.tensor(1.0), next_value=column)
    with pytest.raises(MerlinError, match=r"value must have the shape of reward, \[7, 3\], but it has \[7, 3, 1\]"):
        check_shapes(reward=column, discount=column, value=column.unsqueeze(-1))


def test_advantages_are_normalised_by_the_rows_that_count_whatever_others_hold():
    """Of 1, 5 and 3 the standard deviation is sqrt(8 / 3)."""
    is_valid = torch.tensor([[True, False], [True, True]])
    advantages = torch.tensor([[1.0, torch.nan], [5.0, 3.0]])
    expected = torch.tensor([1.0, 5.0, 3.0]) * (3 / 8) ** 0.5
    torch.testing.assert_close(normalized(advantages, is_valid)[is_valid], expected)
    torch.testing.assert_close(normalized(advantages, is_valid, least=1.5)[is_valid], expected)
    torch.testing.assert_close(normalized(advantages, is_valid, least=4.0)[is_valid], advantages[is_valid] / 4)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_errors_of_v_do_not_become_large_advantages(unit):
    """Without rewards advantages are V's own errors: here a hundredth of a unit, and so a tenth of the least spread."""
    error, nothing = randn(T, B, seed=2), torch.zeros(T, B, dtype=torch.float64)
    of_other_columns = dict.fromkeys(Unroll._fields)
    columns = {"reward": nothing, "discount": nothing, "next_value": nothing, "value": 0.01 * unit * error}
    valid = {"is_end": nothing.bool(), "is_valid": ~nothing.bool()}
    unroll = Unroll(**of_other_columns | columns | valid)
    config = ActorCriticConfig(normalize_advantages=True, gae_lambda=0.0)
    loud, _ = advantages_and_returns(unroll, config, unit)
    quiet, _ = advantages_and_returns(unroll, replace(config, least_advantage_spread=0.1), unit)
    torch.testing.assert_close(loud, -error / error.std(correction=0))
    torch.testing.assert_close(quiet, -0.1 * error)


def test_of_no_steps_there_are_no_returns():
    none = torch.zeros(0, B)
    assert n_step_returns(none, none, none, none).shape == (0, B)
    assert generalized_advantages(none, none, none, none, none, 0.9).shape == (0, B)
    assert [x.shape for x in vtrace(none, none, none, none, none, none)] == [(0, B)] * 2
    no_batch = torch.zeros(T, 0)
    assert n_step_returns(no_batch, no_batch, no_batch, no_batch).shape == (T, 0)
