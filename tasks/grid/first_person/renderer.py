"""Grid worlds seen from inside: pictures of what lies ahead, for a whole batch at once.

The agent stands in the middle of a cell and looks along one of four directions, so that all geometry is in tables made
once (`geometry`): which cells the ray of each column of the picture crosses; which cell's floor each pixel
shows; which column of a thing that stands in a cell lies before each ray. A picture is a few lookups of whole columns,
and where they overlap the greatest pixel wins, since its highest bits are a priority:

    bits   0-7  8-15   16-23  24-30
           red  green  blue   0 floor and sky, 1 wall, more for what stands there (the nearer the more), 127 in hand
"""

import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch import Tensor

from ..cells import CELLS, EMPTY, Cell, code_of
from .geometry import LARGEST_SIGHT, Tables, sprite_rows, tables

LAYERS = 3  # how many things that stand one behind the other are drawn
CHUNK = {"cpu": 128}  # pictures drawn at a time; their parts should stay in a CPU's caches
LARGEST_CHUNK = 4096


class FirstPerson:
    """Draws what agents see that stand in grids: 90 degrees, from half the height of the walls.

    Walls and doors hide what lies behind them; doors that are open show their posts and threshold. Goals and lava are
    floors; a diamond hovers over a goal. Keys, balls and boxes stand upright. What is far fades into fog, which is all
    that is seen at the sight distance. What is in hand lies in a slot at the lower right.

    Of things in one line of sight, the nearest three are drawn.

    Args:
        stride: Columns of the grids. They must be enclosed by walls or what else hides: nothing else ends their rows.
        picture_size: Pixels along each side.
        sight_distance: In cells, from 1 to 24.
        cells: What each code stands for.
    """

    def __init__(
        self,
        stride: int,
        picture_size: int = 64,
        sight_distance: int = 16,
        device: str | torch.device = "cpu",
        cells: tuple[Cell, ...] = CELLS,
    ):
        if picture_size not in range(16, 257, 4):
            raise ValueError(f"picture_size must be a multiple of 4 from 16 to 256, but is {picture_size}.")
        if not 1 <= sight_distance <= LARGEST_SIGHT:
            raise ValueError(f"sight_distance must be from 1 to {LARGEST_SIGHT}, but is {sight_distance}.")
        self.size = picture_size
        self.tables = Tables(*(table.to(device) for table in tables(picture_size, sight_distance, cells)))
        forward = torch.tensor([1, stride, -1, -stride], device=device).unsqueeze(1)
        offsets = self.tables.ahead * forward + self.tables.aside * forward.roll(-1, 0)
        self.offsets = offsets.to(torch.int32)
        self.syncs = self.offsets.device.type == "cpu"  # asking the device whether anything stands there costs nothing

    def __call__(
        self,
        cells: Int32[Tensor, "B S"],
        position: Int[Tensor, "B"],
        direction: Int[Tensor, "B"],
        carried: Int[Tensor, "B"] | None = None,
    ) -> UInt8[Tensor, "B P P 3"]:
        """Return the pictures.

        Args:
            cells: Packed (see `cells`), row after row.
            position: stride · row + column of the agent.
            direction: 0 right, 1 down, 2 left, 3 up.
            carried: The code of what is in hand.
        """
        carried = torch.full_like(position, EMPTY) if carried is None else carried
        count, size = len(position), self.size
        pictures = torch.empty(count, size, size // 4 * 3, dtype=torch.int32, device=position.device)
        chunk = CHUNK.get(cells.device.type, LARGEST_CHUNK)
        for part in zip(*(x.split(chunk) for x in (cells, position, direction, carried, pictures)), strict=True):
            self._draw(*part)
        return pictures.view(torch.uint8).view(count, size, size, 3)

    def in_view(
        self, cells: Int32[Tensor, "B S"], position: Int[Tensor, "B"], direction: Int[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B V"], Int32[Tensor, "B V"]]:
        """Return the positions of the cells ahead, and the packed cells themselves; 0 where they are hidden.

        A cell is in view where a ray ends at it or passes its middle, where things stand. Things hide nothing.
        """
        ahead, stop = self._cast(cells, position, direction)
        tables, count = self.tables, len(position)
        distances = torch.arange(len(tables.sprite_cell) // self.size - 1, device=cells.device)
        passed = tables.sprite_cell[tables.first_slot.unsqueeze(1) + 1 + distances].flatten().expand(count, -1)
        is_near = (tables.in_front[stop].unsqueeze(-1) >> distances & 1).flatten(1)
        is_seen = torch.zeros_like(ahead, dtype=torch.int64).scatter_add_(1, passed, is_near)
        is_seen.scatter_(1, tables.cell[stop], 1)
        return self.offsets[direction] + position.unsqueeze(1), torch.where(is_seen > 0, ahead, 0)

    def _cast(
        self, cells: Int32[Tensor, "B S"], position: Int[Tensor, "B"], direction: Int[Tensor, "B"]
    ) -> tuple[Int32[Tensor, "B V"], Int64[Tensor, "B C"]]:
        """Return the cells ahead, and which crossing stops the ray of each column."""
        (count, area), tables = cells.shape, self.tables
        places = self.offsets.index_select(0, direction).add_(position.int().unsqueeze(1)).clamp_(0, area - 1)
        places += torch.arange(0, count * area, area, dtype=torch.int32, device=cells.device).unsqueeze(1)
        ahead = cells.reshape(-1).index_select(0, places.view(-1))
        # The first crossing that stops a ray is the leading term of a sum of powers of 4, and so its exponent.
        codes = code_of(ahead)
        stops = (tables.hides.index_select(0, codes).view(count, -1) @ tables.stop_weights).add_(tables.end_weights)
        stops.addmm_(tables.is_open.index_select(0, codes).view(count, -1), tables.post_weights)
        return ahead.view(count, -1), tables.first + ((127 - (stops.view(torch.int32) >> 23)) >> 1)

    def _draw(
        self,
        cells: Int32[Tensor, "B S"],
        position: Int[Tensor, "B"],
        direction: Int[Tensor, "B"],
        carried: Int[Tensor, "B"],
        out: Int32[Tensor, "B P words"],
    ) -> None:
        count, size, tables = len(cells), self.size, self.tables
        ahead, stop = self._cast(cells, position, direction)
        codes = code_of(ahead)

        def of_cells(table: Tensor) -> Tensor:
            return table.index_select(0, codes.view(-1)).view(count, -1)

        def at(table: Tensor, cell: Tensor) -> Tensor:  # what it says of some cells ahead, [B, *N]
            found = codes.gather(1, cell.view(count, -1))
            return table.index_select(0, found.view(-1)).view(cell.shape)

        columns = stop * tables.walls.shape[1] + at(tables.wall_kind, tables.cell[stop])
        picture = tables.walls.flatten(0, 1).index_select(0, columns.view(-1)).view(count, size, size)

        floor = of_cells(tables.floor_kind).gather(1, tables.floor_cell.expand(count, -1)).add_(tables.floor_pixel)
        lower = picture[..., size // 2 :]
        torch.maximum(lower, tables.floors.view(-1).index_select(0, floor.view(-1)).view(lower.shape), out=lower)

        # What stands before a ray is a bit for each cell, the nearest the highest: an exponent again.
        standing = (of_cells(tables.stands) @ tables.sprite_weights).to(torch.int32) & tables.in_front[stop]
        remaining, middle = standing.to(torch.float32), picture[..., slice(*sprite_rows(size))]
        for _ in range(LAYERS):
            if self.syncs and not remaining.any():
                break
            nearest = remaining.view(torch.int32) & 0x7F800000
            remaining = remaining - nearest.view(torch.float32)
            slots = tables.first_slot + ((nearest >> 23) - 126).clamp_(min=0)
            columns = slots * tables.sprites.shape[1] + at(tables.sprite_kind, tables.sprite_cell[slots])
            things = tables.sprites.flatten(0, 1).index_select(0, columns.view(-1))
            torch.maximum(middle, things.view(middle.shape), out=middle)

        fours, side = picture.view(count, 4, -1, size), tables.hands.shape[-1]
        corner = fours[:, :, -(side // 4) :, -side:]
        torch.maximum(corner, tables.hands.index_select(0, tables.hand_kind.index_select(0, carried)), out=corner)

        # Four pixels of a row become three integers of four bytes.
        one, two, three, four = fours.unbind(1)
        first, second, third = out.view(count, size, -1, 3).transpose(1, 2).unbind(3)
        torch.bitwise_or(one & 0xFFFFFF, two << 24, out=first)
        torch.bitwise_or(two >> 8 & 0xFFFF, three << 16, out=second)
        torch.bitwise_or(three >> 16 & 0xFF, four << 8, out=third)
