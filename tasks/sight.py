"""What an agent sees of a grid: MiniGrid's egocentric view, and its rule of what hides what.

The view is V x V cells, V odd; the agent looks up from the middle of its last row, [V//2, V−1] of [column, row].
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

LARGEST_TABLE = 9  # V up to which rows are looked up: 2^(2V) entries


def view_offsets(view_size: int, stride: int) -> Int[Tensor, "4 VV"]:
    """Return, for each direction, how far each cell of the view lies from the agent's in a grid of `stride` columns.

    Directions are MiniGrid's: 0 right, 1 down, 2 left, 3 up. Cells are in the order [column, row] of the view.
    """
    column, row = torch.meshgrid(torch.arange(view_size), torch.arange(view_size), indexing="ij")
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
    """Finds the visible cells of a batch of views.

    Args:
        see_behind: Whether each cell code can be seen through, as 1.0 and 0.0.
    """

    def __init__(self, view_size: int, see_behind: Tensor):
        self.size = view_size
        self.see_behind = see_behind
        device = see_behind.device
        self.by_table = view_size <= LARGEST_TABLE
        if self.by_table:
            self.seen, self.ahead = (table.to(device) for table in _tables(view_size))
            powers = 2.0 ** torch.arange(view_size, 2 * view_size)  # the table's index: see_behind · 2^V + seen
            self.pack = torch.kron(powers.unsqueeze(1), torch.eye(view_size)).to(device)  # [V columns · V rows, V rows]
            bits = torch.arange(2**view_size, device=device).unsqueeze(1) >> torch.arange(view_size, device=device)
            self.unpack = (bits & 1).to(torch.uint8)

    def __call__(self, codes: Int[Tensor, "B VV"]) -> Tensor:
        """Return 1 where a cell of the view is visible and 0 elsewhere, uint8 [B, column, row]."""
        size, count = self.size, codes.shape[0]
        through = self.see_behind.index_select(0, codes.flatten()).view(count, -1)
        if not self.by_table:
            return self._by_cell(through.view(count, size, size) > 0).to(torch.uint8)
        rows = (through @ self.pack).to(torch.int64).T.contiguous()
        seen = torch.full_like(rows[0], 1 << size // 2)
        visible = []
        for row in range(size - 1, -1, -1):
            index = rows[row] + seen
            visible.append(self.seen.index_select(0, index))
            if row > 0:
                seen = self.ahead.index_select(0, index)
        visible = torch.stack(visible[::-1], 1).flatten()
        return self.unpack.index_select(0, visible).view(count, size, size).mT

    def _by_cell(self, through: Bool[Tensor, "B V V"]) -> Bool[Tensor, "B V V"]:
        seen = torch.zeros_like(through[:, :, 0])
        seen[:, self.size // 2] = True
        visible = torch.empty_like(through)
        for row in range(self.size - 1, -1, -1):
            visible[:, :, row], seen = spread(through[:, :, row], seen)
        return visible


@lru_cache
def _tables(view_size: int) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"]]:
    """Return `spread` of every row: index and results are bits, see_behind · 2^V + seen."""
    index = torch.arange(4**view_size).unsqueeze(1)
    columns = torch.arange(view_size)
    seen, see_behind = (index >> columns & 1).bool(), (index >> (columns + view_size) & 1).bool()
    powers = 2**columns
    return tuple((bits * powers).sum(1) for bits in spread(see_behind, seen))
