"""A corridor with a cue at its start and a choice at its end: the smallest maze that needs memory (Bakker 2001).

    cell         0         1  ...  length - 1    length
                 start     corridor              junction: left and right end the episode
    shown        the cue   corridor              junction

The cue, left or right with equal probability, is seen in the start cell only. Turning to the cued side at the
junction earns 1, to the other side 0. Walking into a wall (turning before the junction, going forward at it) costs 0.1
and does not move. After 4·length + 8 steps the episode is truncated: a limit on time, not part of the task.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..base.vector import TensorVectorEnv

FORWARD, LEFT, RIGHT = 0, 1, 2
BUMP_REWARD = -0.1
FLOOR, WALL, CUE_LEFT, CUE_RIGHT = range(4)  # symbols of the egocentric view
VIEW_SIZE = 5
_COLOURS = np.array([(230, 230, 230), (70, 70, 70), (40, 90, 220), (230, 150, 30)], np.uint8)
_AGENT_COLOUR = (200, 30, 60)


def time_limit(length: int) -> int:
    """Return the number of steps after which an episode is truncated."""
    return 4 * length + 8


class TMaze(TensorVectorEnv):
    """The T-maze, batched.

    Actions: 0 forward, 1 left, 2 right.

    Args:
        length: Steps from the start to the junction.
        view: "vector" shows [cue left, cue right, in the corridor, at the junction], one of them 1, the others 0;
            "egocentric" the 5x5 cells ahead, as symbols, with the agent in the middle of the last row.
    """

    can_truncate = True
    can_be_cut = True
    state_names = ("node", "num_steps")

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
        if view == "vector":
            views, observation_space = _vector_views(length), spaces.Box(0, 1, (4,), np.float32)
        else:
            views = _egocentric_views(length)
            observation_space = spaces.MultiDiscrete(np.full((VIEW_SIZE, VIEW_SIZE, 1), 4))
        super().__init__(num_envs, observation_space, spaces.Discrete(3), device, render_mode)
        self.views = torch.from_numpy(views).to(self.device)
        # outcome = 3 · node + action, node = cue · (length + 1) + cell; a lookup each says what an outcome brings
        outcome = torch.arange(6 * (length + 1), device=self.device)
        node, action = outcome // 3, outcome % 3
        is_junction = node % (length + 1) == length
        is_forward = action == FORWARD
        is_cued = action == LEFT + node // (length + 1)
        self.outcomes = outcome.view(-1, 3)
        self.next_nodes = node + (is_forward & ~is_junction)
        self.ends = is_junction & ~is_forward
        self.rewards = (is_cued & self.ends).float().masked_fill(is_junction == is_forward, BUMP_REWARD)
        self.scores = scores(length)
        self.action_names = ("forward", "left", "right")
        self._start()

    def _draw_starts(self) -> Int[Tensor, " B"]:
        return torch.randint(2, (self.num_envs,), device=self.device, generator=self.generator) * (self.length + 1)

    def _start(self) -> None:
        self.node = self._draw_starts()
        self.num_steps = torch.zeros_like(self.node)

    def _observe(self) -> Tensor:
        return self.views.index_select(0, self.node)

    def _step(
        self, actions: Int[Tensor, " B"]
    ) -> tuple[Tensor, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        outcome = self.outcomes[self.node].gather(1, actions.unsqueeze(1)).squeeze(1)
        self.node = self.next_nodes.index_select(0, outcome)
        self.num_steps = self.num_steps + 1
        reward = self.rewards.index_select(0, outcome)
        terminated = self.ends.index_select(0, outcome)
        truncated = (self.num_steps == self.time_limit) > terminated
        if self.cut is not None:
            truncated = truncated | (self.cut > terminated)
        is_end = terminated | truncated
        observation = final_observation = self._observe()
        if self.autoreset:  # a start is drawn for every environment and used where an episode ended: no synchronisation
            self.node = torch.where(is_end, self._draw_starts(), self.node)
            self.num_steps = self.num_steps.masked_fill(is_end, 0)
            observation = self._observe()
        success = torch.where(is_end, reward.clamp(min=0), torch.nan)
        info = {"is_success": success, "final_obs": final_observation, "_final_obs": is_end}
        return observation, reward, terminated, truncated, info

    def shows_cue(self) -> Bool[Tensor, " B"]:
        return self.node % (self.length + 1) == 0

    def draw(self, index: int) -> np.ndarray:
        """Return the maze from above, the start at the bottom in the colour of its cue (left blue, right orange)."""
        cue, cell = divmod(int(self.node[index]), self.length + 1)
        picture = _COLOURS[_maze(self.length, cue)].repeat(8, 0).repeat(8, 1)
        top = 8 * (self.length + 1 - cell)
        picture[top + 2 : top + 6, 18:22] = _AGENT_COLOUR
        return picture


class SingleTMaze(SingleEnv):
    batched = TMaze


def _maze(length: int, cue: int) -> np.ndarray:
    """Return the symbols [length + 2, 5] of the maze from above: end wall, junction with its arms, corridor, start."""
    maze = np.full((length + 2, VIEW_SIZE), WALL)
    maze[1] = FLOOR
    maze[2:, VIEW_SIZE // 2] = FLOOR
    maze[-1, VIEW_SIZE // 2] = CUE_LEFT + cue
    return maze


def _egocentric_views(length: int) -> np.ndarray:
    """Return what is seen in each cell, int64 [2 · (length + 1), 5, 5, 1], cue by cue."""
    views = []
    for cue in (0, 1):
        ahead = np.concatenate([np.full((VIEW_SIZE, VIEW_SIZE), WALL), _maze(length, cue)])
        rows = len(ahead) - np.arange(length + 1)  # one past the row of each cell
        views += [ahead[row - VIEW_SIZE : row, :, None] for row in rows]
    return np.stack(views)


def _vector_views(length: int) -> np.ndarray:
    """Return what is seen in each cell, float32 [2 · (length + 1), 4], cue by cue."""
    shown = np.full((2, length + 1), 2)
    shown[:, 0] = 0, 1
    shown[:, -1] = 3
    return np.eye(4, dtype=np.float32)[shown.ravel()]


class Oracle:
    """The policy that remembers the cue; scores exactly 1."""

    def __init__(self, env: TMaze):
        self.env = env
        self.cue = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)

    def __call__(self, observation: Tensor) -> Int[Tensor, " B"]:
        cue, is_start, is_junction = read_view(observation)
        self.cue = torch.where(is_start, cue, self.cue)
        return torch.where(is_junction, LEFT + self.cue, FORWARD)


class Memoryless:
    """A best policy of the current observation alone: forward, then always left; scores 1/2."""

    def __init__(self, env: TMaze):
        pass

    def __call__(self, observation: Tensor) -> Int[Tensor, " B"]:
        _, _, is_junction = read_view(observation)
        return torch.where(is_junction, LEFT, FORWARD)


def read_view(observation: Tensor) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """Return the cue (0 left, 1 right; only valid at the start), and whether this is the start, the junction."""
    if observation.ndim == 2:
        return observation[:, 1].long(), observation[:, :2].sum(1) > 0, observation[:, 3] > 0
    here = observation[:, -1, VIEW_SIZE // 2, 0]
    beside = observation[:, -1, 0, 0]  # only the junction's row is open to the sides
    return here - CUE_LEFT, here >= CUE_LEFT, beside == FLOOR


def scores(length: int = 10, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random, best memoryless and perfect play.

    A function of the current observation acts the same at the junction whatever the cue was: it earns 1/2 at most.
    (With a clock it could do better: bump once at the start for one of the cues, and tell them apart on arrival.)
    """
    return {"random": random_score(length), "memoryless": 0.5, "oracle": 1.0}


def random_score(length: int) -> float:
    """Return the expected return of uniformly random play, by backward induction over time and cell."""
    to_come = np.zeros(length + 1)  # by cell; nothing comes after the time limit
    for _ in range(time_limit(length)):
        corridor = (to_come[1:] + 2 * (BUMP_REWARD + to_come[:-1])) / 3
        junction = (1.0 + 0.0 + BUMP_REWARD + to_come[-1]) / 3  # the cued side, the other side, the wall ahead
        to_come = np.append(corridor, junction)
    return float(to_come[0])
