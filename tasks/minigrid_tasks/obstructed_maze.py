"""MiniGrid's ObstructedMaze of two rooms: a locked door, a key that may be in a box, a ball that may be in the way."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import ahead_of, in_colour
from ..grid.cells import BOXES, KEYS
from ..grid.layouts import Layout
from ..grid.room_board import RoomBoard
from ..solvers.planning import Stage
from ..solvers.reactive import LOCKED_DOORS, NOTHING, Rule
from .pick_up import PickUpTask

TARGET, OBSTACLE = cells.code("ball", "blue"), cells.code("ball", "green")


class ObstructedMaze(PickUpTask):
    """MiniGrid's ObstructedMaze: the layouts, rewards and views of `MiniGrid-ObstructedMaze-1Dl-v0`, `1Dlh`, `1Dlhb`.

    A locked door parts two rooms. The key is in the room of the start, the blue ball in the other. Picking that up
    earns 1 − 0.9 · steps / max_steps and ends the episode. MiniGrid's mission is always the same and not observed.

    Args:
        key_in_box: Hide the key in a grey box (MiniGrid's "h").
        blocked: Put a green ball before the door (MiniGrid's "b").
        room_size: Cells along each side of a room, walls included, at least 5; MiniGrid's is 6.
        max_steps: 8 · room_size² unless given.
        world: More arguments of `GridWorld`.
    """

    rules = (
        Rule(NOTHING, cells.PICKUP, (TARGET,)),
        Rule(KEYS, cells.TOGGLE, LOCKED_DOORS),
        Rule((*KEYS, OBSTACLE), cells.DROP, NOTHING),
        Rule(NOTHING, cells.TOGGLE, BOXES),
        Rule(NOTHING, cells.PICKUP, (OBSTACLE,), shown=LOCKED_DOORS),
        Rule(NOTHING, cells.PICKUP, KEYS),
    )

    def __init__(
        self,
        num_envs: int = 1,
        key_in_box: bool = True,
        blocked: bool = True,
        room_size: int = 6,
        max_steps: int | None = None,
        **world: Any,
    ):
        if room_size < 5:
            raise ValueError(f"room_size must be at least 5, but is {room_size}: what is in the way needs a place.")
        self.key_in_box, self.blocked, self.room_size = key_in_box, blocked, room_size
        super().__init__(
            num_envs,
            room_size,
            2 * room_size - 1,
            {"key_in_box": key_in_box, "blocked": blocked, "room_size": room_size},
            max_steps=8 * room_size**2 if max_steps is None else max_steps,
            **world,
        )

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board = RoomBoard(count, 1, 2, self.room_size, generator)
        colour, (x, y) = board.integers(0, 6), board.door(0)
        board.put(x, y, in_colour("door", colour, cells.LOCKED))
        if self.blocked:
            board.put(x - 1, y, OBSTACLE)
        keys = [cells.CELLS[key] for key in KEYS]
        boxes = torch.tensor([cells.code("box", "grey", content=key) for key in keys], device=self.device)
        board.place_in_room(0, 0, boxes[colour] if self.key_in_box else in_colour("key", colour))
        target = board.place_in_room(1, 0, TARGET)
        return board.layout(*board.pose(board.room(0, 0)), target=self.place(*target))

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return sub-goals in a fixed order; other orders might save a few steps."""
        kinds = torch.tensor([cells.OBJECTS.index(cell.kind) for cell in cells.CELLS], device=codes.device)
        kind = kinds[codes.long()]
        is_key, is_door = (kind == 5) | (kind == 7), kind == 4
        is_free = codes == cells.EMPTY
        around_door = ahead_of(ahead_of(is_door).any(1)).any(1)  # where a ball might shut the way to the door
        return [
            *([Stage(cells.PICKUP, codes == OBSTACLE, clears=True)] if self.blocked else []),
            *([Stage(cells.DROP, is_free & ~around_door)] if self.blocked else []),
            *([Stage(cells.TOGGLE, kind == 7)] if self.key_in_box else []),
            Stage(cells.PICKUP, is_key, clears=True),
            Stage(cells.TOGGLE, is_door, clears=True),
            Stage(cells.DROP, is_free),
            Stage(cells.PICKUP, self.is_target(rows)),
        ]


class SingleObstructedMaze(SingleEnv):
    batched = ObstructedMaze
