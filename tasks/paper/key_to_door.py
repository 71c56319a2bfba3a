"""Key to door: a key, many apples later, opens a door. Nothing tells at once that it was good to take it."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.world import Moves, Verdict
from ..solvers.planning import Stage
from ..solvers.reactive import NOTHING, Rule
from .three_phases import APPLE, ThreePhases

KEY = cells.code("key", "yellow")
DOOR, OPEN_DOOR = (cells.code("door", "yellow", state) for state in (cells.LOCKED, cells.OPEN))


class KeyToDoor(ThreePhases):
    """Key to door of Hung et al. 2019, arXiv:1810.06721, on a grid.

    In the first room lies a key, in the second are apples, in the third is a door. Walking onto the key takes it; it is
    not seen any more then. Walking into the door with it opens the door, which earns `door_reward`; without it nothing
    happens. Success is to have opened the door. Every episode lasts as long.

    It is a task of credit rather than of memory: nothing must be known to take every key, but only the door tells that
    it was worth it, `distractor_steps` later. To tell what is to come in front of the door takes memory.

    Evaluation counts how often an agent took the key, ate an apple and opened the door.

    Actions: 0 turn left, 1 turn right, 2 forward. The arguments are those of `ThreePhases`.
    """

    extra_names = ("has_key", "is_open")
    event_names = ("took the key", "ate an apple", "opened the door")
    rules = (*(Rule(NOTHING, cells.FORWARD, (thing,)) for thing in (KEY, DOOR)), *ThreePhases.rules)

    def __init__(
        self,
        num_envs: int = 1,
        room_size: int = 5,
        explore_steps: int = 15,
        distractor_steps: int = 60,
        reward_steps: int = 15,
        apples: int = 8,
        apple_reward: float = 1.0,
        door_reward: float = 10.0,
        agent_view_size: int = 5,
        **world: Any,
    ):
        self.door_reward = door_reward
        settings, phases = {"door_reward": door_reward}, (explore_steps, distractor_steps, reward_steps)
        super().__init__(
            num_envs, settings, room_size, *phases, apples, apple_reward, agent_view_size=agent_view_size, **world
        )
        self.door = self.starts[2] - (room_size // 2 + 1) * self.stride  # straight ahead of the start

    @property
    def scores(self) -> dict[str, float]:
        """Mean returns of random play and of play that goes for what is in view, and all there is to earn.

        Play without memory can be better than the one that is scored: it has no use for what it saw but to find things.
        """
        most = self.door_reward + self.apples * self.apple_reward
        return {"random": self.mean_return("random"), "memoryless": self.mean_return("memoryless"), "oracle": most}

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: walk onto what is nearest, which may be the key, an apple or the door."""
        return [Stage(cells.FORWARD, (codes == KEY) | (codes == APPLE) | (codes == DOOR))]

    def _furnish(self, board: Board) -> dict[str, Tensor]:
        x, y = board.somewhere(self.other_places(board, 0))
        board.put(x, y, KEY)
        board.put(2 * self.room_size + 2 + self.room_size // 2 + 1, 0, DOOR)
        nothing = torch.zeros_like(board.rows, dtype=torch.bool)
        return {"has_key": nothing, "is_open": nothing}

    def _judge_phases(self, moves: Moves, is_last: Bool[Tensor, "B"]) -> Verdict:
        goes = moves.action == cells.FORWARD
        takes = goes & (moves.ahead == KEY)
        self.has_key = self.has_key | takes
        opens = goes & (moves.ahead == DOOR) & self.has_key
        self.is_open = self.is_open | opens
        door = self.packed[torch.where(self.is_open, OPEN_DOOR, DOOR)]
        self.cells[:, self.door] = door
        events = {"took the key": takes, "opened the door": opens}
        return Verdict(self.door_reward * opens, torch.zeros_like(opens), self.is_open, events)


class SingleKeyToDoor(SingleEnv):
    batched = KeyToDoor
