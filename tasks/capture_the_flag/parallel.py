"""One game of capture the flag for PettingZoo."""

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from jaxtyping import UInt8
from pettingzoo import ParallelEnv

from . import cells
from .environment import CaptureTheFlag

AGENTS = ("red_0", "red_1", "blue_0", "blue_1")


class ParallelCaptureTheFlag(ParallelEnv):
    """One game of `CaptureTheFlag`, whose agents are the players that learn, with numpy arrays.

    It is a batch of one game: equal seeds and actions give equal games. An agent that is out stays among `agents`: it
    sees nothing, and its actions are ignored. Each agent's info has its `events`, the `captures` of its team and of the
    other, and `is_success` at the end.

    Args:
        settings: Those of `CaptureTheFlag`, without `num_envs`.
    """

    metadata = {  # noqa: RUF012 (PettingZoo's own form)
        "name": "capture_the_flag_v0",
        "render_modes": ["rgb_array", "human"],
        "render_fps": 4,
        "is_parallelizable": True,
    }

    def __init__(self, opponents: str = "self", team_mate: str = "self", **settings: Any):
        # of the seats of one game, how many learn
        num_agents = 4 - 2 * (opponents != "self") - (team_mate != "self")
        self.batch = CaptureTheFlag(num_agents, opponents=opponents, team_mate=team_mate, **settings)
        self.batch.autoreset = False
        self.render_mode = self.batch.render_mode
        self.possible_agents = [AGENTS[seat] for seat in self.batch.seats]
        self.agents: list[str] = []
        map_shape = (self.batch.size, self.batch.size, 1)
        self.state_space = spaces.MultiDiscrete(
            np.tile([len(cells.OBJECTS), 3, cells.NUM_STATES], map_shape), dtype=np.uint8
        )

    def observation_space(self, agent: str) -> Space:
        """Return what an agent sees: the same for all."""
        return self.batch.single_observation_space

    def action_space(self, agent: str) -> Space:
        """Return what an agent can do: the same for all."""
        return self.batch.single_action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin a game."""
        observation, _ = self.batch.reset(seed=seed, options=options)
        self.agents = self.possible_agents[:]
        return self._of_agents(observation), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Take a step with an action of each agent."""
        rows = np.stack([np.asarray(actions[agent]) for agent in self.possible_agents])
        observation, reward, terminated, truncated, info = self.batch.step(rows)
        told = {name: info[name] for name in ("events", "captures")}
        told |= {"is_success": info["is_success"]} if bool(terminated.any()) else {}
        found = tuple(self._of_agents(x) for x in (observation, reward, terminated, truncated, told))
        if bool(terminated.any()):
            self.agents = []
        return found

    def state(self) -> UInt8[np.ndarray, "Y X 3"]:
        """Return the whole map, (object, side, state) of each cell, as `cells` has them; side 1 is red, 2 blue."""
        batch = self.batch
        codes = batch.map_now(batch.state)[0][batch.grid_positions] & 255
        seen = cells.seen()[0, 0].to(codes.device)[codes]
        return seen.view(torch.uint8).view(batch.size, batch.size, 4)[..., :3].cpu().numpy()

    def render(self) -> np.ndarray | None:
        """Return a picture, or None without render_mode="rgb_array"; "human" shows it in a window as it comes."""
        return self.batch.draw(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if there is one."""
        self.batch.close()

    def _of_agents(self, rows: Any) -> dict[str, Any]:
        return {agent: _row(rows, number) for number, agent in enumerate(self.possible_agents)}


def _row(tree: Any, row: int) -> Any:
    if isinstance(tree, dict):
        return {name: _row(branch, row) for name, branch in tree.items()}
    value = tree[row].cpu()
    return value.item() if value.ndim == 0 else value.contiguous().numpy()
