"""Distributions of latent variables: sample and KL divergence."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class DiagonalGaussian(NamedTuple):
    """A Gaussian with independent entries, by mean and log-variance."""

    mean: Float[Tensor, "*batch Z"]
    log_variance: Float[Tensor, "*batch Z"]

    def sample(self, noise: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """Return mean + standard deviation · noise: a sample if the noise is standard normal, the mode if it is 0."""
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), noise)


def kl_nats(posterior: DiagonalGaussian, prior: DiagonalGaussian) -> Float[Tensor, "*batch"]:
    """Return KL[posterior ‖ prior] in nats, summed over the latent's entries.

        d  = log σ²_posterior − log σ²_prior
        KL = ½ Σ (exp(d) − 1 − d + (μ_posterior − μ_prior)² / σ²_prior)

    At least 0, and exactly 0 where the two are the same.
    """
    d = posterior.log_variance - prior.log_variance
    distance = (posterior.mean - prior.mean).square() * torch.exp(-prior.log_variance)
    return 0.5 * (torch.expm1(d) - d + distance).sum(-1)
