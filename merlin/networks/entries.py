"""What the networks of one observation entry have in common: how values are shaped, and what a decoder answers."""

from abc import ABC, abstractmethod

import gymnasium
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.networks.spaces import shape_of

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


class EntryDecoder(nn.Module, ABC):
    """The distribution of one observation entry given the latent.

    `forward(latent)` returns the distribution's parameters; everything else is asked of those parameters. Values and
    parameters carry any leading dimensions, and every answer has the same ones. What is taken over all rows is taken
    over those that count, where `counts` says which do.
    """

    def __init__(self, space: gymnasium.Space):
        super().__init__()
        self.shape = shape_of(space)

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
    def chance_nats(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, ""]:
        """Return the nats per step that knowing the entry is worth in this batch.

        That is the mean nats of the best constant guess, the marginal over all rows that count, less the mean of
        `floor_nats`: 0 for an entry that never changes, log k for k equally frequent categories.
        """

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
    return torch.zeros(num_columns, device=named.device).scatter_add_(0, named, row_weights(columns, counts).flatten())


def row_weights(like: Tensor, counts: Bool[Tensor, "*batch"] | None) -> Float[Tensor, "..."]:
    """Return 1 in the rows that count and 0 in the others, in the shape of `like`, whose first axes are the rows."""
    if counts is None:
        return torch.ones(1, device=like.device).expand_as(like)
    return counts.float().view(*counts.shape, *[1] * (like.dim() - counts.dim())).expand_as(like)


def num_rows(value: Tensor, shape: tuple[int, ...], counts: Bool[Tensor, "*batch"] | None) -> Float[Tensor, ""]:
    """Return how many rows of a value count, those of all processes together, at least 1."""
    axes = value.dim() - len(shape)
    rows = value.new_ones(value.shape[:axes], dtype=torch.bool) if counts is None else counts
    return distributed.total(rows.sum().float()).clamp(min=1)


def frequency_nats(seen: Float[Tensor, " n"], rows: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the entropy of how often each category was seen in so many rows, over all processes."""
    return torch.special.entr(distributed.total(seen) / rows).sum()


def row_mean(x: Float[Tensor, "n size"], counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " size"]:
    """Return the mean over the rows that count, of all processes; 0 if there is none."""
    if counts is None or (counts.device.type == "cpu" and counts.all()):  # a GPU's host would have to wait to know
        return distributed.mean(x)
    weights = counts.flatten().float()
    # not a product with the weights, in which a NaN of a row that does not count would stay
    total = torch.where(counts.flatten().unsqueeze(-1), x, 0.0).sum(0)
    return distributed.total(total) / distributed.total(weights.sum()).clamp(min=1)


def variance(x: Float[Tensor, "n size"], counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " size"]:
    """Return the variance of each number, over the rows that count, of all processes."""
    return row_mean((x - row_mean(x, counts)).square(), counts)
