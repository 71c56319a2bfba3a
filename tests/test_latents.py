"""Latents against torch.distributions and their identities. `objectives.test_estimators` has their gradients."""

import math
from typing import get_args

import pytest
import torch
from torch.distributions import Independent, Normal, OneHotCategorical, kl_divergence

from merlin.errors import MerlinError
from merlin.latents import (
    DiagonalGaussian,
    Estimator,
    GaussianFamily,
    Latent,
    LatentFamily,
    OneHotFamily,
    OneHots,
    balanced_kl_nats,
    kl_nats,
)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_pair() -> tuple[DiagonalGaussian, DiagonalGaussian]:
    numbers = randn(4, 7, 3, 5)
    return DiagonalGaussian(numbers[0], numbers[1]), DiagonalGaussian(numbers[2], numbers[3])


def as_torch(gaussian: DiagonalGaussian) -> Independent:
    return Independent(Normal(gaussian.mean, torch.exp(0.5 * gaussian.log_variance)), 1)


def test_kl_equals_torch_distributions_and_is_positive():
    posterior, prior = random_pair()
    kl = kl_nats(posterior, prior)
    torch.testing.assert_close(kl, kl_divergence(as_torch(posterior), as_torch(prior)))
    assert (kl > 0).all()


def test_kl_of_a_distribution_from_itself_is_exactly_zero():
    posterior, _ = random_pair()
    assert (kl_nats(posterior, posterior) == 0).all()


def test_kl_of_means_one_apart_is_half_a_nat_an_entry():
    zeros = torch.zeros(5, dtype=torch.float64)
    assert kl_nats(DiagonalGaussian(zeros + 1, zeros), DiagonalGaussian(zeros, zeros)) == 2.5


def test_gradient_of_kl():
    (mean, log_variance), prior = random_pair()
    inputs = tuple(x.clone().requires_grad_() for x in (mean, log_variance, *prior))
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl_nats(DiagonalGaussian(a, b), DiagonalGaussian(c, d)), inputs)


def test_sample_is_the_mean_without_noise_and_has_the_moments_with_it():
    gaussian, _ = random_pair()
    assert torch.equal(gaussian.sample(torch.zeros(7, 3, 5, dtype=torch.float64)), gaussian.mean)
    wide = DiagonalGaussian(*(x.expand(20_000, *x.shape) for x in gaussian))
    samples = wide.sample(randn(20_000, 7, 3, 5))
    variance = gaussian.log_variance.exp()
    assert ((samples.mean(0) - gaussian.mean).abs() < 5 * (variance / 20_000).sqrt()).all()
    torch.testing.assert_close(samples.var(0), variance, rtol=0.06, atol=0)


def test_a_family_of_gaussians_is_made_of_a_networks_output():
    family = GaussianFamily(5)
    parameters = randn(7, 3, family.num_parameters)
    gaussian = family.from_parameters(parameters)
    assert isinstance(gaussian, Latent) and isinstance(family, LatentFamily)
    assert torch.equal(gaussian.mean, parameters[..., :5]) and torch.equal(gaussian.log_variance, parameters[..., 5:])
    assert torch.equal(gaussian.mode, gaussian.mean)
    noise = family.draw_noise(4, parameters, torch.Generator().manual_seed(0))
    assert noise.shape == (4, 5) and noise.dtype == torch.float64


FAMILY = OneHotFamily(2, 3)


