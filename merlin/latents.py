"""Distributions of latent variables, one family beside another, made of what a network puts out.

A family is a NamedTuple class. Agents ask of it

    num_parameters(size)              how wide a network's output is for a latent of `size` numbers
    from_parameters(parameters)       the distribution
    draw_noise(batch, size, ...)      what makes a sample a function of the parameters
    sample(noise), mode               a sample through which gradients pass, and the likeliest latent
    entropy_nats, kl_nats             in nats, summed over the latent's entries

so that the noise can be kept, and learning computes the latents of acting again.
"""

import math
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Latent(Protocol):
    """A distribution of a latent variable. See the module for what each does."""

    @staticmethod
    def num_parameters(size: int) -> int: ...

    @classmethod
    def from_parameters(cls, parameters: Float[Tensor, "*batch Y"]) -> "Latent": ...

    @staticmethod
    def draw_noise(
        batch_size: int, size: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B _"]: ...

    def sample(self, noise: Float[Tensor, "*batch _"]) -> Float[Tensor, "*batch Z"]: ...

    @property
    def mode(self) -> Float[Tensor, "*batch Z"]: ...

    def entropy_nats(self) -> Float[Tensor, "*batch"]: ...

    def kl_nats(self, prior: "Latent") -> Float[Tensor, "*batch"]: ...


Family = TypeVar("Family", bound=Latent)


class DiagonalGaussian(NamedTuple):
    """A Gaussian with independent entries, by mean and log-variance."""

    mean: Float[Tensor, "*batch Z"]
    log_variance: Float[Tensor, "*batch Z"]

    @staticmethod
    def num_parameters(size: int) -> int:
        """Return 2 · size: means, then log-variances."""
        return 2 * size

    @classmethod
    def from_parameters(cls, parameters: Float[Tensor, "*batch Y"]) -> "DiagonalGaussian":
        """Return the Gaussian whose means and log-variances a network put out side by side."""
        return cls(*parameters.chunk(2, -1))

    @staticmethod
    def draw_noise(
        batch_size: int, size: int, like: Tensor, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B Z"]:
        """Return standard normal noise, of the device and type of `like`."""
        return torch.randn((batch_size, size), generator=generator, device=like.device, dtype=like.dtype)

    def sample(self, noise: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """Return mean + standard deviation · noise: a sample if the noise is standard normal, the mode if it is 0."""
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), noise)

    @property
    def mode(self) -> Float[Tensor, "*batch Z"]:
        """The mean."""
        return self.mean

    def entropy_nats(self) -> Float[Tensor, "*batch"]:
        """Return ½ Σ (log σ² + log 2πe), the differential entropy."""
        return 0.5 * (self.log_variance + math.log(2 * math.pi * math.e)).sum(-1)

    def kl_nats(self, prior: "DiagonalGaussian") -> Float[Tensor, "*batch"]:
        """Return KL[self ‖ prior].

            d  = log σ² − log σ²_prior
            KL = ½ Σ (exp(d) − 1 − d + (μ − μ_prior)² / σ²_prior)

        At least 0, and exactly 0 where the two are the same.
        """
        d = self.log_variance - prior.log_variance
        distance = (self.mean - prior.mean).square() * torch.exp(-prior.log_variance)
        return 0.5 * (torch.expm1(d) - d + distance).sum(-1)


def kl_nats(posterior: Family, prior: Family) -> Float[Tensor, "*batch"]:
    """Return KL[posterior ‖ prior] in nats, summed over the latent's entries."""
    return posterior.kl_nats(prior)
