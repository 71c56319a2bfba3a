"""MiniGrid's Memory tasks as batches of tensors: see an object, walk a hallway, go to the same object at its end."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.layouts import Layout
from ..grid.world import Moves, Verdict
from ..solvers.planning import Stage
from ..solvers.scores import ScoredWorld

BLIND = 0.15  # how often `Memoryless` goes on without having looked back


class Memoryless:
    """A policy without memory; the best there is where the cue cannot be seen from the junction.

    There it turns left, which is right half the time. Where `looks_back` says so, it instead turns right twice to look
    at the cue and the two ends at once, and goes left or right of them: it must then face down again, which looks as
    before, so that it goes on from there by chance, `BLIND` times of 1, and looks back otherwise.
    """

    def __init__(self, env: "Hallway", seed: int = 0):
        self.view, self.looks_back = env.view_size, looks_back(env.width, env.random_length, env.view_size)
        self.generator = torch.Generator(env.device).manual_seed(seed)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        things, direction, middle = observation["image"][..., 0], observation["direction"], self.view // 2
        is_wall = things[:, middle, -2] == cells.OBJECTS.index("wall")
        at_junction = (direction == 0) & is_wall
        if not self.looks_back:
            return torch.where(at_junction, cells.LEFT, cells.FORWARD)
        is_hasty = torch.rand(len(direction), device=direction.device, generator=self.generator) < BLIND
        cue = things[:, middle + 1, :-2].amax(1)  # keys and balls have higher numbers than walls; the ends lie farther
        back = torch.where(cue == things[:, middle + 2, -1], cells.RIGHT, cells.LEFT)
        actions = torch.where(at_junction, cells.RIGHT, cells.FORWARD)
        actions = torch.where((direction == 1) & ~is_hasty, cells.RIGHT, actions)
        return torch.where(direction == 2, back, actions)


def looks_back(size: int, random_length: bool, agent_view_size: int) -> bool:
    """Return whether the cue can be in view from the junction, so that the task can be solved without memory."""
    return agent_view_size > (4 if random_length else size - 3)


class Hallway(ScoredWorld):
    """MiniGrid's Memory: the layouts, rewards and views of `MiniGrid-MemoryS{size}-v0`, `...Random-v0`.

    A key or a ball lies in the room where the episode starts, and one of each at the two ends of the split hallway.
    Standing beside the same object earns 1 − 0.9 · steps / max_steps, beside the other 0, and ends the episode.

    Args:
        size: Cells along each side of the grid, odd, at least 7.
        random_length: Draw the length of the hallway for each episode.
        max_steps: 5 · size² unless given.
        world: More arguments of `GridWorld`.
    """

    players = ScoredWorld.players | {"memoryless": Memoryless}
    score_episodes = ScoredWorld.score_episodes | {"memoryless": 1000}
    extra_names = ("target", "decoy")

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 7,
        random_length: bool = False,
        max_steps: int | None = None,
        **world: Any,
    ):
        if size < 7 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 7, but is {size}.")
        self.random_length = random_length
        super().__init__(
            num_envs,
            size,
            size,
            {"size": size, "random_length": random_length},
            max_steps=5 * size**2 if max_steps is None else max_steps,
            **world,
        )

    def _outcomes(self) -> cells.Outcomes:
        outcomes = cells.outcomes()
        for table in outcomes:
            table[cells.PICKUP] = table[cells.TOGGLE]  # nothing is ever carried
        return outcomes

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

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: go to the right end."""
        return [Stage(cells.FORWARD, self.grid_positions == self.target[rows].view(-1, 1, 1))]

    def shows_cue(self) -> Bool[Tensor, " B"]:
        """Return where the object in the room of the start is in view."""
        places, image = self.in_view()
        cue = (self.height // 2 - 1 + self.frame) * self.stride + 1 + self.frame
        return ((places == cue) & (image != 0)).any(1)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Expected returns of random, memoryless and perfect play.

        The oracle's is exact, over all starts and lengths: it knows the cue and walks straight to the same object, a
        bound for an agent that may have to look first. Where the junction is out of sight of the cue (see
        `looks_back`), what is seen there and how one comes there do not depend on it: no memoryless policy earns more
        than half of the oracle's, which is exact, too. Elsewhere, as in this task and MiniGrid S7 with a view of 7, the
        memoryless score is that of a policy that looks back, averaged like random play over 1,000 episodes from seed 0;
        others may earn more.
        """
        ends = range(4, self.width - 2) if self.random_length else [self.width - 3]
        walks = [[end + 3 - start for start in range(1, end + 1)] for end in ends]
        most = self.max_steps
        means = [sum(1 - 0.9 * steps / most for steps in walk if steps <= most) / len(walk) for walk in walks]
        oracle = sum(means) / len(means)
        has_view = looks_back(self.width, self.random_length, self.view_size)
        memoryless = self.mean_return("memoryless") if has_view else oracle / 2
        return {"random": self.mean_return("random"), "memoryless": memoryless, "oracle": oracle}


class SingleHallway(SingleEnv):
    batched = Hallway