def one_hots(*shape: int, seed: int = 0) -> OneHots:
    logits = 3 * torch.randn(*shape, FAMILY.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return FAMILY.from_parameters(logits)


def as_categoricals(latent: OneHots) -> Independent:
    return Independent(OneHotCategorical(logits=latent.logits), 1)


def test_one_hots_are_torch_distributions():
    posterior, prior = one_hots(7, 3), one_hots(7, 3, seed=1)
    expected = as_categoricals(posterior)
    torch.testing.assert_close(kl_nats(posterior, prior), kl_divergence(expected, as_categoricals(prior)))
    torch.testing.assert_close(posterior.entropy_nats(), expected.entropy())
    torch.testing.assert_close(posterior.mean, expected.mean.flatten(-2))
    torch.testing.assert_close(posterior.mode, expected.mode.flatten(-2).double())
    sample = posterior.sample(FAMILY.draw_noise(21, posterior.logits).view(7, 3, 6))
    assert sample.shape == (7, 3, 6) and isinstance(posterior, Latent) and isinstance(FAMILY, LatentFamily)
    torch.testing.assert_close(posterior.log_prob(sample), expected.log_prob(sample.unflatten(-1, (2, 3))))


def test_one_hots_without_noise_are_at_their_mode():
    latent = one_hots(50)
    assert torch.equal(latent.sample(torch.zeros(50, 6, dtype=torch.float64)), latent.mode)


def test_kl_of_one_hots_from_themselves_is_zero_and_of_sharp_ones_finite():
    latent = one_hots(50)
    assert (kl_nats(latent, latent) == 0).all()
    sharp = FAMILY.from_parameters(torch.tensor([1e4, 0.0, -1e4, -1e4, 0.0, 1e4]))
    flat = FAMILY.from_parameters(torch.zeros(6))
    torch.testing.assert_close(kl_nats(sharp, flat), torch.tensor(2 * math.log(3)))
    assert kl_nats(flat, sharp).isfinite()


def test_mixed_with_the_uniform_distribution_no_class_is_ruled_out():
    mix = 0.01
    family = OneHotFamily(2, 3, uniform_mix=mix)
    sharp, other = (family.from_parameters(torch.tensor(x) * 1e4) for x in ([1.0, 0, 0, 1, 0, 0], [0, 1.0, 0, 0, 1, 0]))
    torch.testing.assert_close(sharp.mean.sum(), torch.tensor(2.0))
    torch.testing.assert_close(sharp.mean.min(), torch.tensor(mix / 3))
    assert 0 < kl_nats(sharp, other) <= 2 * math.log(3 / mix)


@pytest.mark.parametrize("family", [GaussianFamily(6), FAMILY, OneHotFamily(2, 3, 0.05)])
@pytest.mark.parametrize("balance", [None, 0.0, 0.8, 1.0])
def test_a_balanced_kl_is_the_kl_and_its_gradient_is_shared_out(family, balance):
    posterior, prior = (randn(2, 5, family.num_parameters)[i].requires_grad_() for i in (0, 1))
    pair = [family.from_parameters(x) for x in (posterior, prior)]
    plain, found = kl_nats(*pair), balanced_kl_nats(*pair, balance)
    torch.testing.assert_close(found, plain)
    whole = torch.autograd.grad(plain.sum(), (posterior, prior), retain_graph=True)
    parts = torch.autograd.grad(found.sum(), (posterior, prior))
    shares = (1.0, 1.0) if balance is None else (1 - balance, balance)
    for part, share, of in zip(parts, shares, whole, strict=True):
        torch.testing.assert_close(part, share * of)
    assert torch.autograd.gradcheck(
        lambda a, b: kl_nats(family.from_parameters(a), family.from_parameters(b)), (posterior, prior)
    )


def test_what_no_family_can_be_is_told():
    for options, message in [
        ({"groups": 0, "classes": 3}, "groups of at least 1, but 0"),
        ({"groups": 2, "classes": 1}, "classes of at least 2, but 1"),
        ({"groups": 2, "classes": 3, "uniform_mix": 1.0}, "less than 1, but 1.0"),
        ({"groups": 2, "classes": 3, "estimator": "reinmax", "temperature": 0.5}, "at least 1, but 0.5"),
    ]:
        with pytest.raises(MerlinError, match=message):
            OneHotFamily(**options)
    with pytest.raises(MerlinError, match=r"from 0 to 1, but 1\.5"):
        balanced_kl_nats(one_hots(2), one_hots(2), 1.5)


@pytest.mark.parametrize("family", [GaussianFamily(6), OneHotFamily(4, 3)])
@pytest.mark.parametrize("width", [6, 11, 24])
def test_parameters_of_another_width_are_refused(family, width):
    """Never a latent of another size than the family's."""
    with pytest.raises(MerlinError, match=rf"must be 12 numbers .* but their shape is \[2, {width}\]"):
        family.from_parameters(torch.zeros(2, width))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classes_that_are_equally_likely_are_drawn_as_often_in_few_digits(dtype):
    """Noise of 256 values would have several highest of many classes, of which the first is taken."""
    family, draws, classes = OneHotFamily(1, 256), 20_000, torch.arange(256)
    logits = torch.zeros(draws, 1, 256, dtype=dtype)
    noise = family.draw_noise(draws, logits, torch.Generator().manual_seed(0))
    drawn = family.from_parameters(logits.flatten(1)).sample(noise)
    assert noise.dtype == drawn.dtype == dtype
    in_the_first_half = drawn[:, classes < 128].float().sum() / draws
    assert abs(in_the_first_half - 0.5) < 5 * 0.5 / draws**0.5


def test_of_no_rows_together_nothing_is_known():
    gaussian = GaussianFamily(3).from_parameters(torch.zeros(2, 0, 6)).marginal()
    assert gaussian.mean.tolist() == gaussian.log_variance.tolist() == [0, 0, 0]
    one_hots = OneHotFamily(2, 4).from_parameters(torch.zeros(0, 8)).marginal()
    torch.testing.assert_close(one_hots.mean, torch.full((8,), 0.25))


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_an_impossible_class_is_as_if_it_were_not_there(estimator):
    """Of logit −∞, as `torch.distributions` takes it."""
    logits = torch.tensor([[0.3, -math.inf, -1.2], [0.5, 0.1, -math.inf]], dtype=torch.float64, requires_grad=True)
    prior = OneHots(randn(2, 3))
    found, right = OneHots(logits, estimator), OneHotCategorical(logits=logits, validate_args=False)
    torch.testing.assert_close(found.entropy_nats(), right.entropy().sum())
    kl = kl_divergence(right, OneHotCategorical(logits=prior.logits)).sum()
    torch.testing.assert_close(found.kl_nats(prior), kl)
    sample = found.sample(randn(6))
    assert sample.view(2, 3)[0, 1] == sample.view(2, 3)[1, 2] == 0
    if estimator != "gumbel_softmax":
        torch.testing.assert_close(found.log_prob(sample.detach()), right.log_prob(sample.detach().view(2, 3)).sum())
    total = found.entropy_nats() + found.kl_nats(prior) + found.log_prob(sample.detach()) + (sample * randn(6)).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all() and gradient[0, 1] == gradient[1, 2] == 0 and gradient[0, 0] != 0
