"""Visible cells of a grid: MiniGrid's egocentric view, and its rule of what hides what.

The view is V x V cells, V odd; the agent looks up from the middle of its last row, [V−1, V//2] of [row, column].
"""

from functools import lru_cache

import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

LARGEST_TABLE = 11  # V up to which rows are looked up: 4^V entries
LARGEST_VIEW = 53  # as many columns as a float64 holds bits


def view_offsets(view_size: int, stride: int) -> Int[Tensor, "4 VV"]:
    """Return, for each direction, how far each cell of the view lies from the agent's in a grid of `stride` columns.

    Directions are MiniGrid's: 0 right, 1 down, 2 left, 3 up. Cells are in the order [row, column] of the view.
    """
    row, column = torch.meshgrid(torch.arange(view_size), torch.arange(view_size), indexing="ij")
    ahead, aside = view_size - 1 - row, column - view_size // 2
    offsets = []
    for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        right_x, right_y = -y, x
        offsets.append((ahead * y + aside * right_y) * stride + ahead * x + aside * right_x)
    return torch.stack(offsets).flatten(1)


def spread(
    hides: Int[Tensor, "*rows"], seen: Int[Tensor, "*rows"], view_size: int
) -> tuple[Int[Tensor, "*rows"], Int[Tensor, "*rows"]]:
    """Return what is seen of a row once sight has spread along it, and what is seen of the row ahead because of it.

    Sight passes from a seen cell that can be seen through to its neighbour, to the cell ahead of it and to the cell
    ahead of its neighbour; first to the right, then to the left. Rows are numbers whose bit i is column i.
    """
    to_the_right = ~hides & 2 ** (view_size - 1) - 1
    to_the_left = ~hides & 2**view_size - 2
    seen = seen | to_the_right ^ to_the_right + (seen & to_the_right)  # the sum carries along what can be seen through
    right = seen & to_the_right
    steps, passes = 1, to_the_left
    while steps < view_size:  # `passes` has the cells from which sight passes so many steps
        seen = seen | (seen & passes) >> steps
        passes = passes & passes << steps
        steps *= 2
    left = seen & to_the_left
    return seen, right | right << 1 | left | left >> 1


class Sight:
    """Finds the visible cells of a batch of views, given [row, column]."""

    def __init__(self, view_size: int, device: torch.device | str = "cpu"):
        if view_size > LARGEST_VIEW:
            raise ValueError(
                f"agent_view_size must be at most {LARGEST_VIEW} where walls hide what lies behind them, "
                f"but is {view_size}."
            )
        self.size = view_size
        self.by_table = view_size <= LARGEST_TABLE
        self.columns = torch.arange(view_size, device=device)
        powers = -(2.0 ** torch.arange(view_size))  # negative, since what hides is −1
        if self.by_table:
            powers *= 2**view_size  # the tables' index: hides · 2^V + seen
            self.seen, self.ahead, self.visible = (table.to(device) for table in _tables(view_size))
        dtype = torch.float32 if self.by_table else torch.float64  # they hold 24 and 53 bits exactly
        self.pack = torch.kron(torch.eye(view_size), powers.unsqueeze(1)).to(device, dtype)  # [rows · columns, rows]

    def __call__(self, cells: Int32[Tensor, "B VV"]) -> Int32[Tensor, "B VV"]:
        """Return −1, every bit set, where a packed cell of the view is visible and 0 where it is not."""
        rows = (cells >> 31).to(self.pack.dtype) @ self.pack  # the sign bit says what hides
        if not self.by_table:
            return self._by_row(rows.long()).view(cells.shape)
        rows = rows.int()
        *others, last = rows.unbind(1)
        last += 1 << self.size // 2
        for row in reversed(others):
            row += self.ahead.index_select(0, last)
            last = row
        return self.visible.index_select(0, self.seen.index_select(0, rows.view(-1))).view(cells.shape)

    def _by_row(self, hides: Int64[Tensor, "B V"]) -> Int32[Tensor, "B V V"]:
        rows, ahead = [], torch.full_like(hides[:, 0], 1 << self.size // 2)
        for row in reversed(hides.unbind(1)):
            seen, ahead = spread(row, ahead, self.size)
            rows.append(seen)
        return -(torch.stack(rows[::-1], 1).unsqueeze(2) >> self.columns & 1).int()


@lru_cache
def _tables(view_size: int) -> tuple[Int32[Tensor, "rows"], Int32[Tensor, "rows"], Int32[Tensor, "seen V"]]:
    """Return `spread` of every row hides · 2^V + seen; and for every row that can be seen −1 where it is, else 0."""
    index, columns = torch.arange(4**view_size, dtype=torch.int32), torch.arange(view_size, dtype=torch.int32)
    seen = torch.arange(2**view_size, dtype=torch.int32).unsqueeze(1)
    return *spread(index >> view_size, index & 2**view_size - 1, view_size), -(seen >> columns & 1)
