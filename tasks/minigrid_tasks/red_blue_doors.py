"""MiniGrid's RedBlueDoors: open the red door, then, out of its sight, the blue one."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import Layout
from ..grid.world import Moves, Verdict
from ..solvers.planning import Stage
from ..solvers.reactive import NOTHING, Rule
from ..solvers.scores import ScoredWorld

RED, BLUE = cells.code("door", "red", cells.CLOSED), cells.code("door", "blue", cells.CLOSED)
OPEN_RED = cells.code("door", "red", cells.OPEN)


class RedBlueDoors(ScoredWorld):
    """MiniGrid's RedBlueDoors: the layouts, rewards and views of `MiniGrid-RedBlueDoors-{size}x{size}-v0`.

    Red is in the left wall of the room, blue in the right one. Opening blue ends the episode and earns
    1 − 0.9 · steps / max_steps where red is open. That red is open must be remembered: both are seldom in view at once.

    Args:
        size: Cells along each side of the room, at least 3; the grid is twice as wide.
        max_steps: 20 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    # The memoryless player opens whichever closed door it sees, red before blue: it fails where it meets blue first.
    rules = (Rule(NOTHING, cells.TOGGLE, (RED,)), Rule(NOTHING, cells.TOGGLE, (BLUE,)))

    def __init__(self, num_envs: int = 1, size: int = 8, max_steps: int | None = None, **world: Any):
        if size < 3:
            raise ValueError(f"size must be at least 3, but is {size}: the room needs a cell.")
        max_steps = 20 * size**2 if max_steps is None else max_steps
        super().__init__(num_envs, size, 2 * size, {"size": size}, max_steps=max_steps, **world)
        self.left = size // 2  # the column of the red door

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, size = Board(count, self.height, self.width, generator), self.height
        left, right = size // 2, size // 2 + size - 1
        board.fill((board.x == left) | (board.x == right), cells.WALL)
        x, y = board.somewhere((board.x > left) & (board.x < right))
        board.put(left, board.integers(1, size - 1), RED)
        board.put(right, board.integers(1, size - 1), BLUE)
        return board.layout(x, y, board.integers(0, 4))

    def _judge(self, moves: Moves) -> Verdict:
        red_is_open = (self.grid()[:, :, self.left] == self.packed[OPEN_RED]).any(1)
        opens_blue = (moves.action == cells.TOGGLE) & (moves.ahead == BLUE)
        return self.solved_or_failed(opens_blue & red_is_open, opens_blue & ~red_is_open)

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        return [Stage(cells.TOGGLE, codes == RED), Stage(cells.TOGGLE, codes == BLUE)]

    def shows_cue(self) -> Bool[Tensor, " B"]:
        """Return where the red door is in view."""
        code = cells.code_of(self.in_view()[1])
        return ((code == RED) | (code == OPEN_RED)).any(1)


class SingleRedBlueDoors(SingleEnv):
    batched = RedBlueDoors
