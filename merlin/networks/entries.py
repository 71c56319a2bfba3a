"""What the networks of one observation entry have in common: how values are shaped, and what a decoder answers."""

from abc import ABC, abstractmethod

import gymnasium
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.networks.spaces import shape_of
from merlin.precision import KeepsSums

CLOSE = 0.1  # a decoded pixel or number this near to the truth counts as right


class EntryEncoder(nn.Module):
    """The encoding of one observation entry, of any leading dimensions.

    Attributes:
        output_size: How wide it is.
        square_length: About how long it is, squared; as wide as it is unless told.
    """

    output_size: int

    @property
    def square_length(self) -> int:
        return self.output_size

    def update_scale(self, value: Tensor, counts: Bool[Tensor, "*batch"]) -> None:
        """Let a running scale, if there is one, take in the rows that count."""


class RunningMeans(KeepsSums):
    """Means over all windows so far, of about the last `WINDOWS`; 0 before any."""

    WINDOWS = 100.0

    summed = ("means", "windows")
    means: Float[Tensor, " M"]
    windows: Float[Tensor, ""]

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("windows", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, means: Float[Tensor, " M"], counts: Bool[Tensor, "*batch"]) -> None:
        """Take in the means of a window, those of all processes, unless none of its rows counts."""
        some = distributed.total(counts.any().double()).clamp(max=1)
        self.windows.add_(some).clamp_(max=self.WINDOWS)
        self.means += some / self.windows.clamp(min=1) * (means - self.means)


class EntryDecoder(nn.Module, ABC):
    """The distribution of one observation entry given the latent.

    `forward(latent)` returns the distribution's parameters; everything else is asked of those parameters. Values and
    parameters carry any leading dimensions, and every answer has the same ones. What is taken over all rows is taken
    over those that count, where `counts` says which do.
    """

    def __init__(self, space: gymnasium.Space, num_means: int):
        super().__init__()
        self.shape = shape_of(space)
        self.marginal = RunningMeans(num_means)

    @abstractmethod
    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the negative log-likelihood of the entry, summed over its dimensions."""

    def loss(
        self,
        parameters: Float[Tensor, "*batch P"],
        value: Tensor,
        nats: Float[Tensor, "*batch"],
        counts: Bool[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return what learning minimises: `nats`, which are known, unless a decoder weighs some of them more."""
        return nats

    @abstractmethod
    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the fraction of the entry that the mode gets right, in [0, 1]."""

    def recall(
        self, parameters: Float[Tensor, "*batch P"], value: Tensor, counts: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, ""] | None:
        """Return the accuracy by category, the mean over categories that occur; none where there are none.

        In a view of walls and floor, accuracy says next to nothing of the one object that is to be remembered.
        """
        return None

    @abstractmethod
    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        """Return the reconstruction, in the units, shape and integers of the observation."""

    @abstractmethod
    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        """Return the means, over the rows that count of all processes, that the best constant guess follows from."""

    @abstractmethod
    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """Return the nats per step that knowing the entry is worth where these are its means.

        That is the mean nats of the best constant guess less the mean of `floor_nats`: 0 for an entry that never
        changes, log k for k equally frequent categories.
        """

    def chance_nats(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, ""]:
        """Return the nats per step that knowing the entry is worth in this batch."""
        return self.worth_nats(self.means(value, counts))

    def floor_nats(self, value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the nats that remain however good the parameters are."""
        return torch.zeros(value.shape[: value.dim() - len(self.shape)], device=value.device)

    def update_scale(self, value: Tensor, counts: Bool[Tensor, "*batch"]) -> None:
        """Let a running scale, if there is one, take in the rows that count."""


def flatten_entry(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a value with the dimensions of one entry, the last ones, made one (also where there were none)."""
    return value.flatten(value.dim() - len(shape)) if shape else value.unsqueeze(-1)


def unflatten_entry(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `flatten_entry`."""
    if len(shape) == 1:
        return value
    return value.unflatten(-1, shape) if shape else value.squeeze(-1)


def count(
    columns: Int[Tensor, "*rows"], num_columns: int, counts: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, " {num_columns}"]:
    """Return how often each column is named, by the rows that count, which are the first axes of `columns`.

    (A scatter: unlike bincount it never makes a GPU's host wait.)
    """
    named = columns.flatten()
    weights = row_weights(columns, counts).flatten()
    return weights.new_zeros(num_columns).scatter_add_(0, named, weights)


def row_weights(like: Tensor, counts: Bool[Tensor, "*batch"] | None) -> Float[Tensor, "..."]:
    """Return 1 in the rows that count and 0 in the others, in the shape of `like`, whose first axes are the rows."""
    if counts is None:
        return torch.ones(1, device=like.device, dtype=torch.float32).expand_as(like)
    return counts.float().view(*counts.shape, *[1] * (like.dim() - counts.dim())).expand_as(like)


def num_rows(value: Tensor, shape: tuple[int, ...], counts: Bool[Tensor, "*batch"] | None) -> Float[Tensor, ""]:
    """Return how many rows of a value count, those of all processes together, at least 1."""
    axes = value.dim() - len(shape)
    rows = value.new_ones(value.shape[:axes], dtype=torch.bool) if counts is None else counts
    return distributed.total(rows.sum().float()).clamp(min=1)


def row_mean(x: Float[Tensor, "n size"], counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " size"]:
    """Return the mean over the rows that count, of all processes; 0 if there is none."""
    if counts is None or (counts.device.type == "cpu" and counts.all()):  # a GPU's host would have to wait to know
        return distributed.mean(x)
    weights = counts.flatten().float()
    # not a product with the weights, in which a NaN of a row that does not count would stay
    total = torch.where(counts.flatten().unsqueeze(-1), x, 0.0).sum(0)
    return distributed.total(total) / distributed.total(weights.sum()).clamp(min=1)


def moments(x: Float[Tensor, "n size"], counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
    """Return the mean of each number, then those of the squares, over the rows that count, of all processes."""
    return torch.cat([row_mean(x, counts), row_mean(x.square(), counts)])


def variance(moments: Float[Tensor, " M"], rounding: float = 1e-10) -> Float[Tensor, " n"]:
    """Return the variance of each number, exactly 0 below the part of its square that is rounding.

    It is the small difference of two means, which asks for float64 where numbers are far from 0.
    """
    mean, square = moments.double().chunk(2)
    spread = square - mean.square()
    return torch.where(spread > rounding * square, spread, 0.0)
