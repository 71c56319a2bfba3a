"""Estimators of discrete gradients against the exact gradient, by enumeration of two variables of three classes."""

import itertools
import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.stats import chisquare, gumbel_r, kstest

from merlin.errors import MerlinError
from merlin.latents import OneHots, conditional_gumbels, exponentials_of, gumbel, highest
from merlin.objectives.estimators import (
    SAMPLERS,
    Constant,
    Cosine,
    CostSpread,
    Exponential,
    LearntBaseline,
    LeaveOneOutBaseline,
    Linear,
    MovingMeanBaseline,
    NoBaseline,
    reinforce,
)

GROUPS, CLASSES, SAMPLES = 2, 3, 200_000
ERRORS = 5
"""Standard errors that a mean of samples may be off."""


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


THETA = doubles(GROUPS, CLASSES)
WEIGHTS, SQUARE = doubles(GROUPS * CLASSES, seed=1), doubles(GROUPS * CLASSES, GROUPS * CLASSES, seed=2)
HIDDEN, OUT = doubles(GROUPS * CLASSES, 8, seed=3), doubles(8, seed=4)

COSTS = {
    "linear": lambda d: d.flatten(-2) @ WEIGHTS,
    "quadratic": lambda d: ((d.flatten(-2) @ SQUARE) * d.flatten(-2)).sum(-1) + d.flatten(-2) @ WEIGHTS,
    "network": lambda d: torch.tanh(d.flatten(-2) @ HIDDEN) @ OUT,
}


def exact_gradient(cost) -> torch.Tensor:
    theta = THETA.clone().requires_grad_()
    probs = theta.softmax(-1)
    eye = torch.eye(CLASSES, dtype=torch.float64)
    expected = sum(
        math.prod([probs[g, c] for g, c in enumerate(classes)], start=torch.ones(())) * cost(eye[list(classes)])
        for classes in itertools.product(range(CLASSES), repeat=GROUPS)
    )
    return torch.autograd.grad(expected, theta)[0]


def noise(count: int = SAMPLES, seed: int = 7) -> torch.Tensor:
    return gumbel((count, GROUPS, CLASSES), THETA, torch.Generator().manual_seed(seed))


def sampled_gradients(cost, sampler, **options) -> torch.Tensor:
    """The gradient that each of the samples gives."""
    theta = THETA.expand(SAMPLES, -1, -1).clone().requires_grad_()
    return torch.autograd.grad(cost(sampler(theta, noise(), **options)).sum(), theta)[0]


