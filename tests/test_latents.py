"""The Gaussian latent against torch.distributions and its identities."""

import torch
from torch.distributions import Independent, Normal, kl_divergence

from merlin.latents import DiagonalGaussian, Latent, kl_nats


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


def test_a_family_is_made_of_a_networks_output():
    parameters = randn(7, 3, DiagonalGaussian.num_parameters(5))
    gaussian = DiagonalGaussian.from_parameters(parameters)
    assert isinstance(gaussian, Latent)
    assert torch.equal(gaussian.mean, parameters[..., :5]) and torch.equal(gaussian.log_variance, parameters[..., 5:])
    assert torch.equal(gaussian.mode, gaussian.mean)


def test_noise_is_drawn_by_its_generator_and_like_what_it_meets():
    like = torch.zeros(1, dtype=torch.float64)
    draw = lambda seed: DiagonalGaussian.draw_noise(7, 5, like, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (7, 5) and draw(1).dtype == torch.float64
    noise = DiagonalGaussian.draw_noise(10_000, 2, like, torch.Generator().manual_seed(0))
    assert noise.mean().abs() < 0.05 and (noise.var() - 1).abs() < 0.05


def test_entropy_equals_torch_distributions():
    gaussian, _ = random_pair()
    torch.testing.assert_close(gaussian.entropy_nats(), as_torch(gaussian).entropy())
