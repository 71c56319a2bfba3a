"""MiniGrid's KeyCorridor: find the key behind one door, unlock another, take what is there."""

from typing import Any

import torch
from gymnasium import Space, spaces
from jaxtyping import Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import in_colour
from ..grid.cells import BALLS, BOXES, KEYS
from ..grid.layouts import Layout
from ..grid.room_board import RoomBoard
from ..solvers.planning import Stage
from ..solvers.reactive import LOCKED_DOORS, NOTHING, Rule
from .pick_up import PickUpTask

THINGS = {"ball": BALLS, "box": BOXES, "key": KEYS}
COLUMNS = 3


class KeyCorridor(PickUpTask):
    """MiniGrid's KeyCorridor: the layouts, rewards and views of `MiniGrid-KeyCorridorS{room_size}R{num_rows}-v0`.

    A corridor runs between two columns of rooms. In one of the rooms on the right, locked, lies an object; in one of
    those on the left lies the key. Picking up the object earns 1 − 0.9 · steps / max_steps and ends the episode.

    MiniGrid's mission says the colour of the object: here that is `mission` in the observation, numbered as colours
    are in `image`.

    Args:
        num_rows: Rooms in each column.
        obj_type: What is to be picked up, "ball", "box" or "key". A box that is toggled is gone for good.
        room_size: Cells along each side of a room, walls included, at least 3.
        max_steps: 30 · room_size² unless given.
        world: More arguments of `GridWorld`.
    """

    extra_names = ("target", "mission")

    def __init__(
        self,
        num_envs: int = 1,
        num_rows: int = 3,
        obj_type: str = "ball",
        room_size: int = 6,
        max_steps: int | None = None,
        **world: Any,
    ):
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, but is {num_rows}.")
        if obj_type not in THINGS:
            raise ValueError(f"obj_type must be 'ball', 'box' or 'key', but is {obj_type!r}.")
        if room_size < 3:
            raise ValueError(f"room_size must be at least 3, but is {room_size}: a room needs a cell inside its walls.")
        self.num_rows, self.obj_type, self.room_size = num_rows, obj_type, room_size
        things = THINGS[obj_type]
        self.rules = (
            *([] if obj_type == "key" else [Rule(NOTHING, cells.PICKUP, things)]),
            Rule(KEYS, cells.TOGGLE, LOCKED_DOORS),
            Rule(KEYS, cells.DROP, NOTHING, shown=things),
            Rule(NOTHING, cells.PICKUP, KEYS),
        )
        super().__init__(
            num_envs,
            (room_size - 1) * num_rows + 1,
            (room_size - 1) * COLUMNS + 1,
            {"num_rows": num_rows, "obj_type": obj_type, "room_size": room_size},
            max_steps=30 * room_size**2 if max_steps is None else max_steps,
            **world,
        )

    def _space(self) -> Space:
        return spaces.Dict({**super()._space(), "mission": spaces.Discrete(len(cells.COLOURS))})

    def _look(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return super()._look(state) | {"mission": state["mission"]}

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board = RoomBoard(count, self.num_rows, COLUMNS, self.room_size, generator)
        left, right = board.ends
        is_corridor = (left % COLUMNS == 1) & (right % COLUMNS == 1)
        x = board.x - board.step
        board.fill((x > 0) & (x < board.step) & (board.y > 0) & (board.y < self.height - 1), cells.EMPTY)

        locked_row, key_row = board.integers(0, self.num_rows), board.integers(0, self.num_rows)
        key_colour, colour = board.integers(0, 6), board.integers(0, 6)
        locked = locked_row * (COLUMNS - 1) + 1  # the edge between the corridor and the room on the right
        board.put(*board.door(locked), in_colour("door", key_colour, cells.LOCKED))
        target = board.place_in_room(2, locked_row, in_colour(self.obj_type, colour))
        board.place_in_room(0, key_row, in_colour("key", key_colour))
        x, y, direction = board.pose(board.room(1, self.num_rows // 2))

        room = (locked_row * COLUMNS + 2).unsqueeze(1)
        is_locked = torch.arange(len(left), device=self.device) == locked.unsqueeze(1)
        is_shut = ((left == room) | (right == room)) & ~is_locked
        has_door = board.connect(is_shut, is_corridor | is_locked)
        for edge in range(len(left)):
            place = board.door(edge)
            door = in_colour("door", board.integers(0, 6), cells.CLOSED)
            board.put(*place, torch.where(has_door[:, edge], door, board.cells[board.rows, place[1], place[0]].long()))
        return board.layout(x, y, direction, target=self.place(*target), mission=colour)

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: short, but not proven shortest.

        The order of door and key is fixed, a door that the agent comes through twice counts twice, and it drops the key
        only where the way then turns.
        """
        is_target, code = self.is_target(rows), codes.long()
        return [
            Stage(cells.PICKUP, _are(code, KEYS) & ~is_target, clears=True),
            Stage(cells.TOGGLE, _are(code, LOCKED_DOORS), clears=True),
            Stage(cells.DROP, code == cells.EMPTY),
            Stage(cells.PICKUP, is_target),
        ]


def _are(codes: Int[Tensor, "L H W"], things: tuple[int, ...]) -> Tensor:
    return torch.isin(codes, torch.tensor(things, device=codes.device))


class SingleKeyCorridor(SingleEnv):
    batched = KeyCorridor
