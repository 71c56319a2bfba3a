"""A T-maze that is explored before anything in it is worth anything: latent learning (Blodgett 1929, Tolman 1948)."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.cells import FLOORS
from ..grid.layouts import FACING_LEFT, FACING_UP, Layout
from ..grid.world import GridWorld, Moves, Verdict


class LatentLearning(GridWorld):
    """Latent learning of Wayne et al. 2018, arXiv:1803.10760, on a grid.

        # # # # # # # # #
        # a . . . . . b #      a, b: floors of two different colours, at the ends of the arms
        # # # # . # # # #
              # S #            the start; the agent looks up
              # # #

    For explore_steps the agent walks about; nothing earns anything. Then it is back at the start, and the whole floor
    has the colour that is now worth something, one of the two, the ends of the arms too: which arm had it can only be
    remembered. To reach the end of that arm earns 1, of the other 0, and ends the episode.

    Actions: 0 turn left, 1 turn right, 2 forward.

    Args:
        stem_length: Steps from the start to the junction, at least 1.
        arm_length: Steps from the junction to the end of an arm, at least 1.
        explore_steps: At least stem_length + arm_length + 1, as many as it takes to reach an end.
        return_steps: After which the second phase, and the episode with it, is truncated.
    """

    num_actions = 3
    extra_names = ("colours", "valued_arm")

    def __init__(
        self,
        num_envs: int = 1,
        stem_length: int = 2,
        arm_length: int = 3,
        explore_steps: int = 20,
        return_steps: int = 40,
        agent_view_size: int = 5,
        **world: Any,
    ):
        for name, value in (("stem_length", stem_length), ("arm_length", arm_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}.")
        shortest = stem_length + arm_length + 1
        for name, value in (("explore_steps", explore_steps), ("return_steps", return_steps)):
            if value < shortest:
                raise ValueError(f"{name} must be at least {shortest}, to reach the end of an arm, but is {value}.")
        self.stem_length, self.arm_length = stem_length, arm_length
        self.explore_steps, self.return_steps = explore_steps, return_steps
        super().__init__(
            num_envs,
            stem_length + 3,
            2 * arm_length + 3,
            max_steps=explore_steps + return_steps,
            agent_view_size=agent_view_size,
            **world,
        )
        self.floor = self.place(*self._places())

    @cached_property
    def scores(self) -> dict[str, float]:
        return scores(self.stem_length, self.arm_length, return_steps=self.return_steps)

    def _places(self) -> tuple[Int[Tensor, "F"], Int[Tensor, "F"]]:
        """Return x and y of the whole floor: the end of the left arm, of the right arm, the start, then the rest."""
        middle, last = self.width // 2, self.width - 2
        arms = [(x, 1) for x in range(2, last)]
        stem = [(middle, y) for y in range(2, self.stem_length + 1)]
        places = [(1, 1), (last, 1), (middle, self.stem_length + 1), *arms, *stem]
        return tuple(torch.tensor(places, device=self.device).T)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        draw = torch.rand(count, len(FLOORS), generator=generator, device=self.device).argsort(1)
        colours = torch.tensor(FLOORS, dtype=torch.uint8, device=self.device)[draw[:, :2]]  # of the left and right arm
        x, y = self._places()
        grid = torch.full((count, self.height, self.width), cells.WALL, dtype=torch.uint8, device=self.device)
        grid[:, y, x] = cells.EMPTY
        grid[:, y[:2], x[:2]] = colours
        valued_arm = torch.randint(2, (count,), generator=generator, device=self.device)
        start = torch.tensor([[x[2], y[2], FACING_UP]], device=self.device).expand(count, 3)
        return Layout(grid, *start.T, {"colours": colours, "valued_arm": valued_arm})

    def _judge(self, moves: Moves) -> Verdict:
        is_end = (moves.position.unsqueeze(1) == self.floor[:2]) & (self.num_steps > self.explore_steps).unsqueeze(1)
        is_right = is_end.gather(1, self.valued_arm.unsqueeze(1)).squeeze(1)
        self._begin_second_phase(self.num_steps == self.explore_steps)
        return Verdict(is_right.float(), is_end.any(1), is_right)

    def _begin_second_phase(self, begins: Bool[Tensor, "B"]) -> None:
        valued = self.packed[self.colours.gather(1, self.valued_arm.unsqueeze(1)).long()]
        self.cells[:, self.floor] = torch.where(begins.unsqueeze(1), valued, self.cells[:, self.floor])
        self.position = torch.where(begins, self.floor[2], self.position)
        self.direction = torch.where(begins, FACING_UP, self.direction)

    def shows_cue(self) -> Bool[Tensor, "B"]:
        """Return where the end of an arm is in view during the first phase."""
        seen = self.in_view()[1] & 255
        return (seen == cells.OBJECTS.index("floor")).any(1) & (self.num_steps < self.explore_steps)


class SingleLatentLearning(SingleEnv):
    batched = LatentLearning


def _ahead(observation: dict[str, Tensor]) -> Shaped[Tensor, "B V 3"]:
    """Return what lies straight ahead, the nearest cell first."""
    image = observation["image"]
    return image[:, image.shape[1] // 2, :-1].flip(1)


def _walk(observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
    """Return forward where there is no wall ahead, else left: up the stem and into the left arm."""
    is_wall = _ahead(observation)[:, 0, 0] == cells.OBJECTS.index("wall")
    return torch.where(is_wall, cells.LEFT, cells.FORWARD)


class Oracle:
    """Walks into the left arm, remembers its colour, and comes back to it or goes to the other; scores exactly 1.

    It sees what an agent sees.
    """

    def __init__(self, env: LatentLearning):
        self.left_colour, self.valued_colour = torch.full((2, env.num_envs), -1, device=env.device)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
        ahead, direction = _ahead(observation), observation["direction"]
        is_floor, colour = ahead[..., 0] == cells.OBJECTS.index("floor"), ahead[..., 1].long()
        farthest = (is_floor * torch.arange(1, is_floor.shape[1] + 1, device=colour.device)).argmax(1, keepdim=True)
        looks_into_the_stem = (direction == FACING_UP) & (ahead[:, 0, 0] != cells.OBJECTS.index("wall"))
        valued = torch.where(is_floor[:, 0], colour[:, 0], -1)  # the first phase shows no floor there
        self.valued_colour = torch.where(looks_into_the_stem, valued, self.valued_colour)
        learns = (direction == FACING_LEFT) & is_floor.any(1) & (self.valued_colour < 0)
        self.left_colour = torch.where(learns, colour.gather(1, farthest).squeeze(1), self.left_colour)
        walk = _walk(observation)
        goes_right = (self.valued_colour >= 0) & (self.valued_colour != self.left_colour)
        return torch.where(goes_right & (walk == cells.LEFT), cells.RIGHT, walk)


class Memoryless:
    """A best policy of the present observation: into the left arm; scores exactly 1/2."""

    def __init__(self, env: LatentLearning):
        pass

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
        return _walk(observation)


def scores(stem_length: int = 2, arm_length: int = 3, return_steps: int = 40, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random, best memoryless and perfect play.

    Nothing that is seen in the second phase depends on which arm had the valued colour: without memory an agent earns
    1/2 at most.
    """
    return {"random": random_score(stem_length, arm_length, return_steps), "memoryless": 0.5, "oracle": 1.0}


def random_score(stem_length: int, arm_length: int, return_steps: int) -> float:
    """Return the expected return of uniformly random play, by backward induction over time and pose."""
    height, width = stem_length + 3, 2 * arm_length + 3
    is_free = np.zeros((height, width), bool)
    is_free[1, 1:-1] = is_free[1:-1, width // 2] = True
    to_come = np.zeros((4, height, width))  # by direction, y and x; nothing comes after the time limit
    ends = np.zeros((height, width))
    ends[1, [1, -2]] = 0.5, 0.5  # either arm is the valued one with probability 1/2
    is_end = ends > 0
    for _ in range(return_steps):
        value = np.where(is_end, ends, to_come)
        forward = np.stack(
            [
                np.where(np.roll(is_free, shift, axis), np.roll(value[direction], shift, axis), value[direction])
                for direction, (shift, axis) in enumerate([(-1, 1), (-1, 0), (1, 1), (1, 0)])
            ]
        )
        to_come = (np.roll(value, 1, 0) + np.roll(value, -1, 0) + forward) / 3
    return float(to_come[FACING_UP, stem_length + 1, width // 2])
