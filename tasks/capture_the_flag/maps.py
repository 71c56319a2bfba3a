"""Maps for capture the flag: mazes with loops that are their own half turn, so that no team has the better side."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from ..grid.mazes import perfect_mazes

SMALLEST_SIZE = 7
LARGEST_OF_ONE_COLUMN = 9  # up to this size red's stand is next to its wall
NUM_SPAWN_CELLS = 4
SPAWN_ORDER = ((1, 0), (1, -1), (1, 1), (0, -1), (0, 1), (-1, 0), (-1, -1), (-1, 1), (0, 0))
"""Steps right and down from red's stand: the first four that are inside the frame are where its players appear."""
FAR = 255  # where there is no way


class Maps(NamedTuple):
    """Maps for L games. Teams are 0 red, which begins on the left, and 1 blue."""

    is_open: Bool[Tensor, "L H W"]
    stand_x: Int[Tensor, "L 2"]
    stand_y: Int[Tensor, "L 2"]
    spawn_x: Int[Tensor, "L 2 4"]
    spawn_y: Int[Tensor, "L 2 4"]


def draw_maps(count: int, size: int, openness: float, generator: torch.Generator) -> Maps:
    """Return maps of size x size cells whose half turn is the same map with the teams exchanged.

    A perfect maze, of which every cell inside the frame is opened with probability `openness`, and the 3 x 3 cells
    round red's stand; united with its own half turn. A cell that is open and has no open neighbour is closed again, so
    that every open cell reaches every other.
    """
    device = generator.device
    is_open = perfect_mazes(count, size, size, generator)
    along = torch.arange(size, device=device)
    is_inside = (along > 0) & (along < size - 1)
    is_inside = is_inside.unsqueeze(1) & is_inside
    is_open |= is_inside & (torch.rand(is_open.shape, generator=generator, device=device) < openness)
    columns = 1 if size <= LARGEST_OF_ONE_COLUMN else 2
    x, y = (
        2 * torch.randint(number, (count,), generator=generator, device=device) + 1 for number in (columns, size // 2)
    )
    is_near_x, is_near_y = ((along - at.unsqueeze(1)).abs() <= 1 for at in (x, y))
    is_open |= is_inside & is_near_y.unsqueeze(2) & is_near_x.unsqueeze(1)
    is_open |= is_open.flip(1, 2)
    neighbours = (is_open.roll(step, axis) for axis in (1, 2) for step in (1, -1))  # the frame keeps edges apart
    is_open &= torch.stack(list(neighbours)).any(0)

    right, down = torch.tensor(SPAWN_ORDER, device=device).unbind(1)
    spawn_x, spawn_y = x.unsqueeze(1) + right, y.unsqueeze(1) + down
    is_outside = ~is_inside[spawn_y, spawn_x]
    first = is_outside.int().argsort(stable=True)[:, :NUM_SPAWN_CELLS]
    spawn_x, spawn_y = spawn_x.gather(1, first), spawn_y.gather(1, first)
    return Maps(is_open, *(torch.stack([at, size - 1 - at], 1) for at in (x, y, spawn_x, spawn_y)))


def distances(is_open: Bool[Tensor, "L H W"]) -> UInt8[Tensor, "L HW HW"]:
    """Return the steps from each cell to each other one; `FAR` from and to walls, which enclose the maps."""
    (count, _, width), device = is_open.shape, is_open.device
    walkable = is_open.flatten(1).to(torch.uint8)
    steps = walkable.new_empty(count, walkable.shape[1], walkable.shape[1])
    for part, out in zip(walkable.split(64), steps.split(64), strict=True):  # whose floods stay in a CPU's caches
        reached = torch.eye(out.shape[1], dtype=torch.uint8, device=device) * part.unsqueeze(1)
        out.fill_(0)
        while True:
            out += 1 - reached
            spread, inside = reached.clone(), slice(width, -width)
            for step in (1, -1, width, -width):
                spread[..., inside] |= reached[..., width + step : reached.shape[2] - width + step]
            spread &= part.unsqueeze(1)
            if torch.equal(spread, reached):
                break
            reached = spread
        out.masked_fill_(reached == 0, FAR)
    return steps