def score_gradients(cost, baseline, samples: int = 4) -> torch.Tensor:
    theta = THETA.expand(samples, SAMPLES // samples, -1, -1).clone().requires_grad_()
    one_hots = highest(theta.detach() + noise().view_as(theta))
    costs, log_prob = cost(one_hots), (theta.log_softmax(-1) * one_hots).sum((-2, -1))
    context = costs.new_ones(costs.shape[1], 1)
    baseline(costs.flip(1), context)  # a moving mean of costs before
    total = reinforce(log_prob, costs, baseline(costs, context)).sum()
    return torch.autograd.grad(total, theta)[0].flatten(0, 1)


def error_of(gradients: torch.Tensor) -> torch.Tensor:
    return gradients.std(0) / math.sqrt(len(gradients))


def assert_unbiased(gradients: torch.Tensor, right: torch.Tensor) -> None:
    assert ((gradients.mean(0) - right).abs() <= ERRORS * error_of(gradients) + 1e-12).all()


def bias(gradients: torch.Tensor, right: torch.Tensor) -> float:
    return float((gradients.mean(0) - right).norm() / right.norm())


def spread(gradients: torch.Tensor) -> float:
    return float(gradients.var(0).sum().sqrt())


def learnt_baseline() -> LearntBaseline:
    return LearntBaseline(torch.nn.Linear(1, 1).double())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("baseline", [NoBaseline, MovingMeanBaseline, LeaveOneOutBaseline, learnt_baseline])
def test_reinforce_is_unbiased_whatever_the_cost_and_the_baseline(cost, baseline):
    assert_unbiased(score_gradients(COSTS[cost], baseline()), exact_gradient(COSTS[cost]))


def test_a_baseline_lowers_the_variance_of_reinforce():
    def cost(one_hots: torch.Tensor) -> torch.Tensor:
        return 10 + COSTS["network"](one_hots)

    none, mean, others = (
        spread(score_gradients(cost, baseline())) for baseline in (NoBaseline, MovingMeanBaseline, LeaveOneOutBaseline)
    )
    assert max(mean, others) < 0.2 * none


def test_straight_through_is_exact_for_linear_costs_without_any_variance():
    gradients = sampled_gradients(COSTS["linear"], SAMPLERS["straight_through"])
    torch.testing.assert_close(gradients, exact_gradient(COSTS["linear"]).expand_as(gradients))
    biased = sampled_gradients(COSTS["quadratic"], SAMPLERS["straight_through"])
    assert bias(biased, exact_gradient(COSTS["quadratic"])) > 0.02


@pytest.mark.parametrize("cost", ["linear", "quadratic"])
def test_reinmax_is_unbiased_up_to_quadratic_costs(cost):
    assert_unbiased(sampled_gradients(COSTS[cost], SAMPLERS["reinmax"]), exact_gradient(COSTS[cost]))


def test_reinmax_at_a_higher_temperature_is_biased():
    right = exact_gradient(COSTS["quadratic"])
    at_1, at_2 = (sampled_gradients(COSTS["quadratic"], SAMPLERS["reinmax"], temperature=t) for t in (1.0, 2.0))
    assert bias(at_2, right) > 0.1 > bias(at_1, right)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_gumbel_rao_has_the_mean_of_st_gumbel_and_less_variance_the_more_it_draws(temperature):
    cost = COSTS["network"]
    plain = sampled_gradients(cost, SAMPLERS["st_gumbel"], temperature=temperature)
    generator = torch.Generator().manual_seed(3)
    few, many = (
        sampled_gradients(cost, SAMPLERS["gumbel_rao"], temperature=temperature, num_samples=k, generator=generator)
        for k in (2, 8)
    )
    for gradients in (few, many):
        allowed = ERRORS * (error_of(plain).square() + error_of(gradients).square()).sqrt()
        assert ((gradients.mean(0) - plain.mean(0)).abs() <= allowed).all()
    assert spread(many) < spread(few) < spread(plain)


def test_st_gumbel_trades_bias_for_variance_by_its_temperature():
    right = exact_gradient(COSTS["linear"])
    found = [sampled_gradients(COSTS["linear"], SAMPLERS["st_gumbel"], temperature=t) for t in (1.0, 0.5, 0.1)]
    biases, spreads = [bias(x, right) for x in found], [spread(x) for x in found]
    assert biases[0] > biases[1] > biases[2] and spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_one_hot_with_the_frequencies_of_the_probabilities(name):
    samples = SAMPLERS[name](THETA.expand(SAMPLES, -1, -1), noise(), 1.0)
    torch.testing.assert_close(samples.sum(-1), torch.ones_like(samples[..., 0]))
    if name == "gumbel_softmax":
        assert not ((samples == 0) | (samples == 1)).all()
        return
    assert ((samples == 0) | (samples == 1)).all()
    expected = THETA.softmax(-1) * SAMPLES
    for counted, of in zip(samples.sum(0), expected, strict=True):
        assert chisquare(counted, of).pvalue > 1e-4


def test_conditional_gumbels_lead_to_the_sample_and_are_gumbel_without_it():
    theta = THETA.expand(20_000, -1, -1)
    one_hots = highest(theta + noise(20_000))
    draws = conditional_gumbels(theta, one_hots, 3, torch.Generator().manual_seed(1))
    assert torch.equal(highest(theta + draws), one_hots.expand_as(draws))
    for group, of_class in itertools.product(range(GROUPS), range(CLASSES)):
        assert kstest(draws[0, :, group, of_class].numpy(), gumbel_r.cdf).pvalue > 1e-4
    sharp = torch.tensor([[1e4, 0.0, -1e4]])
    assert conditional_gumbels(sharp, highest(sharp), 5).isfinite().all()


def test_gradients_of_conditional_gumbels_are_none():
    theta = THETA.clone().requires_grad_()
    draws = noise(1)[0]
    rao = SAMPLERS["gumbel_rao"](theta, draws, 0.5, 7, torch.Generator().manual_seed(2))
    found = torch.autograd.grad(COSTS["linear"](rao), theta)[0]
    constants = conditional_gumbels(THETA, highest(THETA + draws), 7, torch.Generator().manual_seed(2))
    slope = torch.zeros_like(THETA)
    for constant in constants:
        again = THETA.clone().requires_grad_()
        soft = torch.softmax((again + constant) / 0.5, -1)
        slope += torch.autograd.grad((soft.flatten() @ WEIGHTS), again)[0] / 7
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_and_its_gradient_follow_from_the_noise_alone(name):
    """Or neither a run's seed nor its last checkpoint would say how it goes on, and other draws of a program change."""
    found = []
    for luck in (0, 1):
        torch.manual_seed(luck)
        before, theta = torch.get_rng_state(), THETA.expand(5, -1, -1).clone().requires_grad_()
        sample = OneHots(theta, name, 0.5 if "gumbel" in name else 1.0).sample(noise(5).flatten(-2))
        found.append((sample, *torch.autograd.grad((sample @ WEIGHTS).sum(), theta)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *found))
    if name == "gumbel_rao":
        assert len(found[0][1].unique(dim=0)) == 5


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_sharp_logits_give_finite_samples_and_gradients(name, size):
    theta = torch.tensor([[size, 0.0, 1.0]], requires_grad=True)
    sample = SAMPLERS[name](theta, gumbel((1, 3), theta, torch.Generator().manual_seed(0)), 1.0)
    (gradient,) = torch.autograd.grad(sample[0, 0], theta)
    assert sample.isfinite().all() and gradient.isfinite().all()


def test_gumbel_noise_is_gumbel_and_its_generators():
    like = torch.zeros(())
    draws = gumbel((100_000,), like, torch.Generator().manual_seed(5))
    assert kstest(draws.numpy(), gumbel_r.cdf).pvalue > 1e-4
    assert torch.equal(draws, gumbel((100_000,), like, torch.Generator().manual_seed(5)))


def test_reinforce_has_the_costs_value_and_passes_on_their_own_gradient():
    log_prob, cost = (torch.tensor([x, x - 1], requires_grad=True) for x in (2.0, 5.0))
    found = reinforce(log_prob, cost, torch.tensor([1.0, 1.0]))
    assert torch.equal(found, cost)
    slopes = torch.autograd.grad(found.sum(), (log_prob, cost))
    assert slopes[0].tolist() == [4.0, 3.0] and slopes[1].tolist() == [1.0, 1.0]


def test_leave_one_out_by_hand():
    cost = torch.tensor([[1.0], [2.0], [6.0]])
    assert LeaveOneOutBaseline()(cost).tolist() == [[4.0], [3.5], [1.5]]
    with pytest.raises(MerlinError, match="2 samples or more, but 1 came"):
        LeaveOneOutBaseline()(cost[:1])


def test_a_moving_mean_starts_with_the_first_costs_and_follows_slowly_while_training():
    baseline = MovingMeanBaseline(0.9)
    assert baseline(torch.tensor([3.0, 5.0])).tolist() == [4.0, 4.0]
    assert baseline(torch.tensor([14.0])).tolist() == [4.0]
    assert baseline.eval()(torch.tensor([99.0])).tolist() == [5.0]
    assert baseline(torch.tensor([99.0])).tolist() == [5.0]
    resumed = MovingMeanBaseline(0.9)
    resumed.load_state_dict(baseline.state_dict())
    assert resumed(torch.tensor([1.0])).tolist() == [5.0]


def test_a_learnt_baseline_learns_the_expected_cost_and_needs_a_context():
    context = doubles(64, 2, seed=8)
    cost = (context @ doubles(2, seed=9)).expand(5, -1)
    baseline = LearntBaseline(torch.nn.Linear(2, 1).double())
    optimizer = torch.optim.LBFGS(baseline.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = baseline.loss(cost, context)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(baseline(cost, context), cost, atol=1e-3, rtol=0)
    assert not baseline(cost, context).requires_grad
    with pytest.raises(MerlinError, match="none came"):
        baseline(cost)


@pytest.mark.parametrize("mean", [3, 3e4])
def test_the_spread_of_costs_is_the_standard_deviation(mean):
    spread_of = CostSpread(0.9)
    costs = mean + 2 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    found = [float(spread_of(cost)) for cost in costs]
    assert found[0] == pytest.approx(float(costs[0].std()), rel=1e-2) and found[-1] == pytest.approx(2, rel=0.05)


def test_schedules():
    assert Constant(0.7)(0) == Constant(0.7)(10**9) == 0.7
    line = Linear(1.0, 0.5, 100)
    assert [line(s) for s in (0, 50, 100, 1000)] == [1.0, 0.75, 0.5, 0.5]
    falling = Exponential(1.0, 1e-2, 0.5)
    assert falling(10) == pytest.approx(math.exp(-0.1)) and falling(10_000) == 0.5
    cosine = Cosine()
    assert cosine(0) == 1 and cosine(75_000) == pytest.approx((1 + 1 / 16) / 2) and cosine(3_000_000) == 1 / 16
    assert np.all(np.diff([cosine(s) for s in range(0, 150_000, 5000)]) < 0)


@pytest.mark.parametrize("cost_type", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_counted_of_costs_is_counted_in_any_type(cost_type, model_type):
    """First costs of 0, then of 2 and 8: mean 5, standard deviation 3, once the first are forgotten."""
    mean, spread_of = (torch.nn.ModuleList([kind(0.98)]).to(model_type)[0] for kind in (MovingMeanBaseline, CostSpread))
    mean(torch.zeros(4, dtype=cost_type)), spread_of(torch.zeros(4, dtype=cost_type))
    for _ in range(1000):
        costs = torch.tensor([2.0, 2.0, 8.0, 8.0], dtype=cost_type)
        baseline, spread_now = mean(costs), spread_of(costs)
    assert baseline.dtype == spread_now.dtype == cost_type and baseline.shape == (4,)
    assert float(baseline[0]) == pytest.approx(5, rel=1e-3) and float(spread_now) == pytest.approx(3, rel=1e-3)


def test_costs_of_another_shape_are_refused():
    sentence = r"cost must have the shape of log_prob, \[4, 1\]|Type-check error"
    with pytest.raises((MerlinError, TypeCheckError), match=sentence):
        reinforce(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("kind", [MovingMeanBaseline, CostSpread])
@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_forgets(kind, decay):
    with pytest.raises(MerlinError, match=f"decay must be at least 0 and less than 1, but {decay} came"):
        kind(decay)


def softmax_slope(scores: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """The softmax's derivative along a direction: p (t − Σ p t)."""
    p = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return p * (along - (p * along).sum(-1, keepdim=True))


def test_derivatives_taken_forward_are_those_of_the_equations():
    theta, along, draws = THETA.expand(4, -1, -1).clone(), doubles(4, GROUPS, CLASSES, seed=5), noise(4)
    one_hots = highest(theta + draws)
    pi = (theta.softmax(-1) + one_hots) / 2
    right = {
        "straight_through": softmax_slope(theta, along),
        "gumbel_softmax": softmax_slope((theta + draws) / 0.5, along / 0.5),
        "st_gumbel": softmax_slope((theta + draws) / 0.5, along / 0.5),
        "reinmax": 2 * softmax_slope(pi.log(), along) - 0.5 * softmax_slope(theta, along),
    }
    for name, slope in right.items():
        temperature = 0.5 if "gumbel" in name else 1.0
        for is_on in (True, False):  # as PyTorch's own are where gradients are switched off
            with torch.set_grad_enabled(is_on):
                found = torch.func.jvp(lambda x: SAMPLERS[name](x, draws, temperature), (theta,), (along,))  # noqa: B023
            torch.testing.assert_close(found[1], slope)


@pytest.mark.parametrize("name", SAMPLERS)
def test_torch_func_differentiates_and_maps_samples(name):
    theta, along, draws = THETA.expand(4, -1, -1).clone(), doubles(4, GROUPS, CLASSES, seed=5), noise(4)

    def cost(theta, draws):
        return (SAMPLERS[name](theta, draws, 1.0).flatten(-2) @ WEIGHTS).sum()

    (right,) = torch.autograd.grad(cost(x := theta.clone().requires_grad_(), draws), x)
    torch.testing.assert_close(torch.func.grad(cost)(theta, draws), right)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cost))(theta, draws), right)
    _, slope = torch.func.jvp(lambda x: cost(x, draws), (theta,), (along,))
    torch.testing.assert_close(slope, (right * along).sum())


def test_what_gumbel_rao_draws_of_noise_is_exponential_and_of_each_row_alone():
    draws = noise(5000)
    found = exponentials_of(draws, 4)
    assert found.shape == (4, *draws.shape) and len(found.unique()) > 0.99 * found.numel()
    assert kstest(found.flatten().numpy(), "expon").pvalue > 1e-4
    together = np.corrcoef(
        np.concatenate([found.movedim(0, 2).flatten(1), draws.flatten(1), found[0].roll(1, 0)[:, 0]], 1).T
    )
    assert np.abs(together - np.eye(len(together))).max() < ERRORS / math.sqrt(len(draws))
    torch.testing.assert_close(exponentials_of(draws[7:9].flip(0), 4), found[:, 7:9].flip(1))


def test_no_costs_change_nothing_of_what_was_counted():
    none, some = torch.zeros(4, 0), torch.tensor([[1.0, 5.0]])
    mean, spread_of = MovingMeanBaseline(0.5), CostSpread(0.5)
    assert mean(none).shape == (4, 0) and spread_of(none).isfinite()
    mean(some), spread_of(some)
    mean(none), spread_of(none)
    assert mean.eval()(some).tolist() == [[3.0, 3.0]] and float(spread_of.eval()(some)) == pytest.approx(2)
    learnt = LearntBaseline(torch.nn.Linear(2, 1))
    assert learnt.loss(none, torch.zeros(0, 2)) == 0
