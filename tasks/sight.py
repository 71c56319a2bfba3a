"""What an agent sees of a grid: MiniGrid's egocentric view, and its rule of what hides what.

The view is V x V cells, V odd; the agent looks up from the middle of its last row, [V−1, V//2] of [row, column].
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

LARGEST_TABLE = 9  # V up to which rows are looked up: 2^(2V) entries


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
    see_behind: Bool[Tensor, "B V"], seen: Bool[Tensor, "B V"]
) -> tuple[Bool[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Return what is seen of a row once sight has spread along it, and what is seen of the row ahead because of it.

    Sight passes from a seen cell that can be seen through to its neighbour, to the cell ahead of it and to the cell
    ahead of its neighbour; first to the right, then to the left.
    """
    size = seen.shape[1]
    seen, ahead = seen.clone(), torch.zeros_like(seen)
    for i in range(size - 1):
        through = seen[:, i] & see_behind[:, i]
        for target in (seen[:, i + 1], ahead[:, i + 1], ahead[:, i]):
            target |= through
    for i in range(size - 1, 0, -1):
        through = seen[:, i] & see_behind[:, i]
        for target in (seen[:, i - 1], ahead[:, i - 1], ahead[:, i]):
            target |= through
    return seen, ahead


class Sight:
    """Finds the visible cells of a batch of views, given [row, column]."""

    def __init__(self, view_size: int, device: torch.device | str = "cpu"):
        self.size = view_size
        self.by_table = view_size <= LARGEST_TABLE
        if self.by_table:
            self.seen, self.ahead = (table.to(device) for table in _tables(view_size))
            powers = 2.0 ** torch.arange(view_size, 2 * view_size)  # the tables' index: see_behind · 2^V + seen
            self.pack = torch.kron(torch.eye(view_size), powers.unsqueeze(1)).to(device)  # [rows · columns, rows]

    def __call__(self, cells: Int32[Tensor, "B VV"]) -> Int32[Tensor, "B VV"]:
        """Return −1, every bit set, where a packed cell of the view is visible and 0 where it is not."""
        size, count = self.size, cells.shape[0]
        if not self.by_table:
            return -self._by_cell((cells >= 0).view(count, size, size)).flatten(1).to(torch.int32)
        see_behind = (cells >> 31).add_(1)  # the sign bit
        rows = (see_behind.to(torch.float32) @ self.pack).to(torch.int32).T.contiguous()
        rows[-1] += 1 << size // 2
        for row in range(size - 1, 0, -1):
            rows[row - 1] += self.ahead.index_select(0, rows[row])
        return self.seen.index_select(0, rows.T.flatten()).view(count, -1)

    def _by_cell(self, through: Bool[Tensor, "B V V"]) -> Bool[Tensor, "B V V"]:
        seen = torch.zeros_like(through[:, 0])
        seen[:, self.size // 2] = True
        visible = torch.empty_like(through)
        for row in range(self.size - 1, -1, -1):
            visible[:, row], seen = spread(through[:, row], seen)
        return visible


@lru_cache
def _tables(view_size: int) -> tuple[Int32[Tensor, "views V"], Int32[Tensor, "views"]]:
    """Return `spread` of every row see_behind · 2^V + seen: −1 where seen, and the bits of what is seen ahead."""
    index = torch.arange(4**view_size).unsqueeze(1)
    columns = torch.arange(view_size)
    seen, ahead = spread((index >> (columns + view_size) & 1).bool(), (index >> columns & 1).bool())
    return -seen.to(torch.int32), (ahead * 2**columns).sum(1).to(torch.int32)
