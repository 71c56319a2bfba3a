"""A corridor with a cue at its start and a choice at its end: the smallest maze that needs memory (Bakker 2001, NeurIPS).

    cell         0         1  ...  length - 1    length
                 start     corridor              junction: left and right end the episode
    shown        the cue   corridor              junction

The cue, left or right with equal probability, is seen in the start cell only. Turning to the cued side at the junction
earns 1, to the other side 0. Walking into a wall (turning before the junction, going forward at it) costs 0.1 and does not
move. After 4·length + 8 steps the episode is truncated: a limit on time, not part of the task.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.single import SingleEnv
from tasks.vector import TensorVectorEnv

FORWARD, LEFT, RIGHT = 0, 1, 2
BUMP_REWARD = -0.1
FLOOR, WALL, CUE_LEFT, CUE_RIGHT, AGENT = range(5)  # symbols of the egocentric view; the last is drawn in pictures only
VIEW_SIZE = 5
_COLOURS = np.array([(230, 230, 230), (70, 70, 70), (40, 90, 220), (230, 150, 30), (200, 30, 60)], np.uint8)


def time_limit(length: int) -> int:
    """Return the number of steps after which an episode is truncated."""
    return 4 * length + 8


class TMaze(TensorVectorEnv):
    """The T-maze, batched.

    Actions: 0 forward, 1 left, 2 right.

    Args:
        length: Steps from the start to the junction.
        view: "vector" shows [cue left, cue right, in the corridor, at the junction] as zeros and one 1; "egocentric" the
            5x5 cells ahead, as symbols, with the agent in the middle of the last row.
    """

    can_truncate = True
    state_names = ("cue", "cell", "num_steps")

    def __init__(
        self,
        num_envs: int = 1,
        length: int = 10,
        view: str = "vector",
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, but is {length}.")
        if view not in ("vector", "egocentric"):
            raise ValueError(f"view must be 'vector' or 'egocentric', but is {view!r}.")
        self.length, self.view, self.time_limit = length, view, time_limit(length)
        views = vector_views(length) if view == "vector" else egocentric_views(length)
        observation_space = (
            spaces.Box(0, 1, views.shape[2:], np.float32)
            if view == "vector"
            else spaces.MultiDiscrete(np.full(views.shape[2:], AGENT))
        )
        super().__init__(num_envs, observation_space, spaces.Discrete(3), device, render_mode)
        self.views = views.to(self.device).flatten(0, 1)  # [cue · (length + 1) + cell, *view]
        self._start()

    def _draw_cues(self) -> Int[Tensor, " B"]:
        return torch.randint(2, (self.num_envs,), device=self.device, generator=self.generator)

    def _start(self) -> None:
        self.cue = self._draw_cues()
        self.cell = torch.zeros_like(self.cue)
        self.num_steps = torch.zeros_like(self.cue)

    def _observe(self) -> Tensor:
        return self.views.index_select(0, self.cue * (self.length + 1) + self.cell)

    def step(
        self, actions: Any
    ) -> tuple[Tensor, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        is_forward = self._actions(actions) == FORWARD
        is_junction = self.cell == self.length
        terminated = is_junction > is_forward
        is_cued = terminated & (actions == self.cue + LEFT)
        is_bump = is_forward == is_junction
        reward = is_cued.to(torch.float32).masked_fill_(is_bump, BUMP_REWARD)
        self.cell = self.cell + (is_forward > is_junction)
        self.num_steps = self.num_steps + 1
        truncated = (self.num_steps == self.time_limit) > terminated
        is_end = terminated | truncated
        info = {
            "is_success": is_cued.to(torch.float32).masked_fill_(~is_end, torch.nan),
            "final_obs": self._observe(),
            "_final_obs": is_end,
        }
        # a fresh cue is drawn for every environment and used where an episode ended: no synchronisation
        self.cue = torch.where(is_end, self._draw_cues(), self.cue)
        self.cell = self.cell.masked_fill(is_end, 0)
        self.num_steps = self.num_steps.masked_fill(is_end, 0)
        return self._observe(), reward, terminated, truncated, info

    def draw(self, index: int) -> np.ndarray:
        """Return the maze from above, corridor upwards, with the agent and, while it is in the start cell, the cue."""
        maze = _maze(self.length, int(self.cue[index]))
        cell = int(self.cell[index])
        if cell > 0:
            maze[self.length + 1, 1:4:2] = WALL
        maze[self.length + 1 - cell, 2] = AGENT
        return _COLOURS[maze].repeat(8, 0).repeat(8, 1)


class SingleTMaze(SingleEnv):
    batched = TMaze
