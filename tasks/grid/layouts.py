"""Starts of episodes of grid worlds, drawn ahead: a thousand layouts cost little more to draw than one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

FACING_RIGHT, FACING_DOWN, FACING_LEFT, FACING_UP = range(4)  # MiniGrid's directions


class Layout(NamedTuple):
    """Starts of episodes. `extra` holds what else the task must know of each, by name."""

    cells: UInt8[Tensor, "L H W"]
    """Codes of `cells`."""
    x: Int[Tensor, "L"]
    y: Int[Tensor, "L"]
    direction: Int[Tensor, "L"]
    """`FACING_RIGHT` and so on."""
    extra: dict[str, Tensor]


class StartPool:
    """Starts of episodes, drawn in batches and handed out one after another, none twice.

    Args:
        generate: Returns that many starts: tensors, [L, ...], by name.
        size: How many to draw at a time, at least.
    """

    def __init__(
        self, generate: Callable[[int, torch.Generator], dict[str, Tensor]], size: int, generator: torch.Generator
    ):
        self.generate, self.size, self.generator = generate, size, generator
        self.drawn: dict[str, Tensor] = {}
        self.drawn_from = generator.get_state()
        self.taken = self.count = 0
        self.taken_since: Tensor | None = None  # by `take_where`, on the device, not yet known here
        self.takes = 0

    def seed(self, seed: int) -> None:
        """Draw anew from this seed."""
        self.generator.manual_seed(seed)
        self.drawn_from = self.generator.get_state()
        self.taken = self.count = self.takes = 0
        self.taken_since = None

    def take(self, count: int) -> dict[str, Tensor]:
        """Return the next `count` starts."""
        self._settle()
        if self.taken + count > self.count:
            self._draw(max(self.size, count))
        self.taken += count
        return {name: x[self.taken - count : self.taken] for name, x in self.drawn.items()}

    def take_where(self, is_taken: Bool[Tensor, " B"]) -> dict[str, Tensor]:
        """Return a start for every row, the next ones where `is_taken`; elsewhere they have no meaning.

        The host need not know how many are taken: it asks once in a while, in time.
        """
        batch = len(is_taken)
        if self.taken + (self.takes + 1) * batch > self.count:
            self._settle()
            if self.taken + batch > self.count:
                self._draw(max(self.size, 16 * batch))
        if self.taken_since is None:
            self.taken_since = torch.zeros((), dtype=torch.int64, device=is_taken.device)
        order = self.taken_since + is_taken.cumsum(0)
        self.taken_since, self.takes = order[-1], self.takes + 1
        index = self.taken + (order - 1).clamp(min=0)
        return {name: x.index_select(0, index) for name, x in self.drawn.items()}

    def state(self) -> tuple[Tensor, Int[Tensor, "2"]]:
        """Return what to give to `load`."""
        self._settle()
        return self.drawn_from, torch.tensor([self.taken, self.count])

    def load(self, drawn_from: Tensor, progress: Int[Tensor, "2"]) -> None:
        """Go on exactly where `state` was taken."""
        self._settle()
        self.generator.set_state(drawn_from.cpu())
        taken, count = progress.tolist()
        if count:
            self._draw(count)
        self.taken, self.count = taken, count

    def _settle(self) -> None:
        """Learn from the device how many were taken."""
        if self.taken_since is not None:
            self.taken += int(self.taken_since)
        self.taken_since, self.takes = None, 0

    def _draw(self, count: int) -> None:
        self.drawn_from = self.generator.get_state()
        self.drawn, self.taken, self.count = self.generate(count, self.generator), 0, count
