"""Independent categories: Discrete, MultiDiscrete and MultiBinary, as observations and as actions."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError
from merlin.networks.entries import (
    EntryDecoder,
    EntryEncoder,
    count,
    flatten_entry,
    num_rows,
    row_weights,
    unflatten_entry,
)
from merlin.networks.products import Linear
from merlin.networks.spaces import shape_of
from merlin.precision import as_type
from merlin.recorded import can_look

LARGEST_TABLE = 1024  # of a square table of one-hots


class Categories(nn.Module):
    """Categorical variables whose logits, or one-hots, lie side by side in one axis of `num_columns`.

    Variable i owns `sizes[i]` neighbouring columns. Values are those of the space: they begin at its `start` and have
    its shape, with any leading dimensions.

    Args:
        name: What messages call it.
    """

    _starts: Tensor
    _shifts: Tensor
    _variables: Tensor
    _table: Tensor
    _offsets: Tensor
    _lasts: Tensor

    def __init__(self, space: Discrete | MultiDiscrete | MultiBinary, name: str = "the entry"):
        super().__init__()
        self.name, self.shape = name, shape_of(space)
        self.sizes, starts = sizes_and_starts(space)
        self.num_columns = sum(self.sizes)
        self._size = self.sizes[0] if len(set(self.sizes)) == 1 else None  # all equal: no loop over the variables
        offsets = np.cumsum((0, *self.sizes[:-1]))
        self.register_buffer("_starts", torch.tensor(starts), persistent=False)
        self.register_buffer("_shifts", torch.tensor(offsets - starts), persistent=False)
        self.register_buffer("_offsets", torch.tensor(offsets), persistent=False)
        self.register_buffer("_lasts", torch.tensor(offsets + np.array(self.sizes) - 1), persistent=False)
        variables = torch.arange(len(self.sizes)).repeat_interleave(
            torch.tensor(self.sizes), output_size=self.num_columns
        )
        self.register_buffer("_variables", variables, persistent=False)  # which one owns each column
        self._has_starts, self._has_shifts = any(starts), bool((offsets != starts).any())
        # acting encodes single categories several times a step: one lookup costs a third of zeros and a scatter
        self._has_table = len(self.sizes) == 1 and self.num_columns <= LARGEST_TABLE
        table = torch.eye(self.num_columns if self._has_table else 0)
        self.register_buffer("_table", table, persistent=False)

    def columns(self, values: Tensor) -> Int[Tensor, "*batch n"]:
        """Return the column that each variable's value names."""
        values = as_type(flatten_entry(values, self.shape), torch.int64)
        return values + self._shifts if self._has_shifts else values

    def encode(self, values: Tensor) -> Float[Tensor, "*batch {self.num_columns}"]:
        """Return the one-hots of all variables, one after another.

        Raises:
            MerlinError: A value is none of its variable's. (Not on a GPU, whose host would have to wait; there a
                variable of several with such a value has no one-hot at all.)
        """
        columns = self.columns(values)
        if self._has_table:
            try:
                return F.embedding(columns.squeeze(-1), self._table)
            except IndexError:
                raise self._stray(columns) from None
        within = columns.clamp(self._offsets, self._lasts)  # or one variable's value would be another's
        one_hots = self._table.new_zeros(*columns.shape[:-1], self.num_columns)
        if not can_look(columns):
            return one_hots.scatter(-1, within, (columns == within).to(one_hots.dtype))
        if not torch.equal(columns, within):
            raise self._stray(columns)
        return one_hots.scatter_(-1, columns, 1.0)

    def _stray(self, columns: Int[Tensor, "*batch n"]) -> MerlinError:
        """Return what to say of the first value that is none of its variable's."""
        is_stray = (columns < self._offsets) | (columns > self._lasts)
        variable = int(is_stray.nonzero()[0, -1])
        value = int((columns - self._shifts)[is_stray][0])
        start = int(self._starts[variable])
        what = f"variable {variable} of {self.name}" if len(self.sizes) > 1 else self.name
        return MerlinError(
            f"{what[0].upper()}{what[1:]} must be a category from {start} to {start + self.sizes[variable] - 1}, but "
            f"is {value}: correct the space or what gives the values."
        )

    def normalise(self, logits: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch S"]:
        """Return the log-probabilities of every category of every variable."""
        if len(self.sizes) == 1:
            return logits.log_softmax(-1)
        return logits - self._reduce(torch.logsumexp, logits)[..., self._variables]

    def log_prob(self, logits: Float[Tensor, "*batch S"], values: Tensor) -> Float[Tensor, "*batch n"]:
        """Return the log-probability of each variable's value."""
        if len(self.sizes) == 1:
            return logits.log_softmax(-1).gather(-1, self.columns(values))
        # not by way of log_softmax, which over few categories takes three times as long as sums of exponentials
        return logits.gather(-1, self.columns(values)) - self._reduce(torch.logsumexp, logits)

    def highest(self, scores: Float[Tensor, "*batch S"]) -> Tensor:
        """Return the values of the highest score, in the space's own shape and counting from its start."""
        values = self._reduce(torch.argmax, scores)
        if self._has_starts:
            values = values + self._starts
        return unflatten_entry(values, self.shape)

    def accuracy(self, logits: Float[Tensor, "*batch S"], values: Tensor) -> Float[Tensor, "*batch"]:
        """Return the fraction of the variables whose value is the likeliest, or as likely as any."""
        return self._is_likeliest(logits, self.columns(values)).mean(-1)

    def recall(
        self, logits: Float[Tensor, "*batch S"], values: Tensor, counts: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, ""]:
        """Return the accuracy within each category that occurs, every category counting the same, however rare.

        Args:
            counts: The rows that count, the first of the leading dimensions; all unless given.
        """
        columns = self.columns(values)
        seen = count(columns, self.num_columns, counts)
        hits = self._is_likeliest(logits, columns) * row_weights(columns, counts)
        right = torch.zeros_like(seen).scatter_add_(0, columns.flatten(), hits.flatten())
        return (right / seen.clamp(min=1)).sum() / (seen > 0).sum().clamp(min=1)

    def _is_likeliest(self, logits: Float[Tensor, "*batch S"], columns: Int[Tensor, "*batch n"]) -> Tensor:
        highest = self._reduce(torch.amax, logits)  # many times faster than argmax where categories are few
        return (logits.gather(-1, columns) >= highest).float()

    def frequencies(
        self, values: Tensor, counts: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, " {self.num_columns}"]:
        """Return how often each category occurs in the rows that count, of all processes."""
        seen = count(self.columns(values), self.num_columns, counts)
        return distributed.total(seen) / num_rows(values, self.shape, counts)

    def _reduce(
        self, function: Callable[..., Tensor], logits: Tensor
    ) -> Float[Tensor, "*batch n"] | Int[Tensor, "*batch n"]:
        """Apply a reduction such as amax to the columns of each variable."""
        if len(self.sizes) == 1:
            return function(logits, dim=-1, keepdim=True)
        if self._size is not None:
            return function(logits.unflatten(-1, (-1, self._size)), dim=-1)
        return torch.stack([function(part, dim=-1) for part in logits.split(self.sizes, dim=-1)], dim=-1)


def sizes_and_starts(space: Discrete | MultiDiscrete | MultiBinary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return, for each variable of a space, how many categories it has and the value of the first."""
    if isinstance(space, Discrete):
        return (int(space.n),), (int(space.start),)
    if isinstance(space, MultiDiscrete):
        return tuple(space.nvec.flatten().tolist()), tuple(space.start.flatten().tolist())
    num_variables = int(np.prod(space.shape))
    return (2,) * num_variables, (0,) * num_variables


class CategoryEncoder(EntryEncoder):
    """One-hots as they are: whatever reads the encoding begins with a linear layer, so one more here says nothing."""

    def __init__(self, space: Discrete | MultiDiscrete | MultiBinary, name: str):
        super().__init__()
        self.categories = Categories(space, f"entry {name!r}")
        self.output_size = self.categories.num_columns

    @property
    def square_length(self) -> int:
        """One for each one-hot, however wide."""
        return len(self.categories.sizes)

    def forward(self, value: Tensor) -> Float[Tensor, "*batch E"]:
        return self.categories.encode(value)


class CategoryDecoder(EntryDecoder):
    """Logits linear in the latent.

    Memory is read by content, and what it stores is the latent: a linear decoder makes the content that was observed
    linearly readable there, where a deep one could hide it.
    """

    def __init__(self, space: Discrete | MultiDiscrete | MultiBinary, input_size: int):
        categories = Categories(space)
        super().__init__(space, categories.num_columns)
        self.categories = categories
        self.linear = Linear(input_size, categories.num_columns)

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch P"]:
        return self.linear(latent)

    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return -self.categories.log_prob(parameters, value).sum(-1)

    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return self.categories.accuracy(parameters, value)

    def recall(
        self, parameters: Float[Tensor, "*batch P"], value: Tensor, counts: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, ""]:
        return self.categories.recall(parameters, value, counts)

    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        return self.categories.highest(parameters)

    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        return self.categories.frequencies(value, counts)

    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        return torch.special.entr(means).sum()
