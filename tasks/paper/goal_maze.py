"""The paper's navigation task: find the goal of a new maze, then find it again and again from other places."""

from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.layouts import Layout
from ..grid.mazes import draw_places, maze_cells, room_mazes
from ..grid.returning import Returning
from ..grid.world import Moves, Verdict
from ..solvers.reactive import WallFollower
from ..solvers.scores import ScoredWorld

OPEN_DOOR, CLOSED_DOOR = (cells.code("door", "grey", state) for state in (cells.OPEN, cells.CLOSED))


class GoalMaze(Returning, ScoredWorld):
    """Goal-directed navigation of Wayne et al. 2018, arXiv:1803.10760, on a grid.

    The maze and its goal are drawn for each episode. Reaching the goal earns 1; the agent is then at another place of
    the same maze, and the goal is where it was. See `Returning` for what `info` tells.

    The maze is perfect (one way from anywhere to anywhere else) and some of its crossings have a coloured floor; or,
    the paper's large environment, it is made of rooms, each with a floor and a ball of its own colours.

    `scores` say how often the goal is reached: averages of 128 episodes. "oracle" knows the maze before it has seen it
    and walks the shortest ways, a bound that no agent reaches. "memoryless" is no bound: it is a good way to search
    without remembering anything of the maze, see `WallFollower`.

    Args:
        size: Cells along each side of the grid. Of a perfect maze odd, at least 5; of rooms one more than a multiple of
            rooms_per_side, with at least 3 cells inside the walls of a room.
        rooms_per_side: 1 is a perfect maze; from 2 to 6 it is made of rooms_per_side² rooms. Openings of a spanning
            tree join them, and every other wall between two rooms has one with probability 1/2.
        moving_doors: There is a door in each of these other walls, open with probability 1/2, drawn anew for each
            sub-episode. The agent cannot open them.
        max_steps: 2 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    players = ScoredWorld.players | {
        "memoryless": lambda env: WallFollower(env, wander=0.1 if env.rooms_per_side == 1 else 0.2)
    }
    score_episodes = dict.fromkeys(players, 128)

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        rooms_per_side: int = 1,
        moving_doors: bool = False,
        max_steps: int | None = None,
        agent_view_size: int = 5,
        **world: Any,
    ):
        if rooms_per_side not in range(1, 7):
            raise ValueError(f"rooms_per_side must be from 1 to 6, but is {rooms_per_side}.")
        if rooms_per_side == 1 and (size < 5 or size % 2 == 0):
            raise ValueError(f"size must be odd and at least 5, but is {size}.")
        if rooms_per_side > 1 and (size < 4 * rooms_per_side + 1 or (size - 1) % rooms_per_side):
            raise ValueError(
                f"size must be 1 more than a multiple of {rooms_per_side} rooms of at least 4 cells with a wall, "
                f"but is {size}: take {max(4, -(-(size - 1) // rooms_per_side)) * rooms_per_side + 1}."
            )
        if moving_doors and rooms_per_side == 1:
            raise ValueError("moving_doors must be False in a perfect maze, but is True: give it rooms_per_side.")
        self.rooms_per_side, self.moving_doors = rooms_per_side, moving_doors
        if moving_doors:
            self.extra_names = (*self.extra_names, "doors", "door_plan")
        super().__init__(
            num_envs,
            size,
            size,
            {"size": size, "rooms_per_side": rooms_per_side, "moving_doors": moving_doors},
            max_steps=2 * size**2 if max_steps is None else max_steps,
            agent_view_size=agent_view_size,
            **world,
        )

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        rows, state = torch.arange(count, device=self.device).unsqueeze(1), {}
        if self.rooms_per_side == 1:
            grid = maze_cells(count, self.height, self.width, generator)
        else:
            drawn = room_mazes(count, self.rooms_per_side, self.width, generator)
            grid = drawn.cells
        kind = self.packed[grid.long()] & 255
        is_allowed = (kind == cells.OBJECTS.index("empty")) | (kind == cells.OBJECTS.index("floor"))
        x, y = draw_places(is_allowed, 1, generator)
        grid[rows, y, x] = cells.GOAL
        is_allowed[rows, y, x] = False
        x, y, direction, extra = self.draw_itinerary(is_allowed, generator)
        if self.rooms_per_side > 1:
            number = self.max_steps + 1 if self.moving_doors else 1
            plan = torch.randint(2**60, (count, number), generator=generator, device=self.device)
            plan |= (drawn.joins << torch.arange(drawn.joins.shape[1], device=self.device)).sum(1, keepdim=True)
            is_open = self._open_doors(plan[:, 0], drawn.joins.shape[1])
            codes = (OPEN_DOOR, CLOSED_DOOR) if self.moving_doors else (cells.EMPTY, cells.WALL)
            grid[rows, drawn.door_y, drawn.door_x] = torch.where(is_open, *codes).to(torch.uint8)
            if self.moving_doors:
                state = {"doors": self.place(drawn.door_x, drawn.door_y), "door_plan": plan}
        return Layout(grid, x, y, direction, extra | state)

    def _open_doors(self, plan: Int64[Tensor, "L"], number: int) -> Bool[Tensor, "L D"]:
        """Return which doors are open, given their bits."""
        return (plan.unsqueeze(1) >> torch.arange(number, device=self.device) & 1).bool()

    def _judge(self, moves: Moves) -> Verdict:
        verdict = self.move_on(moves.reaches_goal, moves.reaches_goal)
        if self.moving_doors:
            plan = self.door_plan.gather(1, self.sub_episode.unsqueeze(1)).squeeze(1)
            is_open = self._open_doors(plan, self.doors.shape[1])
            codes = torch.where(is_open, self.packed[OPEN_DOOR], self.packed[CLOSED_DOOR])
            places = self.bases.unsqueeze(1) + self.doors
            self.cells.view(-1).index_copy_(0, places.flatten(), codes.flatten())
        return verdict

    def shows_cue(self) -> Bool[Tensor, "B"]:
        """Return where the goal is in view."""
        return (cells.code_of(self.in_view()[1]) == cells.GOAL).any(1)


class SingleGoalMaze(SingleEnv):
    batched = GoalMaze
