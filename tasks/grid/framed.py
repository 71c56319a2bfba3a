"""Batches of grids that lie inside frames of walls, and begin from starts that are drawn ahead."""

from abc import abstractmethod
from functools import cached_property

import torch
from gymnasium import Space
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.vector import TensorVectorEnv, undisturbed
from .layouts import StartPool
from .visibility import view_offsets


class FramedWorld(TensorVectorEnv):
    """A batch of worlds on grids. The frame of each is as wide as views reach, so that no view leaves it.

    Rows share the frame between them: what leaves one to the left is in the frame on the right of the row before. A
    position is an index into the flat, framed grid.

    A task draws the states that episodes begin with in `_draw_starts`.

    Args:
        num_grids: G, as many as `num_envs` unless several environments are players on one grid.
        view_size: Cells of the view along each side, odd.
    """

    def __init__(
        self,
        num_envs: int,
        height: int,
        width: int,
        view_size: int,
        observation_space: Space,
        action_space: Space,
        device: str | torch.device,
        render_mode: str | None,
        num_grids: int | None = None,
    ):
        super().__init__(num_envs, observation_space, action_space, device, render_mode)
        self.height, self.width, self.view_size = height, width, view_size
        self.num_grids = num_envs if num_grids is None else num_grids
        self.frame = view_size - 1
        self.stride = width + self.frame
        self.area = self.stride * (height + 2 * self.frame) + 2 * self.frame
        self.offsets = view_offsets(view_size, self.stride).to(torch.int32).to(self.device)
        self.forward = torch.tensor([1, self.stride, -1, -self.stride], device=self.device)
        self.bases = torch.arange(self.num_grids, device=self.device) * self.area
        self.pool = StartPool(self._draw_starts, max(64, self.num_grids), torch.Generator(self.device))

    @abstractmethod
    def _draw_starts(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the state that `count` new episodes begin with, [L, ...] by name, and what else is known of it."""

    def place(self, x: Int[Tensor, "*L"], y: Int[Tensor, "*L"]) -> Int[Tensor, "*L"]:
        """Return the position, as states hold it, of a cell of the grid."""
        return (y + self.frame) * self.stride + x + self.frame

    def coordinates(self, position: Int[Tensor, "*L"]) -> tuple[Int[Tensor, "*L"], Int[Tensor, "*L"]]:
        """Return x and y of a position: the inverse of `place`."""
        inside = position - self.frame * (self.stride + 1)
        return inside % self.stride, inside // self.stride

    @cached_property
    def grid_positions(self) -> Int[Tensor, "H W"]:
        """The position of each cell of the grid."""
        x, y = torch.meshgrid(torch.arange(self.width), torch.arange(self.height), indexing="xy")
        return self.place(x, y).to(self.device)

    def _start_anew(self) -> None:
        self.pool.seed(int(torch.randint(2**62, (), generator=self.generator, device=self.device)))

    def _start(self) -> None:
        self._start_anew()
        starts = self.pool.take(self.num_grids)
        for name in self.state_names:
            setattr(self, name, starts[name].clone())

    def _start_some(self, begins: Bool[Tensor, " B"]) -> None:
        starts = self.pool.take_where(begins)
        for name in self.state_names:
            setattr(self, name, starts[name])

    def state_dict(self) -> dict[str, Tensor]:
        drawn_from, progress = self.pool.state()
        return super().state_dict() | {"layout_generator": drawn_from, "layout_progress": progress}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        missing = {"layout_generator", "layout_progress"} - state.keys()
        if missing:
            raise ValueError(f"the state must hold {', '.join(sorted(missing))}, but holds {', '.join(state)}.")
        super().load_state_dict({name: x for name, x in state.items() if not name.startswith("layout_")})
        with undisturbed(self.device.type):
            self.pool.load(state["layout_generator"], state["layout_progress"])
