"""MiniGrid's FourRooms: four rooms joined by a gap each, a goal anywhere."""

from typing import Any

import torch

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import Layout
from ..solvers.scores import ScoredWorld


class FourRooms(ScoredWorld):
    """MiniGrid's FourRooms: the layouts, rewards and views of `MiniGrid-FourRooms-v0`.

    Start, direction, gaps and goal are drawn for each episode. Reaching the goal earns 1 − 0.9 · steps / max_steps.

    Args:
        size: Cells along each side of the grid, odd, at least 5; MiniGrid's is 19.
        agent_pos: Where to start, (x, y); anywhere unless given.
        goal_pos: Where the goal is, (x, y); anywhere unless given.
        world: More arguments of `GridWorld`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 19,
        agent_pos: tuple[int, int] | list[int] | None = None,
        goal_pos: tuple[int, int] | list[int] | None = None,
        max_steps: int = 100,
        **world: Any,
    ):
        if size < 5 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 5, but is {size}.")
        for name, place in (("agent_pos", agent_pos), ("goal_pos", goal_pos)):
            if place is not None and not (len(place) == 2 and all(0 < i < size - 1 for i in place)):
                raise ValueError(f"{name} must be (x, y) from 1 to {size - 2}, inside the walls, but is {place}.")
        self.agent_pos = agent_pos and tuple(agent_pos)
        self.goal_pos = goal_pos and tuple(goal_pos)
        settings = {"size": size, "agent_pos": self.agent_pos, "goal_pos": self.goal_pos}
        super().__init__(num_envs, size, size, settings, max_steps=max_steps, **world)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board, middle = Board(count, self.height, self.width, generator), self.width // 2
        board.fill((board.x == middle) | (board.y == middle), cells.WALL)
        for low, high in ((1, middle), (middle + 1, self.width - 1)):
            board.put(middle, board.integers(low, high), cells.EMPTY)
            board.put(board.integers(low, high), middle, cells.EMPTY)
        if self.agent_pos is None:
            x, y = board.somewhere(board.is_empty)
        else:
            x, y = (torch.full((count,), i, device=self.device) for i in self.agent_pos)
            board.put(x, y, cells.EMPTY)
        if self.goal_pos is None:
            board.put(*board.somewhere(~board.at(x, y)), cells.GOAL)
        else:
            board.put(*self.goal_pos, cells.GOAL)
        return board.layout(x, y, board.integers(0, 4))


class SingleFourRooms(SingleEnv):
    batched = FourRooms
