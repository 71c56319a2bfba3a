"""Active visual match: look for a coloured box, and many apples later go to the one of its colour."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.cells import BOXES
from ..grid.layouts import Layout
from ..grid.world import Moves, Verdict
from ..solvers.planning import Stage
from ..solvers.reactive import NOTHING, Rule
from .three_phases import APPLE, ThreePhases


class ActiveVisualMatch(ThreePhases):
    """Active visual match of Hung et al. 2019, arXiv:1810.06721, on a grid.

        # # # # #      The first room: behind a wall, with a gap at one of its ends, stands a box of some colour, out
        # . ^ . #      of sight. In the second are apples. In the third stand `choices` boxes of different colours,
        # . # # #      one of that of the first. The first of them that the agent walks into is its choice: all are
        # . b . #      gone then, and the right one earned `right_reward`, another `wrong_reward`. Success is to have
        # # # # #      chosen the right one. Every episode lasts as long.

    To choose right takes memory, and before that to have looked for the box, which earns nothing at once. Evaluation
    counts how often an agent saw the box, ate an apple, chose a box and chose the right one.

    Actions: 0 turn left, 1 turn right, 2 forward. The arguments are those of `ThreePhases` and

    Args:
        explore_steps: At least 3 · room_size, to look at both ends of the wall.
        choices: From 2 to 4, one in each corner of the third room.
    """

    extra_names = ("target", "is_right", "has_seen")
    event_names = ("saw the box", "ate an apple", "chose a box", "chose the right box")
    rules = (*(Rule(NOTHING, cells.FORWARD, (box,)) for box in BOXES), *ThreePhases.rules)

    def __init__(
        self,
        num_envs: int = 1,
        room_size: int = 5,
        explore_steps: int = 15,
        distractor_steps: int = 60,
        reward_steps: int = 15,
        apples: int = 8,
        apple_reward: float = 1.0,
        choices: int = 4,
        right_reward: float = 10.0,
        wrong_reward: float = 1.0,
        agent_view_size: int = 5,
        **world: Any,
    ):
        if not 2 <= choices <= 4:
            raise ValueError(f"choices must be from 2 to 4, one in each corner, but is {choices}.")
        if explore_steps < 3 * room_size:
            raise ValueError(f"explore_steps must be at least 3 · room_size = {3 * room_size}, but is {explore_steps}.")
        self.choices, self.right_reward, self.wrong_reward = choices, right_reward, wrong_reward
        settings = {"choices": choices, "right_reward": right_reward, "wrong_reward": wrong_reward}
        phases = explore_steps, distractor_steps, reward_steps
        super().__init__(
            num_envs, settings, room_size, *phases, apples, apple_reward, agent_view_size=agent_view_size, **world
        )
        self.corners = self.place(*(x.to(self.device) for x in self._corners().T))

    @property
    def scores(self) -> dict[str, float]:
        """Mean returns of random play and of play that goes for what is in view, and all there is to earn.

        Without memory every box is as good as another: the best such play earns no more than their mean and all apples.
        """
        most = self.right_reward + self.apples * self.apple_reward
        return {"random": self.mean_return("random"), "memoryless": self.mean_return("memoryless"), "oracle": most}

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: eat the nearest apple, or walk into the box of the right colour."""
        is_last = torch.arange(self.width, device=self.device) > 2 * self.room_size + 2
        return [Stage(cells.FORWARD, (codes == APPLE) | ((codes == self.target[rows].view(-1, 1, 1)) & is_last))]

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        layout = super()._generate(count, generator)
        return layout._replace(y=torch.ones_like(layout.y))  # in front of the wall

    def _furnish(self, board: Board) -> dict[str, Tensor]:
        def shuffled(size: int) -> Int[Tensor, "L size"]:
            return torch.rand(board.count, size, generator=board.generator, device=board.device).argsort(1)

        colours = torch.tensor(BOXES, device=board.device)[shuffled(len(BOXES))[:, : self.choices]]
        x, y = self._corners()[shuffled(4)[:, : self.choices]].unbind(-1)
        board.cells[board.rows.unsqueeze(1), y, x] = colours.to(torch.uint8)
        last = self.room_size
        gap = torch.where(board.integers(0, 2) == 0, 1, last).view(-1, 1, 1)
        board.fill((board.y == last - 1) & (board.x <= last) & (board.x != gap), cells.WALL)
        board.put(last // 2 + 1, last, colours[:, 0])
        nothing = torch.zeros_like(board.rows, dtype=torch.bool)
        return {"target": colours[:, 0], "is_right": nothing, "has_seen": nothing.clone()}

    def _corners(self) -> Int[Tensor, "4 2"]:
        """Return x and y of the corners of the third room."""
        near, far = 1, self.room_size
        begin = 2 * self.room_size + 2
        return torch.tensor([(begin + x, y) for y in (near, far) for x in (near, far)], device=self.device)

    def _judge_phases(self, moves: Moves, is_last: Bool[Tensor, "B"]) -> Verdict:
        is_box = self.packed[moves.ahead.long()] & 255 == cells.OBJECTS.index("box")
        chooses = (moves.action == cells.FORWARD) & is_box & is_last
        is_right = chooses & (moves.ahead == self.target)
        self.is_right = self.is_right | is_right
        corners = self.cells[:, self.corners]
        self.cells[:, self.corners] = torch.where(chooses.unsqueeze(1), self.packed[cells.EMPTY], corners)
        reward = torch.where(is_right, self.right_reward, self.wrong_reward) * chooses
        sees = self.shows_cue() & ~self.has_seen
        self.has_seen = self.has_seen | sees
        events = {"saw the box": sees, "chose a box": chooses, "chose the right box": is_right}
        return Verdict(reward, torch.zeros_like(chooses), self.is_right, events)

    def shows_cue(self) -> Bool[Tensor, "B"]:
        """Return where the box is in view during the first phase."""
        seen = self.in_view()[1] & 255
        return (seen == cells.OBJECTS.index("box")).any(1) & (self.num_steps < self.second_phase)


class SingleActiveVisualMatch(SingleEnv):
    batched = ActiveVisualMatch
