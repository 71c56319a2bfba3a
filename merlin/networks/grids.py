"""Symbolic grids, such as MiniGrid's (Y, X, 3) view of objects, colours and states: categories, not pictures."""

import math

import numpy as np
import torch
from gymnasium.spaces import MultiDiscrete
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.networks.categories import Categories
from merlin.networks.entries import EntryDecoder, EntryEncoder, count, num_rows
from merlin.networks.images import Bottleneck, channels_last, stages
from merlin.networks.initialization import start_at_scale
from merlin.networks.kinds import Symbols
from merlin.networks.products import Linear
from merlin.networks.spaces import shape_of


class GridEncoder(EntryEncoder):
    """The sum of its channels' embeddings in each cell, two padded 3x3 convolutions, a linear layer and tanh.

    A grid of more than 8 rows or columns is halved first, as a picture is. Without padding a view of 3x3 would be
    squeezed through the few channels of one cell, and the corners of any view would hardly be seen.
    """

    def __init__(self, space: Symbols, features: int, channels: int, name: str):
        super().__init__()
        self.shape = shape_of(space)
        self.categories = cell_categories(space, f"a cell of entry {name!r}")
        plan = stages((space.shape[0], space.shape[1]))
        # a product with one-hots: so few categories make it several times faster than gathering, and its gradient too
        self.embedding = Linear(self.categories.num_columns, channels, bias=False)
        self.convolutions = nn.Sequential(*(Bottleneck(channels, channels, 2) for stage in plan if stage.stride == 2))
        for _ in range(2):
            self.convolutions.extend([nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()])
        channels_last(self.convolutions)
        self.linear = Linear(channels * math.prod(plan[-1].reduced_size), features)
        self.output_size = features
        nn.init.normal_(self.embedding.weight, std=len(self.categories.sizes) ** -0.5)
        start_at_scale(self.convolutions, self.linear)

    def forward(self, value: Tensor) -> Float[Tensor, "*batch E"]:
        cells = grid_cells(value, self.shape)
        one_hots = self.categories.encode(cells.reshape(-1, *self.shape[:2], cells.shape[-1]))
        grids = self.embedding(one_hots.to(self.embedding.weight.dtype)).movedim(-1, 1)
        features = self.convolutions(grids).movedim(1, -1).flatten(1)
        return torch.tanh(self.linear(features)).reshape(*cells.shape[:-2], self.output_size)


class GridDecoder(EntryDecoder):
    """Logits for each channel of each cell; cross-entropy summed over cells and channels.

        logits[cell] = (one tanh layer)[cell] + anywhere          `anywhere` linear in the latent, the same in all cells

    `anywhere` says what is in view wherever it is, so that latents tell a key from a ball in one direction. Without it
    each cell has a direction of its own, often opposed to another's, and whoever learnt what a key means in one cell
    knows nothing of it, or the opposite, in the next.

    Args:
        rarity: How much more what is rare counts in the loss: see `DecoderConfig.grid_rarity`.
    """

    def __init__(self, space: Symbols, input_size: int, features: int, rarity: float = 0.0):
        categories, num_cells = cell_categories(space), space.shape[0] * space.shape[1]
        super().__init__(space, num_cells * categories.num_columns)
        self.rarity, self.categories, self.num_cells = rarity, categories, num_cells
        self.anywhere = Linear(input_size, self.categories.num_columns, bias=False)
        self.layers = nn.Sequential(
            Linear(input_size, features),
            nn.Tanh(),
            Linear(features, self.num_cells * self.categories.num_columns),
        )

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch P"]:
        return (self._cells(self.layers(latent)) + self.anywhere(latent).unsqueeze(-2)).flatten(-2)

    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return -self.categories.log_prob(self._cells(parameters), grid_cells(value, self.shape)).sum((-2, -1))

    def loss(
        self,
        parameters: Float[Tensor, "*batch P"],
        value: Tensor,
        nats: Float[Tensor, "*batch"],
        counts: Bool[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return the cross-entropies weighted by frequency^−rarity of what is there, 1 in the mean over `counts`."""
        if self.rarity == 0:
            return nats
        cells = grid_cells(value, self.shape)
        columns = self.categories.columns(cells)
        seen = distributed.total(count(columns, self.categories.num_columns, counts))
        weights = seen.clamp(min=1).pow(-self.rarity)
        weights = weights * seen.sum() / (weights * seen).sum().clamp(min=1)  # 1 is the least of any row that counts
        return -(weights[columns] * self.categories.log_prob(self._cells(parameters), cells)).sum((-2, -1))

    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        return self.categories.accuracy(self._cells(parameters), grid_cells(value, self.shape)).mean(-1)

    def recall(
        self, parameters: Float[Tensor, "*batch P"], value: Tensor, counts: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, ""]:
        return self.categories.recall(self._cells(parameters), grid_cells(value, self.shape), counts)

    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        cells = self.categories.highest(self._cells(parameters))
        return cells.flatten(-2).unflatten(-1, self.shape)

    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        columns = self.categories.columns(grid_cells(value, self.shape))
        num_columns = self.categories.num_columns
        cell_starts = torch.arange(self.num_cells, device=value.device).unsqueeze(-1) * num_columns
        seen = count(columns + cell_starts, self.num_cells * num_columns, counts)
        return distributed.total(seen) / num_rows(value, self.shape, counts)

    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        return torch.special.entr(means).sum()

    def _cells(self, parameters: Tensor) -> Float[Tensor, "*batch cells S"]:
        return parameters.unflatten(-1, (self.num_cells, -1))


def cell_categories(space: Symbols, name: str = "a cell") -> Categories:
    """Return the categories of one cell: one variable for each channel."""
    sizes, starts = (np.atleast_1d(x[0, 0]).astype(np.int64) for x in (space.nvec, space.start))
    return Categories(MultiDiscrete(sizes, start=starts), name)


def grid_cells(value: Tensor, shape: tuple[int, ...]) -> Int[Tensor, "*batch cells channels"]:
    """Return grids of this shape, (Y, X) or (Y, X, C), cell by cell."""
    return value.flatten(-3, -2) if len(shape) == 3 else value.flatten(-2).unsqueeze(-1)
