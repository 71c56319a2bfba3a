"""MiniGrid's DoorKey: take the key, unlock the door, go to the goal."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.cells import KEYS
from ..grid.layouts import Layout
from ..solvers.planning import Stage
from ..solvers.reactive import LOCKED_DOORS, NOTHING, REACH_GOAL, Rule
from ..solvers.scores import ScoredWorld

KEY, DOOR = cells.code("key", "yellow"), cells.code("door", "yellow", cells.LOCKED)


class DoorKey(ScoredWorld):
    """MiniGrid's DoorKey: the layouts, rewards and views of `MiniGrid-DoorKey-{size}x{size}-v0`.

    A wall with a locked door parts the room; agent and key are on its left, the goal is on its right. Reaching the
    goal earns 1 − 0.9 · steps / max_steps.

    Args:
        size: Cells along each side of the grid, at least 5.
        max_steps: 10 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    rules = (REACH_GOAL, Rule(KEYS, cells.TOGGLE, LOCKED_DOORS), Rule(NOTHING, cells.PICKUP, KEYS))

    def __init__(self, num_envs: int = 1, size: int = 8, max_steps: int | None = None, **world: Any):
        if size < 5:
            raise ValueError(f"size must be at least 5, but is {size}: key and start need a cell each beside the wall.")
        max_steps = 10 * size**2 if max_steps is None else max_steps
        super().__init__(num_envs, size, size, {"size": size}, max_steps=max_steps, **world)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, size = Board(count, self.height, self.width, generator), self.width
        board.put(size - 2, size - 2, cells.GOAL)
        split = board.integers(2, size - 2)
        is_left = board.x < split.view(-1, 1, 1)
        board.fill(board.x == split.view(-1, 1, 1), cells.WALL)
        x, y = board.somewhere(is_left)
        board.put(split, board.integers(1, size - 2), DOOR)
        board.put(*board.somewhere(is_left & ~board.at(x, y)), KEY)
        return board.layout(x, y, board.integers(0, 4))

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        return [
            Stage(cells.PICKUP, codes == KEY, clears=True),
            Stage(cells.TOGGLE, codes == DOOR, clears=True),
            Stage(cells.FORWARD, codes == cells.GOAL),
        ]


class SingleDoorKey(SingleEnv):
    batched = DoorKey
