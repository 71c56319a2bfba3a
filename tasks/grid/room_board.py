"""Boards of equal rooms in rows and columns, as MiniGrid's RoomGrid lays them out."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from . import cells
from .board import Board
from .mazes import neighbours


class RoomBoard(Board):
    """Rooms that share their walls, with a place for a door, drawn ahead, in each wall between two of them.

    Edges are numbered as `neighbours` returns them.
    """

    def __init__(self, count: int, num_rows: int, num_columns: int, room_size: int, generator: torch.Generator):
        step = room_size - 1
        super().__init__(count, num_rows * step + 1, num_columns * step + 1, generator)
        self.num_rows, self.num_columns, self.room_size, self.step = num_rows, num_columns, room_size, step
        self.fill((self.x % step == 0) | (self.y % step == 0), cells.WALL)
        self.centre = num_columns // 2 * step + room_size // 2, num_rows // 2 * step + room_size // 2
        self.beside = num_rows * (num_columns - 1)  # edges along rows
        self.ends = neighbours(num_rows, num_columns)[0].to(self.device)
        self.doors = self.integers(1, step, self.ends.shape[1])  # how far along the wall

    def door(self, edge: int | Int[Tensor, "L"]) -> tuple[Int[Tensor, "L"], Int[Tensor, "L"]]:
        """Return x and y of the door of an edge of each board."""
        edge = torch.as_tensor(edge, device=self.device).expand(self.count)
        room = self.ends[0, edge]
        x, y = room % self.num_columns * self.step, room // self.num_columns * self.step
        along, is_beside = self.doors[self.rows, edge], edge < self.beside
        return torch.where(is_beside, x + self.step, x + along), torch.where(is_beside, y + along, y + self.step)

    def room(self, column: int, row: int | Int[Tensor, "L"]) -> Bool[Tensor, "..."]:
        """Return the mask of a room with its walls."""
        x = self.x - column * self.step
        y = self.y - torch.as_tensor(row, device=self.device).view(-1, 1, 1) * self.step
        return (x >= 0) & (x < self.room_size) & (y >= 0) & (y < self.room_size)

    def place_in_room(
        self, column: int, row: int | Int[Tensor, "L"], code: int | Int[Tensor, "L"]
    ) -> tuple[Int[Tensor, "L"], Int[Tensor, "L"]]:
        """Put a thing anywhere in a room, but not within a step of the centre of the whole board.

        That is where MiniGrid takes the agent to be before it has a place; x and y are returned.
        """
        is_far = (self.x - self.centre[0]).abs() + (self.y - self.centre[1]).abs() >= 2
        x, y = self.somewhere(self.room(column, row) & is_far)
        self.put(x, y, code)
        return x, y

    def connect(self, is_shut: Bool[Tensor, "L E"], is_joined: Bool[Tensor, "L E"]) -> Bool[Tensor, "L E"]:
        """Return which edges get doors: drawn one by one, none twice, until every room can be reached.

        Args:
            is_shut: Edges that get none.
            is_joined: Edges that can be passed already and get none either.
        """
        room = torch.arange(self.num_rows * self.num_columns, device=self.device).repeat(self.count, 1)
        for edge in range(is_joined.shape[1]):
            room = self._merge(room, torch.full_like(self.rows, edge), is_joined[:, edge])
        order = torch.rand(is_shut.shape, device=self.device, generator=self.generator)
        order = order.masked_fill(is_shut | is_joined, 2.0).argsort(1)
        has_door = torch.zeros_like(is_shut)
        for edge in order.unbind(1):
            is_apart = (room != room[:, :1]).any(1)
            has_door[self.rows, edge] = is_apart
            room = self._merge(room, edge, is_apart)
        return has_door

    def _merge(self, room: Int[Tensor, "L R"], edge: Int[Tensor, "L"], where: Bool[Tensor, "L"]) -> Int[Tensor, "L R"]:
        """Return labels of rooms, equal where one leads to the other, once these edges can be passed."""
        one, other = (room.gather(1, end[edge].unsqueeze(1)) for end in self.ends)
        return torch.where((room == other) & where.unsqueeze(1), one, room)
