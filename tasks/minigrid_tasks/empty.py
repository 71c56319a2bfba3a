"""MiniGrid's Empty: a room with a goal in its corner."""

from typing import Any

import torch

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import Layout
from ..solvers.scores import ScoredWorld


class Empty(ScoredWorld):
    """MiniGrid's Empty: the layouts, rewards and views of `MiniGrid-Empty-{size}x{size}-v0`, `...Random...`.

    Reaching the goal in the corner at the lower right earns 1 − 0.9 · steps / max_steps and ends the episode.

    Args:
        size: Cells along each side of the grid, at least 4.
        random_start: Start anywhere, looking anywhere; otherwise in the opposite corner, looking right.
        max_steps: 4 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        random_start: bool = False,
        max_steps: int | None = None,
        see_through_walls: bool = True,
        **world: Any,
    ):
        if size < 4:
            raise ValueError(f"size must be at least 4, but is {size}: start and goal need a cell each.")
        self.random_start = random_start
        super().__init__(
            num_envs,
            size,
            size,
            {"size": size, "random_start": random_start},
            max_steps=4 * size**2 if max_steps is None else max_steps,
            see_through_walls=see_through_walls,
            **world,
        )

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board = Board(count, self.height, self.width, generator)
        board.put(self.width - 2, self.height - 2, cells.GOAL)
        if self.random_start:
            return board.layout(*board.somewhere(board.is_empty), board.integers(0, 4))
        start = torch.ones(count, dtype=torch.int64, device=self.device)
        return board.layout(start, start, 0 * start)


class SingleEmpty(SingleEnv):
    batched = Empty
