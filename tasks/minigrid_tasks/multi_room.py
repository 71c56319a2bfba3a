"""MiniGrid's MultiRoom: a chain of rooms with closed doors between them, a goal in the last."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board, in_colour
from ..grid.layouts import Layout
from ..solvers.scores import ScoredWorld

RIGHT, BELOW, LEFT, ABOVE = range(4)  # walls of a room
SMALLEST = 4  # a room's side
TRIES = 8  # to find a place for the next room, before a chain is given up
ATTEMPTS, ROUNDS = 1024, 1000  # chains tried at a time, and how often, before the settings are given up


class Rooms(NamedTuple):
    """Rooms with their walls, and the doors by which they are entered."""

    x: Int[Tensor, "*L"]
    y: Int[Tensor, "*L"]
    width: Int[Tensor, "*L"]
    height: Int[Tensor, "*L"]
    door_x: Int[Tensor, "*L"]
    door_y: Int[Tensor, "*L"]
    wall: Int[Tensor, "*L"]
    """In which the door is."""


class MultiRoom(ScoredWorld):
    """MiniGrid's MultiRoom: the layouts, rewards and views of `MiniGrid-MultiRoom-N...`.

    The episode starts in the first room. Reaching the goal in the last earns 1 − 0.9 · steps / max_steps. Unless told
    otherwise this is MiniGrid's smallest, N2-S4; its N4-S5 has num_rooms=4, max_room_size=5, its N6 num_rooms=6,
    max_room_size=10.

    Args:
        num_rooms: How many rooms, at least 1.
        max_num_rooms: If given, each episode has from `num_rooms` to so many.
        max_room_size: Sides of rooms are from 4 to so many cells, walls included.
        height: Of the grid, at least 5.
        width: Of the grid, at least 4.
        max_steps: 20 per room unless given.
        world: More arguments of `GridWorld`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        num_rooms: int = 2,
        max_num_rooms: int | None = None,
        max_room_size: int = 4,
        height: int = 25,
        width: int = 25,
        max_steps: int | None = None,
        **world: Any,
    ):
        most = num_rooms if max_num_rooms is None else max_num_rooms
        if not 1 <= num_rooms <= most:
            raise ValueError(f"num_rooms must be at least 1 and at most max_num_rooms, but is {num_rooms} of {most}.")
        if max_room_size < SMALLEST:
            raise ValueError(f"max_room_size must be at least {SMALLEST}, but is {max_room_size}.")
        if height < 5 or width < 4:
            raise ValueError(f"height must be at least 5 and width at least 4, but they are {height} and {width}.")
        self.num_rooms, self.max_num_rooms, self.max_room_size = num_rooms, most, max_room_size
        settings = {"num_rooms": num_rooms, "max_num_rooms": most, "max_room_size": max_room_size}
        settings |= {"height": height, "width": width}
        max_steps = 20 * most if max_steps is None else max_steps
        super().__init__(num_envs, height, width, settings, max_steps=max_steps, **world)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        board = Board(count, self.height, self.width, generator, walled=False)
        num_rooms = board.integers(self.num_rooms, self.max_num_rooms + 1)
        rooms = self._chains(num_rooms, generator)
        colour = board.integers(0, 6)
        for k in range(self.max_num_rooms):
            room = Rooms(*(x[:, k].view(-1, 1, 1) for x in rooms))
            is_room = (k < num_rooms).view(-1, 1, 1)
            board.fill(is_room & within(board, room) & ~within(board, room, walls=False), cells.WALL)
            if k > 0:
                is_door = is_room & (board.x == room.door_x) & (board.y == room.door_y)
                codes = in_colour("door", colour, cells.CLOSED).view(-1, 1, 1).to(torch.uint8)
                board.cells = torch.where(is_door, codes, board.cells)
                colour = (colour + board.integers(1, 6)) % 6  # any but that of the door before
        first = Rooms(*(x[:, 0].view(-1, 1, 1) for x in rooms))
        last = Rooms(*(x.gather(1, num_rooms.view(-1, 1) - 1).view(-1, 1, 1) for x in rooms))
        x, y = board.somewhere(within(board, first, walls=False))
        board.put(*board.somewhere(within(board, last, walls=False) & ~board.at(x, y)), cells.GOAL)
        return board.layout(x, y, board.integers(0, 4))

    def _chains(self, num_rooms: Int[Tensor, "L"], generator: torch.Generator) -> Rooms:
        """Return that many rooms in a row for each layout, [L, rooms].

        A chain is tried as often as it takes, as in MiniGrid; here many tries are made at a time, of which each layout
        takes the first that came through.
        """
        missing, chosen = torch.arange(len(num_rooms), device=self.device), None
        for _ in range(ROUNDS):
            repeats = max(1, max(len(num_rooms), ATTEMPTS) // len(missing))
            rooms, is_complete = self._try_chains(num_rooms[missing].repeat(repeats), generator)
            is_complete = is_complete.view(repeats, -1)
            pick = is_complete.to(torch.uint8).argmax(0) * len(missing) + torch.arange(len(missing), device=self.device)
            if chosen is None:
                chosen = Rooms(*(x[pick] for x in rooms))
            found = is_complete.any(0)
            for old, new in zip(chosen, rooms, strict=True):
                old[missing[found]] = new[pick[found]]
            missing = missing[~found]
            if len(missing) == 0:
                return chosen
        raise ValueError(
            f"{self.max_num_rooms} rooms of up to {self.max_room_size} cells must fit into {self.height} x "
            f"{self.width} cells, but {ROUNDS * ATTEMPTS} attempts found no place: ask for fewer, or a larger grid."
        )

    def _try_chains(self, num_rooms: Int[Tensor, "L"], generator: torch.Generator) -> tuple[Rooms, Bool[Tensor, "L"]]:
        """Return chains of rooms, and which of them came to their full length."""
        count, most = len(num_rooms), self.max_num_rooms
        board = Board(count, 1, 1, generator)
        rooms = Rooms(*torch.zeros(7, count, most, dtype=torch.int64, device=self.device))
        is_alive = torch.ones(count, dtype=torch.bool, device=self.device)
        for k in range(most):
            is_missing = is_alive & (k < num_rooms)
            for _ in range(TRIES if k else 1):
                if not is_missing.any():
                    break
                door = self._first_door(board) if k == 0 else exits(board, Rooms(*(x[:, k - 1] for x in rooms)))
                room = self._room_behind(board, *door, is_first=k == 0)
                before = Rooms(*(x[:, : max(k - 1, 0)] for x in rooms))
                fits = is_missing & self._is_inside(room) & ~overlaps(room, before)
                for old, new in zip(rooms, room, strict=True):
                    old[:, k] = torch.where(fits, new, old[:, k])
                is_missing = is_missing & ~fits
            is_alive = is_alive & ~is_missing
        return rooms, is_alive

    def _first_door(self, board: Board) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, y and wall; MiniGrid draws y by the width of the grid, too."""
        x, y = board.integers(0, self.width - 2), board.integers(0, self.width - 2)
        return x, y, torch.full_like(x, LEFT)

    def _room_behind(self, board: Board, x: Tensor, y: Tensor, wall: Tensor, is_first: bool) -> Rooms:
        """Return a room of random size that is entered by a door in this wall; the first one has it in its corner."""
        width, height = (board.integers(SMALLEST, self.max_room_size + 1) for _ in range(2))
        if is_first:
            return Rooms(x, y, width, height, x, y, wall)
        left, top = board.integers(x - width + 2, x), board.integers(y - height + 2, y)
        left = torch.where(wall == LEFT, x, torch.where(wall == RIGHT, x - width + 1, left))
        top = torch.where(wall == ABOVE, y, torch.where(wall == BELOW, y - height + 1, top))
        return Rooms(left, top, width, height, x, y, wall)

    def _is_inside(self, room: Rooms) -> Bool[Tensor, "L"]:
        """Return whether MiniGrid takes the room to be inside the grid."""
        is_inside = (room.x >= 0) & (room.y >= 0)
        return is_inside & (room.x + room.width <= self.width) & (room.y + room.height < self.height)


def exits(board: Board, room: Rooms) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and y of a random exit from each room, not in the wall of its entry, and the wall of the room behind."""
    wall = (room.wall + board.integers(1, 4)) % 4
    x, y = room.x + board.integers(1, room.width - 1), room.y + board.integers(1, room.height - 1)
    x = torch.where(wall == RIGHT, room.x + room.width - 1, torch.where(wall == LEFT, room.x, x))
    y = torch.where(wall == BELOW, room.y + room.height - 1, torch.where(wall == ABOVE, room.y, y))
    return x, y, (wall + 2) % 4


def overlaps(room: Rooms, others: Rooms) -> Bool[Tensor, "L"]:
    """Return whether MiniGrid takes a room to overlap one of the others, [L, rooms]."""
    x, y = room.x.unsqueeze(1), room.y.unsqueeze(1)
    is_beside = (x + room.width.unsqueeze(1) < others.x) | (others.x + others.width <= x)
    is_above = (y + room.height.unsqueeze(1) < others.y) | (others.y + others.height <= y)
    return ~(is_beside | is_above).all(1)


def within(board: Board, room: Rooms, walls: bool = True) -> Bool[Tensor, "L H W"]:
    """Return which cells are in these rooms, given [L, 1, 1]."""
    rim = 0 if walls else 1
    x, y = board.x - room.x, board.y - room.y
    return (x >= rim) & (x < room.width - rim) & (y >= rim) & (y < room.height - rim)


class SingleMultiRoom(SingleEnv):
    batched = MultiRoom
