"""MiniGrid's Memory tasks as batches of tensors: see an object, walk a hallway, go to the same object at its end."""

import torch
from jaxtyping import Int
from torch import Tensor

from tasks import cells
from tasks.grid import GridWorld, Moves, Verdict
from tasks.layouts import Layout
from tasks.single import SingleEnv


class Hallway(GridWorld):
    """MiniGrid's Memory: the layouts, rewards and views of `MiniGrid-MemoryS{size}-v0`, `...Random-v0`.

    A key or a ball lies in the room where the episode starts, and one of each at the two ends of the split hallway.
    Standing beside the same object earns 1 − 0.9 · steps / max_steps, beside the other 0, and ends the episode.

    Args:
        size: Cells along each side of the grid, odd, at least 7.
        random_length: Draw the length of the hallway for each episode.
        max_steps: 5 · size² unless given.
    """

    extra_names = ("target", "decoy")

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 7,
        random_length: bool = False,
        max_steps: int | None = None,
        agent_view_size: int = 7,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if size < 7 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 7, but is {size}.")
        self.random_length = random_length
        super().__init__(
            num_envs,
            size,
            size,
            max_steps=5 * size**2 if max_steps is None else max_steps,
            agent_view_size=agent_view_size,
            device=device,
            render_mode=render_mode,
        )

    def _outcomes(self) -> Int[Tensor, "actions carried ahead"]:
        table = cells.outcomes()
        table[cells.PICKUP] = table[cells.TOGGLE]  # nothing is ever carried
        return table

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        def draw(low: int | Tensor, high: int | Tensor) -> Int[Tensor, "L"]:
            uniform = torch.rand(count, dtype=torch.float64, device=self.device, generator=generator)
            return (low + uniform * (high - low)).to(torch.int64)

        size, middle = self.width, self.height // 2
        end = draw(4, size - 2) if self.random_length else torch.full((count,), size - 3, device=self.device)
        x = torch.arange(size, device=self.device).view(1, 1, -1)
        y = torch.arange(size, device=self.device).view(1, -1, 1)
        off_middle, last = (y - middle).abs(), end.view(-1, 1, 1)
        is_wall = (x == 0) | (x == size - 1) | (y == 0) | (y == size - 1)
        is_wall = is_wall | (x < 5) & (off_middle == 2) | (x >= 4) & (x < last.clamp(min=5)) & (off_middle == 1)
        is_wall = is_wall | (x == last) & (off_middle > 0) | (x == last + 2)
        grid = torch.where(is_wall, cells.WALL, cells.EMPTY).to(torch.uint8)
        objects = torch.tensor([cells.code("key", "green"), cells.code("ball", "green")], device=self.device)
        cue, upper, rows = draw(0, 2), draw(0, 2), torch.arange(count, device=self.device)
        for column, row, thing in (
            (torch.ones_like(end), middle - 1, cue),
            (end + 1, middle - 2, upper),
            (end + 1, middle + 2, 1 - upper),
        ):
            grid[rows, row, column] = objects[thing].to(torch.uint8)
        side = torch.where(cue == upper, -1, 1)
        targets = {"target": self.place(end + 1, middle + side), "decoy": self.place(end + 1, middle - side)}
        start = draw(1, end + 1)
        return Layout(grid, start, torch.full_like(start, middle), torch.zeros_like(start), targets)

    def _judge(self, moves: Moves) -> Verdict:
        return self.solved_or_failed(moves.position == self.target, moves.position == self.decoy)


class SingleHallway(SingleEnv):
    batched = Hallway
