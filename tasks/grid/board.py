"""Layouts of grid worlds while they are being drawn, a batch at a time."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from . import cells
from .cells import coloured
from .layouts import Layout


def ahead(values: Tensor) -> Tensor:
    """Return, for poses [L, 4, H, W] by direction and cell, the value one cell ahead; the grid's edges are joined."""
    right, down, left, up = values.unbind(1)
    return torch.stack([right.roll(-1, 2), down.roll(-1, 1), left.roll(1, 2), up.roll(1, 1)], 1)


def ahead_of(is_there: Bool[Tensor, "L H W"]) -> Bool[Tensor, "L 4 H W"]:
    """Return which poses face one of these cells."""
    return ahead(is_there.unsqueeze(1).expand(-1, 4, -1, -1))


class Board:
    """A batch of grids, walled in and empty at first, and the random choices that fill them.

    Where MiniGrid tries places until one will do, these choose among all that will do: the same distribution.
    """

    def __init__(self, count: int, height: int, width: int, generator: torch.Generator, walled: bool = True):
        self.count, self.generator, self.device = count, generator, generator.device
        self.rows = torch.arange(count, device=self.device)
        self.x = torch.arange(width, device=self.device).view(1, 1, -1)
        self.y = torch.arange(height, device=self.device).view(1, -1, 1)
        self.cells = torch.full((count, height, width), cells.EMPTY, dtype=torch.uint8, device=self.device)
        if walled:
            self.fill((self.x == 0) | (self.x == width - 1) | (self.y == 0) | (self.y == height - 1), cells.WALL)

    @property
    def is_empty(self) -> Bool[Tensor, "L H W"]:
        return self.cells == cells.EMPTY

    def integers(self, low: int | Tensor, high: int | Tensor, *shape: int) -> Int[Tensor, "L *shape"]:
        """Return whole numbers from `low` to `high` − 1."""
        size = (self.count, *shape)
        uniform = torch.rand(size, dtype=torch.float64, device=self.device, generator=self.generator)
        return (low + uniform * (high - low)).floor().to(torch.int64)

    def fill(self, where: Bool[Tensor, "..."], code: int) -> None:
        """Write this code where the condition, which is broadcast to [L, H, W], holds."""
        self.cells.masked_fill_(where, code)

    def put(self, x: Int[Tensor, "L"] | int, y: Int[Tensor, "L"] | int, code: Int[Tensor, "L"] | int) -> None:
        """Write one cell of each grid."""
        self.cells[self.rows, y, x] = torch.as_tensor(code, device=self.device).to(torch.uint8)

    def at(self, x: Int[Tensor, "L"], y: Int[Tensor, "L"]) -> Bool[Tensor, "L H W"]:
        """Return the mask of one cell of each grid."""
        return (self.x == x.view(-1, 1, 1)) & (self.y == y.view(-1, 1, 1))

    def choose(self, allowed: Bool[Tensor, "L *places"]) -> Int[Tensor, "L"]:
        """Return the flat index of one of the allowed places, all equally likely."""
        draws = torch.rand(allowed.shape, device=self.device, generator=self.generator)
        return draws.masked_fill(~allowed, -1.0).flatten(1).argmax(1)

    def somewhere(self, allowed: Bool[Tensor, "..."]) -> tuple[Int[Tensor, "L"], Int[Tensor, "L"]]:
        """Return x and y of an empty cell where the condition, which is broadcast to [L, H, W], holds."""
        index = self.choose(self.is_empty & allowed)
        return index % self.x.numel(), index // self.x.numel()

    def pose(self, allowed: Bool[Tensor, "..."]) -> tuple[Int[Tensor, "L"], Int[Tensor, "L"], Int[Tensor, "L"]]:
        """Return x, y and direction of an allowed start that faces an empty cell or a wall, not a thing."""
        is_clear = ahead_of(self.is_empty | (self.cells == cells.WALL))
        index = self.choose(is_clear & (self.is_empty & allowed).unsqueeze(1))
        width, area = self.x.numel(), self.cells[0].numel()
        return index % width, index % area // width, index // area

    def layout(
        self,
        x: Int[Tensor, "L"],
        y: Int[Tensor, "L"],
        direction: Int[Tensor, "L"],
        **extra: Tensor,
    ) -> Layout:
        return Layout(self.cells, x, y, direction, extra)


def in_colour(kind: str, colour: Int[Tensor, "*L"], state: int = cells.OPEN) -> Int[Tensor, "*L"]:
    """Return the codes of a kind of thing in these colours."""
    return torch.tensor(coloured(kind, state), device=colour.device)[colour]
