"""Distributions of actions, built from the action space."""

import math
from abc import ABC, abstractmethod

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from jaxtyping import Float
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.networks.categories import Categories
from merlin.networks.entries import CLOSE, flatten_entry, unflatten_entry

# A Gaussian action's log standard deviation, in half ranges of the Box: its value at parameter 0, and how far from it
# the parameter can move it. The bound keeps an entropy bonus from growing it, and a certain policy from shrinking it,
# without end: from 0.05 to 7.4, beginning at 0.6.
LOG_STD_CENTRE, LOG_STD_REACH = -0.5, 2.5


def make_action_distribution(space: gymnasium.Space) -> "ActionDistribution":
    """Return the distribution of the actions of a space.

    Raises:
        MerlinError: The space is neither a Discrete, a MultiDiscrete nor a Box.
    """
    if isinstance(space, Discrete | MultiDiscrete):
        return CategoricalActions(space)
    if isinstance(space, Box):
        return GaussianActions(space)
    raise MerlinError(
        f"Action spaces are Discrete, MultiDiscrete or Box; this one is a {type(space).__name__}: wrap it."
    )


class ActionDistribution(nn.Module, ABC):
    """A family of distributions over actions, one for each row of parameters; any leading dimensions.

    Attributes:
        num_parameters: What a policy head puts out.
        encoding_size: The width of `encode`, and what a decoder of past actions puts out.
        shape, dtype: Of one action, as the environment takes it.
    """

    num_parameters: int
    encoding_size: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        """Return an action as a network reads it."""

    @abstractmethod
    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        """Return an action drawn from the distribution; no gradient passes through it."""

    @abstractmethod
    def mode(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        """Return the likeliest action."""

    @abstractmethod
    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        """Return the log-probability (for a Box, log-density) of an action."""

    @abstractmethod
    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Return the entropy in nats."""

    @abstractmethod
    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Return the policy as the value network sees it: all log-probabilities; for a Box the parameters."""

    @abstractmethod
    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        """Return the loss of a decoder of encoded actions: cross-entropy, or half the squared error."""

    @abstractmethod
    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        """Return the fraction of an encoded action that such a decoder gets right, in [0, 1]."""


class CategoricalActions(ActionDistribution):
    """Discrete and MultiDiscrete: independent categories; the parameters are their logits side by side."""

    def __init__(self, space: Discrete | MultiDiscrete):
        super().__init__()
        self.categories = Categories(space)
        self.num_parameters = self.encoding_size = self.categories.num_columns
        self.shape, self.dtype = self.categories.shape, torch.int64

    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        return self.categories.encode(action)

    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        # Gumbel-max: argmax(logits - log(-log u)) is a sample. No normalising, no cumulative sums; drawing uniforms
        # takes a third of the time of drawing exponentials.
        uniform = torch.rand(parameters.shape, generator=generator, device=parameters.device)
        return self.categories.highest(parameters - uniform.log_().neg_().log_())

    def mode(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        return self.categories.highest(parameters)

    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        return self.categories.log_prob(parameters, action).sum(-1)

    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        log_probs = self.categories.normalise(parameters)
        return -(log_probs.exp() * log_probs).sum(-1)

    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        return self.categories.normalise(parameters)

    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return -(code * self.log_probs(decoded)).sum(-1)

    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return self.categories.accuracy(decoded, self.mode(code))


class GaussianActions(ActionDistribution):
    """Box: a diagonal Gaussian; the parameters are its means, then its log standard deviations before bounding.

        mean    = centre + half_range · parameter
        log std = log half_range + LOG_STD_CENTRE + LOG_STD_REACH · tanh(parameter / LOG_STD_REACH)

    An action without two finite bounds has centre 0 and half_range 1. Actions are not clipped: their density is that
    of the Gaussian, and it is the environment that decides what a too large action does.
    """

    centre: Float[Tensor, " n"]
    half_range: Float[Tensor, " n"]

    def __init__(self, space: Box):
        super().__init__()
        self.shape, self.dtype = tuple(space.shape), torch.float32
        self.encoding_size = math.prod(self.shape)
        self.num_parameters = 2 * self.encoding_size
        low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
        finite = np.isfinite(low) & np.isfinite(high) & (low < high) & (np.abs(low) < 1e6) & (np.abs(high) < 1e6)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        self.register_buffer("centre", torch.tensor((low + high) / 2, dtype=torch.float32), persistent=False)
        self.register_buffer("half_range", torch.tensor((high - low) / 2, dtype=torch.float32), persistent=False)

    def moments(
        self, parameters: Float[Tensor, "*batch A"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
        """Return the means and the log standard deviations, in the units of the flattened action."""
        mean, log_std = parameters.chunk(2, dim=-1)
        log_std = LOG_STD_CENTRE + LOG_STD_REACH * torch.tanh(log_std / LOG_STD_REACH)
        return self.centre + self.half_range * mean, self.half_range.log() + log_std

    def encode(self, action: Tensor) -> Float[Tensor, "*batch E"]:
        return (flatten_entry(action, self.shape).to(self.centre.dtype) - self.centre) / self.half_range

    @torch.no_grad()
    def sample(self, parameters: Float[Tensor, "*batch A"], generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = self.moments(parameters)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return unflatten_entry(mean + log_std.exp() * noise, self.shape)

    def mode(self, parameters: Float[Tensor, "*batch A"]) -> Tensor:
        return unflatten_entry(self.moments(parameters)[0], self.shape)

    def log_prob(self, parameters: Float[Tensor, "*batch A"], action: Tensor) -> Float[Tensor, "*batch"]:
        mean, log_std = self.moments(parameters)
        deviations = (flatten_entry(action, self.shape) - mean) * torch.exp(-log_std)
        return -(0.5 * deviations.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        return (self.moments(parameters)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def log_probs(self, parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        return parameters

    def reconstruction_nats(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return 0.5 * (code - decoded).square().sum(-1)

    def reconstruction_accuracy(
        self, decoded: Float[Tensor, "*batch E"], code: Float[Tensor, "*batch E"]
    ) -> Float[Tensor, "*batch"]:
        return ((code - decoded).abs() < CLOSE).float().mean(-1)
