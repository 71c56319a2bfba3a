"""A perfect maze, new in each episode, to be left by its only goal."""

from functools import partial
from typing import Any

import torch

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.layouts import Layout
from ..grid.mazes import draw_places, maze_cells
from ..solvers.reactive import WallFollower
from ..solvers.scores import ScoredWorld


class Maze(ScoredWorld):
    """A perfect maze: exactly one way leads from anywhere to anywhere else. Some crossings have a coloured floor.

    Start and goal are drawn anywhere in it. Reaching the goal earns 1 − 0.9 · steps / max_steps and ends the episode.
    A maze in the manner of MiniGrid; the paper's navigation task, in which the goal is reached again and again, is
    `merlin/GoalMaze-v0`. Actions: 0 turn left, 1 turn right, 2 forward.

    `scores` are averages of 256 episodes. "oracle" knows the maze before it has seen it, a bound that no agent reaches.
    "memoryless" is no bound: it is a good way to search without remembering anything of the maze, see `WallFollower`.

    Args:
        size: Cells along each side of the grid, odd, at least 5.
        max_steps: 2 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    num_actions = 3
    players = ScoredWorld.players | {"memoryless": partial(WallFollower, wander=0.1)}
    score_episodes = dict.fromkeys(players, 256)

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        max_steps: int | None = None,
        agent_view_size: int = 5,
        **world: Any,
    ):
        if size < 5 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 5, but is {size}.")
        super().__init__(
            num_envs,
            size,
            size,
            {"size": size},
            max_steps=2 * size**2 if max_steps is None else max_steps,
            agent_view_size=agent_view_size,
            **world,
        )

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        grid, rows = maze_cells(count, self.height, self.width, generator), torch.arange(count, device=self.device)
        is_open = grid != cells.WALL
        x, y = draw_places(is_open, 1, generator)
        grid[rows, y[:, 0], x[:, 0]] = cells.GOAL
        is_open[rows, y[:, 0], x[:, 0]] = False
        x, y = draw_places(is_open, 1, generator)
        direction = torch.randint(4, (count,), generator=generator, device=self.device)
        return Layout(grid, x[:, 0], y[:, 0], direction, {})


class SingleMaze(SingleEnv):
    batched = Maze
