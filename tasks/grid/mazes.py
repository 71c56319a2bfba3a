"""Mazes and rooms, drawn in batches, with landmarks that tell their places apart."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from . import cells
from .cells import BALLS, FLOORS

LANDMARK_SHARE = 1 / 3  # of a maze's crossings have a coloured floor


def spanning_trees(weights: Float[Tensor, "L E"], ends: Int[Tensor, "2 E"]) -> Bool[Tensor, "L E"]:
    """Return which edges are in the minimum spanning tree of each weighted graph: Prim's algorithm, 1957.

    Args:
        ends: The two vertices of each edge; the graph that they make is connected.
    """
    count, num_vertices = len(weights), int(ends.max()) + 1
    is_reached = torch.zeros(count, num_vertices, dtype=torch.bool, device=weights.device)
    is_reached[:, 0] = True
    is_chosen = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(num_vertices - 1):
        leads_out = is_reached[:, ends[0]] != is_reached[:, ends[1]]
        edge = weights.masked_fill(~leads_out, torch.inf).argmin(1, keepdim=True)
        is_chosen.scatter_(1, edge, True)
        is_reached.scatter_(1, ends[:, edge[:, 0]].T, True)
    return is_chosen


@lru_cache
def neighbours(rows: int, columns: int) -> tuple[Int[Tensor, "2 E"], Int[Tensor, "E"], Int[Tensor, "E"]]:
    """Return the pairs of neighbouring places of a grid of places, numbered row by row, and y and x between them.

    Pairs within a row come first, row by row, then those within a column. y and x are those of the wall between the
    two places in a maze where places are two cells apart.
    """
    place = torch.arange(rows * columns).view(rows, columns)
    ends = torch.cat(
        [
            torch.stack([place[:, :-1].flatten(), place[:, 1:].flatten()]),
            torch.stack([place[:-1].flatten(), place[1:].flatten()]),
        ],
        dim=1,
    )
    return ends, (ends // columns).sum(0) + 1, (ends % columns).sum(0) + 1


def perfect_mazes(count: int, height: int, width: int, generator: torch.Generator) -> Bool[Tensor, "L H W"]:
    """Return which cells are open in mazes where one way leads from anywhere to anywhere else.

    Crossings are the cells of odd x and odd y; a minimum spanning tree under random weights joins them (Kruskal's
    mazes, drawn by Prim's algorithm).

    Args:
        height: Odd, at least 3, as is `width`: the outermost cells are walls.
    """
    rows, columns, device = height // 2, width // 2, generator.device
    is_open = torch.zeros(count, height, width, dtype=torch.bool, device=device)
    is_open[:, 1::2, 1::2] = True
    if rows * columns > 1:
        ends, y, x = (tensor.to(device) for tensor in neighbours(rows, columns))
        weights = torch.rand(count, len(y), generator=generator, device=device)
        is_open[:, y, x] = spanning_trees(weights, ends)
    return is_open


def maze_cells(count: int, height: int, width: int, generator: torch.Generator) -> UInt8[Tensor, "L H W"]:
    """Return perfect mazes as codes of `cells`; a third of the crossings has a floor of a random colour."""
    device = generator.device
    grid = torch.where(perfect_mazes(count, height, width, generator), cells.EMPTY, cells.WALL).to(torch.uint8)
    shape = (count, height // 2, width // 2)
    has_floor = torch.rand(shape, generator=generator, device=device) < LANDMARK_SHARE
    colour = torch.randint(len(FLOORS), shape, generator=generator, device=device)
    floors = torch.tensor(FLOORS, dtype=torch.uint8, device=device)[colour]
    grid[:, 1::2, 1::2] = torch.where(has_floor, floors, cells.EMPTY)
    return grid


class RoomMazes(NamedTuple):
    """Mazes of rooms. Every wall between two rooms has one place for a door, closed here, E in all."""

    cells: UInt8[Tensor, "L H W"]
    door_y: Int[Tensor, "L E"]
    door_x: Int[Tensor, "L E"]
    joins: Bool[Tensor, "L E"]
    """The doors of a spanning tree: while they are open, every room can be reached."""


def room_mazes(count: int, per_side: int, size: int, generator: torch.Generator) -> RoomMazes:
    """Return square mazes of per_side² square rooms with nothing but walls between them.

    A room has a floor of one colour and a ball away from its walls; no two rooms of a maze have the same two colours.

    Args:
        per_side: 2 to 6.
        size: Cells along each side, 1 more than a multiple of `per_side`; rooms have at least 3 cells between walls.
    """
    device = generator.device

    def draw(low: int, high: int, *shape: int) -> Int[Tensor, "..."]:
        return torch.randint(low, high, shape, generator=generator, device=device)

    span, num_rooms = (size - 1) // per_side, per_side**2
    along = torch.arange(size, device=device)
    is_wall = (along % span == 0).view(-1, 1) | (along % span == 0)
    room = (along // span).clamp(max=per_side - 1)
    room = room.view(-1, 1) * per_side + room
    pairs = torch.rand(count, len(FLOORS) * len(BALLS), generator=generator, device=device).argsort(1)[:, :num_rooms]
    floors = torch.tensor(FLOORS, dtype=torch.uint8, device=device)[pairs // len(BALLS)]
    balls = torch.tensor(BALLS, dtype=torch.uint8, device=device)[pairs % len(BALLS)]
    grid = torch.where(is_wall, cells.WALL, floors[:, room]).to(torch.uint8)
    corner = torch.arange(num_rooms, device=device)
    y, x = (start * span + draw(2, span - 1, count, num_rooms) for start in (corner // per_side, corner % per_side))
    grid[torch.arange(count, device=device).unsqueeze(1), y, x] = balls

    ends = neighbours(per_side, per_side)[0].to(device)
    is_beside = ends[1] - ends[0] == 1  # the second room is to the right of the first, not below it
    offset = draw(1, span, count, ends.shape[1])
    y, x = ends[0] // per_side * span, ends[0] % per_side * span
    door_y, door_x = torch.where(is_beside, y + offset, y + span), torch.where(is_beside, x + span, x + offset)
    weights = torch.rand(offset.shape, generator=generator, device=device)
    return RoomMazes(grid, door_y, door_x, spanning_trees(weights, ends))


def draw_places(
    is_allowed: Bool[Tensor, "L H W"], number: int, generator: torch.Generator
) -> tuple[Int[Tensor, "L N"], Int[Tensor, "L N"]]:
    """Return x and y of `number` places in each grid, each uniform over the allowed cells, repetitions included."""
    place = is_allowed.flatten(1).float().multinomial(number, replacement=True, generator=generator)
    return place % is_allowed.shape[2], place // is_allowed.shape[2]
