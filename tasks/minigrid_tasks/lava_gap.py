"""MiniGrid's LavaGap: a room, a stripe of lava with one gap, a goal behind it."""

from typing import Any

import torch

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import Layout
from ..solvers.scores import ScoredWorld

OBSTACLES = {"lava": cells.LAVA, "wall": cells.WALL}


class LavaGap(ScoredWorld):
    """MiniGrid's LavaGap: the layouts, rewards and views of `MiniGrid-LavaGapS{size}-v0`.

    The stripe's column and its gap are drawn for each episode. Reaching the goal earns 1 − 0.9 · steps / max_steps and
    ends the episode; walking into lava earns 0 and ends it.

    Args:
        size: Cells along each side of the grid, at least 5.
        obstacle: What the stripe is made of, "lava" or "wall".
        max_steps: 4 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    def __init__(
        self, num_envs: int = 1, size: int = 7, obstacle: str = "lava", max_steps: int | None = None, **world: Any
    ):
        if size < 5:
            raise ValueError(f"size must be at least 5, but is {size}: the stripe needs a column on both sides.")
        if obstacle not in OBSTACLES:
            raise ValueError(f"obstacle must be 'lava' or 'wall', but is {obstacle!r}.")
        self.obstacle = obstacle
        max_steps = 4 * size**2 if max_steps is None else max_steps
        super().__init__(num_envs, size, size, {"size": size, "obstacle": obstacle}, max_steps=max_steps, **world)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, size = Board(count, self.height, self.width, generator), self.width
        board.put(size - 2, size - 2, cells.GOAL)
        column, gap = board.integers(2, size - 2), board.integers(1, size - 1)
        board.fill((board.x == column.view(-1, 1, 1)) & (board.y > 0) & (board.y < size - 1), OBSTACLES[self.obstacle])
        board.put(column, gap, cells.EMPTY)
        start = torch.ones_like(gap)
        return board.layout(start, start, 0 * start)


class SingleLavaGap(SingleEnv):
    batched = LavaGap
