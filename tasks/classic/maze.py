"""A perfect maze, new in each episode, to be left by its only goal."""

from functools import cached_property, lru_cache

import torch

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.layouts import Layout
from ..grid.mazes import draw_places, maze_cells
from ..grid.world import GridWorld
from ..solvers.shortest_paths import Planner, Reactive, average_return, random_policy

SCORE_EPISODES = 256


class Maze(GridWorld):
    """A perfect maze: exactly one way leads from anywhere to anywhere else. Some crossings have a coloured floor.

    Start and goal are drawn anywhere in it. Reaching the goal earns 1 − 0.9 · steps / max_steps and ends the episode.
    A maze in the manner of MiniGrid; the paper's navigation task, in which the goal is reached again and again, is
    `merlin/GoalMaze-v0`. Actions: 0 turn left, 1 turn right, 2 forward.

    Args:
        size: Cells along each side of the grid, odd, at least 5.
        max_steps: 2 · size² unless given.
    """

    num_actions = 3

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        max_steps: int | None = None,
        agent_view_size: int = 5,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
        **view,
    ):
        if size < 5 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 5, but is {size}.")
        super().__init__(
            num_envs,
            size,
            size,
            max_steps=2 * size**2 if max_steps is None else max_steps,
            agent_view_size=agent_view_size,
            device=device,
            render_mode=render_mode,
            **view,
        )

    @cached_property
    def scores(self) -> dict[str, float]:
        return scores(size=self.width, max_steps=self.max_steps, agent_view_size=self.view_size)

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


class Oracle(Planner):
    """Knows the whole maze from the start and walks the shortest way: nobody can be faster."""

    def __init__(self, env: Maze):
        super().__init__(env, lambda: cells.code_of(env.grid()) == cells.GOAL)


class Memoryless(Reactive):
    """Walks to a goal in view, otherwise along the wall to its right, and at times straight on."""

    def __init__(self, env: Maze):
        super().__init__(env, wander=0.1)


def scores(**settings) -> dict[str, float]:
    """Return average returns of 256 episodes, those of seed 0.

    "oracle" knows the maze before it has seen it, a bound that no agent reaches. "memoryless" is no bound: it is a good
    way to search without remembering anything of the maze, see `merlin.tasks.solvers.shortest_paths.Reactive`.
    """
    for name in ("num_envs", "device", "render_mode", "view", "picture_size", "sight_distance"):
        settings.pop(name, None)
    return dict(_scores(**settings))


@lru_cache
def _scores(**settings) -> dict[str, float]:
    env = Maze(SCORE_EPISODES, **settings)
    policies = {"random": random_policy(env), "memoryless": Memoryless(env), "oracle": Oracle(env)}
    return {name: average_return(env, policy) for name, policy in policies.items()}
