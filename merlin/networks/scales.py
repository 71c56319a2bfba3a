"""Running scales, so that costs and learning rates mean the same whatever units an environment has.

They are buffers: they travel with the weights. They change only where they are told of a window, after it was learnt
from, so that acting and learning compute the same numbers. Statistics are those of all processes' rows.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError
from merlin.precision import KeepsSums

MOST = 10.0
"""Standardised numbers are clipped to this size: a sensor's rare leap must not drown what is seen beside it."""
SMALLEST_SPREAD = 1e-6
"""A spread below this part of the mean is rounding: the number is a constant, which is only centred."""


class RunningMoments(KeepsSums):
    """Mean and standard deviation of `size` numbers: of all rows so far, or of about the last `horizon`.

    A number that never changed has spread 1. Before any row nothing is known of units, and every number is taken for
    its mean: standardised it is 0.
    """

    summed = ("rows", "centre", "variance", "mean", "std", "per_std")
    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    per_std: Float[Tensor, " n"]
    """1 / std; 0 before any row."""
    rows: Float[Tensor, ""]
    centre: Float[Tensor, " n"]
    variance: Float[Tensor, " n"]

    def __init__(self, size: int, horizon: float = float("inf")) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("per_std", torch.zeros(size))
        # Sums in float64, whatever the model's type: over 1e8 rows float32 would stop counting.
        self.register_buffer("rows", torch.zeros((), dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "*rows n"], counts: Bool[Tensor, "*rows"]) -> None:
        """Take in the rows that count.

        Chan, Golub and LeVeque 1983: moments of two groups of rows give those of both.

        Raises:
            MerlinError: There is not one flag for each row of as many numbers as there are moments.
        """
        if x.shape != (wanted := (*counts.shape, len(self.mean))):
            raise MerlinError(f"rows must have the shape {list(wanted)}, but have {list(x.shape)}: reshape them.")
        x, weight = x.double(), counts.double()
        of_rows = tuple(range(counts.dim()))
        # A row that does not count may hold anything, NaN too.
        x = torch.where(counts.unsqueeze(-1), x, 0.0)
        sums = distributed.total(torch.cat([weight.sum().view(1), x.sum(of_rows)]))
        rows, mean = sums[0], sums[1:] / sums[0].clamp(min=1)
        squares = torch.where(counts.unsqueeze(-1), (x - mean).square(), 0.0)
        variance = distributed.total(squares.sum(of_rows)) / rows.clamp(min=1)
        part = rows / (self.rows + rows).clamp(min=1)
        gap = mean - self.centre
        self.variance += part * (variance - self.variance) + part * (1 - part) * gap.square()
        self.centre += part * gap
        self.rows.copy_((self.rows + rows).clamp(max=self.horizon))
        std = self.variance.sqrt()
        self.mean.copy_(self.centre)
        self.std.copy_(torch.where(std > SMALLEST_SPREAD * self.centre.abs(), std, 1.0))
        self.per_std.copy_((self.rows > 0) / self.std)

    def standardize(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return the numbers less their mean, in standard deviations, clipped to ±`MOST`."""
        return ((x - self.mean) * self.per_std).clamp(-MOST, MOST)

    def restore(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Undo `standardize`, but for the clipping."""
        return x * self.std + self.mean


class ReturnScale(KeepsSums):
    """Units of returns and of rewards.

        V      = mean + std · head                      mean and std of the returns of about the last `HORIZON` rows
        reward = reward / rms, clipped                  rms of the rewards that are not 0; before any of them 0

    Where the units of returns change, the heads' last layers change the other way, so that V stays as it is (PopArt,
    van Hasselt et al. 2016, arXiv:1602.07714). The first units are set, with no V to preserve.

    Args:
        running: Unless it is, all units are 1 and nothing changes them.
    """

    HORIZON = 20_000.0

    summed = ("reward_rows", "reward_square")
    windows: Int[Tensor, ""]
    reward_rows: Float[Tensor, ""]
    reward_square: Float[Tensor, ""]
    per_reward: Float[Tensor, ""]

    def __init__(self, running: bool = False) -> None:
        super().__init__()
        self.returns = RunningMoments(1, self.HORIZON) if running else None
        if running:
            self.register_buffer("windows", torch.zeros((), dtype=torch.int64))
            self.register_buffer("reward_rows", torch.zeros((), dtype=torch.float64))
            self.register_buffer("reward_square", torch.ones((), dtype=torch.float64))
            self.register_buffer("per_reward", torch.zeros(()))

    @property
    def is_new(self) -> bool:
        """Whether it is still to learn of a first window, in whose units nothing can be learnt."""
        return self.returns is not None and bool(self.windows == 0)

    def known(self, next_value: Float[Tensor, "T B"]) -> Float[Tensor, "T B"]:
        """Return the values that returns may be bootstrapped by: 0 as long as they have no unit."""
        if self.returns is None:
            return next_value
        return torch.where(self.returns.rows == 0, 0.0, next_value)

    @property
    def unit(self) -> Float[Tensor, ""] | float:
        """A unit of returns."""
        return 1.0 if self.returns is None else self.returns.std[0]

    def value(self, head: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return V, of what the head put out."""
        return head if self.returns is None else self.returns.mean[0] + self.returns.std[0] * head

    def reward(self, reward: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return rewards as networks see and predict them."""
        if self.returns is None:
            return reward
        return (reward * self.per_reward.to(reward.dtype)).clamp(-MOST, MOST)

    def restore_reward(self, reward: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Undo `reward`, but for the clipping, as for sums of rewards; 0 before any reward was seen."""
        if self.returns is None:
            return reward
        return reward * torch.where(self.per_reward > 0, 1 / self.per_reward, 0.0)

    @torch.no_grad()
    def update(
        self,
        reward: Float[Tensor, "T B"],
        returns: Float[Tensor, "T B"],
        counts: Bool[Tensor, "T B"],
        heads: list[tuple[nn.Module, bool]],
    ) -> None:
        """Take in a window's rewards and return targets. Until a reward was seen, units stay 1.

        Args:
            counts: Rows that do.
            heads: Last layers whose output is in units of returns, and whether the mean is added to it.
        """
        if self.returns is None:
            return
        self.windows += 1
        some = counts & (reward != 0)
        squares = torch.where(some, reward.double().square(), 0.0).sum()
        number, squares = distributed.total(torch.stack([some.sum().double(), squares]))
        known = self.reward_rows + number
        if not known > 0:
            return
        self.reward_square.copy_((self.reward_square * self.reward_rows + squares) / known)
        self.reward_rows.copy_(known)
        self.per_reward.copy_(self.reward_square.rsqrt())
        mean, std, is_first = self.returns.mean.clone(), self.returns.std.clone(), bool(self.returns.rows == 0)
        self.returns.update(returns.unsqueeze(-1), counts)
        # Returns that are nearly alike, as before most successes, say nothing of a unit: a tenth of a reward does.
        self.returns.std.copy_(torch.maximum(self.returns.variance, 0.01 * self.reward_square).sqrt())
        for layer, has_mean in heads if not is_first else []:
            assert isinstance(layer, nn.Linear)
            shift = mean - self.returns.mean if has_mean else torch.zeros_like(mean)
            layer.weight.mul_(std / self.returns.std)
            layer.bias.copy_((std * layer.bias + shift) / self.returns.std)
