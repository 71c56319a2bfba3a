"""Gradients of expectations over discrete variables: the score function with its baselines, and how temperatures fall.

For D ~ p(θ) and a cost f(D), each of these estimates ∂E[f(D)]/∂θ:

    REINFORCE       (f(D) − b) ∇log p(D)            here; needs no gradient of f
    the samplers    f'(D) · ∂sample/∂θ              `merlin.latents`: straight_through, gumbel_softmax, st_gumbel,
                                                    gumbel_rao, reinmax

A schedule is a function of the step alone, so that a resumed run goes on with it. `docs/discrete_latents.md` has what
each estimator's bias and variance are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError
from merlin.latents import SAMPLERS as SAMPLERS
from merlin.objectives.columns import check_shapes, mean
from merlin.precision import KeepsSums


def reinforce(
    log_prob: Float[Tensor, "*batch"], cost: Float[Tensor, "*batch"], baseline: Float[Tensor, "*batch"] | float = 0.0
) -> Float[Tensor, "*batch"]:
    """Return the costs with the gradient (sg f − b) ∇log p + ∇f, the last by whatever f itself depends on.

    Williams 1992. Unbiased as long as the baseline does not depend on the sample.

    Raises:
        MerlinError: The three have different shapes; a number does as a baseline of all.
    """
    check_shapes(log_prob=log_prob, cost=cost, baseline=baseline)
    score = (cost - baseline).detach() * log_prob
    return cost + (score - score.detach())


class Baseline(nn.Module, ABC):
    """What is subtracted from the costs of REINFORCE, [K, *batch] of K samples, so that its gradient varies less."""

    @abstractmethod
    def forward(
        self, cost: Float[Tensor, "K *batch"], context: Float[Tensor, "*batch X"] | None = None
    ) -> Float[Tensor, "K *batch"]:
        """Return the baseline, a constant, of costs that it may know only those of other samples and before of.

        Args:
            context: What the samples depend on.
        """

    def loss(
        self, cost: Float[Tensor, "K *batch"], context: Float[Tensor, "*batch X"] | None = None
    ) -> Float[Tensor, ""]:
        """Return what the baseline itself learns by; 0 of one that has nothing to learn."""
        return cost.new_zeros(())


class NoBaseline(Baseline):
    """b = 0."""

    def forward(self, cost: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(cost)


class MovingMeanBaseline(KeepsSums, Baseline):
    """b = the moving mean of the costs before; the first costs' own mean until then.

    It learns in place, which `torch.func` allows in eval mode alone.

    Args:
        decay: Weight of what was before, at least 0 and less than 1.
    """

    summed = ("mean",)
    mean: Float[Tensor, ""]
    has_seen: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = _checked_decay(decay)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("has_seen", torch.tensor(False))

    def forward(self, cost: Tensor, context: Tensor | None = None) -> Tensor:
        number, total, _ = _sums(cost)
        now = total / number.clamp(min=1)
        before = torch.where(self.has_seen, self.mean, now)
        if self.training:
            self.mean.copy_(torch.where(number > 0, torch.lerp(now, before, self.decay), self.mean))
            self.has_seen.logical_or_(number > 0)
        return before.to(cost.dtype).expand_as(cost)


class LeaveOneOutBaseline(Baseline):
    """b = the mean cost of the other K − 1 samples. Kool, van Hoof and Welling 2019.

    Raises:
        MerlinError: There is one sample alone.
    """

    def forward(self, cost: Tensor, context: Tensor | None = None) -> Tensor:
        if len(cost) < 2:
            raise MerlinError(f"A leave-one-out baseline must have 2 samples or more, but {len(cost)} came: draw more.")
        return ((cost.sum(0) - cost) / (len(cost) - 1)).detach()


class LearntBaseline(Baseline):
    """b = network(context), which learns to predict the cost by ½ (f − b)². Mnih and Gregor 2014, arXiv:1402.0030.

    Args:
        network: Makes one number of a context.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, cost: Tensor, context: Tensor | None = None) -> Tensor:
        return self._predict(context).detach().expand_as(cost)

    def loss(self, cost: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.5 * mean((cost.detach() - self._predict(context)).square())

    def _predict(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise MerlinError("A learnt baseline predicts the cost from a context, but none came: pass one.")
        return self.network(context.detach()).squeeze(-1)


class CostSpread(KeepsSums):
    """The running standard deviation of costs, by which REINFORCE's may be divided, so that rates mean the same.

    It learns in place, which `torch.func` allows in eval mode alone.

    Args:
        decay: Weight of what was before, at least 0 and less than 1.
    """

    summed = ("mean", "square", "weight")
    mean: Float[Tensor, ""]
    square: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = _checked_decay(decay)
        for name in ("mean", "square", "weight"):  # in float64, as the spread is a small difference of two of them
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, cost: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
        """Return the spread, these costs included, at least 1e-8."""
        if self.training:
            number, total, squares = _sums(cost)
            for buffer, summed in ((self.mean, total), (self.square, squares), (self.weight, number)):
                now = torch.lerp(summed / number.clamp(min=1), buffer, self.decay)
                buffer.copy_(torch.where(number > 0, now, buffer))
        weight = self.weight.clamp(min=1e-8)
        return (self.square / weight - (self.mean / weight).square()).clamp(min=1e-16).sqrt().to(cost.dtype)


@dataclass(frozen=True)
class Constant:
    """A temperature that stays."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in `steps` steps, then constant."""

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * _part(step, self.steps)


@dataclass(frozen=True)
class Exponential:
    """max(least, start · exp(−rate · step)). Jang et al. 2016: start 1, least 0.5, rate 1e-5 to 1e-4."""

    start: float = 1.0
    rate: float = 1e-4
    least: float = 0.5

    def __call__(self, step: int) -> float:
        return max(self.least, self.start * math.exp(-self.rate * step))


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine in `steps` steps, then constant.

    Ramesh et al. 2021, arXiv:2102.12092: 1 to 1/16 in 150,000 steps.
    """

    start: float = 1.0
    end: float = 1 / 16
    steps: int = 150_000

    def __call__(self, step: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * _part(step, self.steps))) / 2


Schedule = Callable[[int], float]
"""A number that changes over training, as a function of the step."""


def _sums(cost: Float[Tensor, "*batch"]) -> tuple[Tensor, ...]:
    """Return how many costs all processes have, their sum and that of their squares, in float64."""
    costs = cost.detach().double()
    return distributed.total(
        torch.stack([costs.new_full((), costs.numel()), costs.sum(), costs.square().sum()])
    ).unbind()


def _checked_decay(decay: float) -> float:
    if not 0 <= decay < 1:
        raise MerlinError(f"decay must be at least 0 and less than 1, but {decay} came: take another.")
    return decay


def _part(step: int, steps: int) -> float:
    return min(1.0, step / max(1, steps))
