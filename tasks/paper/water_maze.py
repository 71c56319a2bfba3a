"""Episodic water mazes: in each of several pools, find the platform that cannot be seen, then go back to it."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.cells import FLOORS
from ..grid.layouts import FACING_DOWN, FACING_LEFT, FACING_RIGHT, FACING_UP, Layout
from ..grid.returning import Returning
from ..grid.world import Moves, Verdict
from ..solvers.planning import Stage
from ..solvers.scores import ScoredWorld

PLATFORM_COLOUR = (255, 255, 255)  # of pictures; observations never show it


class Memoryless:
    """Sweeps the pool row by row, down and up again; it knows where it is and where it looks, and nothing else.

    It reads its place from the environment's state: a view does not always show it.
    """

    def __init__(self, env: "WaterMaze"):
        self.env = env

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
        direction, last = self.env.direction, self.env.room_size - 1
        x, y = self.env.coordinates(self.env.position)
        column, row = (x - 1) % (self.env.room_size + 1), y - 1
        # on its way down it goes right along even rows and left along odd ones; back up the other way round
        is_even = row % 2 == 0
        goes_down = (direction == FACING_DOWN) | (direction == torch.where(is_even, FACING_RIGHT, FACING_LEFT))
        along = torch.where(is_even == goes_down, FACING_RIGHT, FACING_LEFT)
        is_at_end = column == torch.where(along == FACING_RIGHT, last, 0)
        across = torch.where(goes_down & (row < last) | ~goes_down & (row == 0), FACING_DOWN, FACING_UP)
        turn = (torch.where(is_at_end, across, along) - direction) % 4
        return torch.where(turn == 0, cells.FORWARD, torch.where(turn == 1, cells.RIGHT, cells.LEFT))


class WaterMaze(Returning, ScoredWorld):
    """The episodic water mazes of Wayne et al. 2018, arXiv:1803.10760 (after Morris 1981), on a grid.

    A pool is a square room with a floor of its own colour, which is its cue; in each a platform is hidden, drawn anew
    for each episode. Stepping onto a platform earns 1. The agent rests on it for one step, whatever it does then, and
    is put elsewhere: anywhere in any pool. The platforms stay. A pool has no doors, but the agent knows where it looks,
    and walls tell it where it is. See `Returning` for what `info` tells.

    `scores` say how often platforms are found: averages of 256 episodes. "oracle" knows the platforms before it has
    found them and walks the shortest ways, a bound that no agent reaches. "memoryless" is no bound: it is a good way to
    search that forgets what it has found, see `Memoryless`.

    Args:
        num_rooms: Pools, 1 to 6.
        room_size: Cells along each side of a pool, at least 3.
        world: More arguments of `GridWorld`.
    """

    players = ScoredWorld.players | {"memoryless": Memoryless}
    score_episodes = dict.fromkeys(players, 256)
    extra_names = (*Returning.extra_names, "platforms", "rests")

    def __init__(
        self,
        num_envs: int = 1,
        num_rooms: int = 2,
        room_size: int = 5,
        max_steps: int = 150,
        agent_view_size: int = 5,
        **world: Any,
    ):
        if num_rooms not in range(1, 7):
            raise ValueError(f"num_rooms must be from 1 to 6, but is {num_rooms}.")
        if room_size < 3:
            raise ValueError(f"room_size must be at least 3, but is {room_size}.")
        self.num_rooms, self.room_size = num_rooms, room_size
        super().__init__(
            num_envs,
            room_size + 2,
            num_rooms * (room_size + 1) + 1,
            {"num_rooms": num_rooms, "room_size": room_size},
            max_steps=max_steps,
            agent_view_size=agent_view_size,
            **world,
        )

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        device, span = self.device, self.room_size + 1
        colours = torch.rand(count, len(FLOORS), generator=generator, device=device).argsort(1)
        floors = torch.tensor(FLOORS, dtype=torch.uint8, device=device)[colours]
        x, y = torch.arange(self.width, device=device), torch.arange(self.height, device=device).unsqueeze(1)
        is_wall = (x % span == 0) | (y % span == 0)
        grid = torch.where(is_wall, cells.WALL, floors[:, (x // span).clamp(max=self.num_rooms - 1)].unsqueeze(1))
        shape = (count, self.num_rooms)
        x = torch.randint(1, span, shape, generator=generator, device=device)
        x += torch.arange(self.num_rooms, device=device) * span
        y = torch.randint(1, span, shape, generator=generator, device=device)
        is_allowed = ~is_wall.repeat(count, 1, 1)
        is_allowed[torch.arange(count, device=device).unsqueeze(1), y, x] = False
        platforms = self.place(x, y)
        x, y, direction, extra = self.draw_itinerary(is_allowed, generator)
        extra |= {"platforms": platforms, "rests": torch.zeros_like(x, dtype=torch.bool)}
        return Layout(grid.to(torch.uint8), x, y, direction, extra)

    def _judge(self, moves: Moves) -> Verdict:
        leaves = self.rests
        self.rests = (moves.position.unsqueeze(1) == self.platforms).any(1) & ~leaves
        return self.move_on(self.rests, leaves)

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: go to a platform."""
        return [Stage(cells.FORWARD, (self.grid_positions == self.platforms[rows].view(*rows.shape, -1, 1, 1)).any(1))]

    def cell_of_goal(self) -> Int[Tensor, "B"]:
        """Return the cell of the platform in the pool that the agent is in, counted as the agent's."""
        room = self.coordinates(self.position)[0] // (self.room_size + 1)
        x, y = self.coordinates(self.platforms.gather(1, room.unsqueeze(1)).squeeze(1))
        return y * self.width + x

    def shows_cue(self) -> Bool[Tensor, "B"]:
        """Return where the agent stands on a platform that it has just found."""
        return self.rests

    def draw(self, index: int) -> np.ndarray:
        """Return the pools from above, the platforms as white squares."""
        picture = super().draw(index)
        for x, y in zip(*(tensor.tolist() for tensor in self.coordinates(self.platforms[index])), strict=True):
            picture[16 * y + 6 : 16 * y + 11, 16 * x + 6 : 16 * x + 11] = PLATFORM_COLOUR
        return picture


class SingleWaterMaze(SingleEnv):
    batched = WaterMaze
