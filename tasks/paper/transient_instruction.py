"""Transient instructions: read what to do once, then do it from memory.

At the start of an episode an instruction such as "go to the red ball" is shown; later it is gone. Walking into the
object that it named earns 1, into any other 0, and either ends the episode. As in Wayne et al. 2018 (MERLIN),
arXiv:1803.10760; the sentence is BabyAI's (Chevalier-Boisvert et al. 2019, arXiv:1810.08272).
"""

import math
from functools import cached_property, lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board, ahead, ahead_of
from ..grid.layouts import Layout
from ..grid.world import GridWorld, Moves, Verdict
from ..solvers.planning import Planner, Stage

KINDS = ("ball", "box", "key")
WORDS = ("", "go", "to", "the", *cells.COLOURS, *KINDS)
THINGS = [code for kind in KINDS for code in cells.coloured(kind)]
SENTENCES = [[WORDS.index(word) for word in ("go", "to", "the", colour, kind)]
             for kind, colour in product(KINDS, cells.COLOURS)]  # fmt: skip
MOST_LAYOUTS = 1024


class TransientInstruction(GridWorld):
    """Transient instructions in a room of different objects, no two of them neighbours.

    Observation: MiniGrid's, and `instruction`, five words by their number in `words` (a batch of tensors cannot hold
    text); all are 0, the empty word, once the instruction is gone. `sentence` reads them. Actions: 0 turn left, 1 turn
    right, 2 forward.

    Args:
        size: Cells along each side of the grid, walls included.
        objects: How many objects there are, one of which is named.
        instruction_steps: For how many observations the instruction is shown.
        max_steps: 8 · size unless given; every object can be reached in 2 · size − 1.
        world: More arguments of `GridWorld`.
    """

    num_actions = 3
    extra_names = ("target", "instruction")
    words = WORDS

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        objects: int = 4,
        instruction_steps: int = 1,
        max_steps: int | None = None,
        device: str | torch.device = "cpu",
        **world: Any,
    ):
        if size < 6:
            raise ValueError(f"size must be at least 6, but is {size}.")
        most = min(len(object_places(size)), len(THINGS))
        if not 2 <= objects <= most:
            raise ValueError(f"objects must be from 2 to {most} in a room of size {size}, but is {objects}.")
        if instruction_steps < 1:
            raise ValueError(f"instruction_steps must be at least 1, but is {instruction_steps}.")
        max_steps = 8 * size if max_steps is None else max_steps
        if max_steps < 2 * size - 1:
            raise ValueError(
                f"max_steps must be at least 2 · size − 1 = {2 * size - 1}, for every object to be within reach, "
                f"but is {max_steps}."
            )
        self.objects, self.instruction_steps = objects, instruction_steps
        device = torch.device(device)
        self.object_places, self.start_places = object_places(size).to(device), start_places(size).to(device)
        self.things, self.sentences = (torch.tensor(rows, device=device) for rows in (THINGS, SENTENCES))
        self.is_thing = torch.tensor([code in THINGS for code in range(len(cells.CELLS))], device=device)
        super().__init__(num_envs, size, size, max_steps=max_steps, device=device, **world)

    def _space(self) -> Space:
        instruction = spaces.MultiDiscrete(np.full(len(SENTENCES[0]), len(WORDS)))
        return spaces.Dict({**super()._space().spaces, "instruction": instruction})

    @cached_property
    def scores(self) -> dict[str, float]:
        return scores(self.width, self.objects, self.max_steps)

    def sentence(self, instruction: Int[Tensor, " words"] | np.ndarray) -> str:
        """Return an instruction as text, "" once it is gone."""
        return " ".join(WORDS[int(word)] for word in instruction if word)

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        def shuffled(size: int) -> Int[Tensor, "L size"]:
            keys = torch.rand(count, size, dtype=torch.float64, device=self.device, generator=generator)
            return keys.argsort(1)

        def draw(size: int) -> Int[Tensor, " L"]:
            return torch.randint(size, (count,), device=self.device, generator=generator)

        board = Board(count, self.height, self.width, generator)
        x, y = self.object_places[shuffled(len(self.object_places))[:, : self.objects]].unbind(-1)
        things = shuffled(len(THINGS))[:, : self.objects]
        board.cells[board.rows.unsqueeze(1), y, x] = self.things[things].to(torch.uint8)
        named = things[:, 0]  # they lie in random order
        extra = {"target": self.things[named], "instruction": self.sentences[named]}
        start_x, start_y = self.start_places[draw(len(self.start_places))].unbind(-1)
        return board.layout(start_x, start_y, draw(4), **extra)

    def _look(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        is_shown = (state["num_steps"] < self.instruction_steps).unsqueeze(1)
        return super()._look(state) | {"instruction": state["instruction"] * is_shown}

    def _judge(self, moves: Moves) -> Verdict:
        reaches = (moves.action == cells.FORWARD) & self.is_thing.index_select(0, moves.ahead)
        is_right = reaches & (moves.ahead == self.target)
        return Verdict(is_right.to(torch.float32), reaches, is_right)

    def shows_cue(self) -> Bool[Tensor, " B"]:
        return self.num_steps < self.instruction_steps


class SingleTransientInstruction(SingleEnv):
    batched = TransientInstruction


class Oracle:
    """The policy that remembers the instruction, and knows the room beforehand; scores exactly 1."""

    def __init__(self, env: TransientInstruction):
        self.env, self.planner = env, Planner(env, self._stages)
        self.named = torch.zeros_like(env.target)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        instruction = observation["instruction"]
        is_named = (instruction.unsqueeze(1) == self.env.sentences).all(2)
        named = self.env.things[is_named.int().argmax(1)]
        self.named = torch.where(instruction[:, 0] > 0, named, self.named)
        return self.planner(observation)

    def _stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        return [Stage(cells.FORWARD, codes == self.named[rows].view(-1, 1, 1))]


class Memoryless(Planner):
    """A best policy of those that ignore the instruction: to the nearest object; scores exactly 1/objects."""

    def __init__(self, env: TransientInstruction):
        super().__init__(env, lambda codes, rows: [Stage(cells.FORWARD, env.is_thing[codes])])


@lru_cache
def scores(size: int = 8, objects: int = 4, max_steps: int | None = None, **_) -> dict[str, float]:
    """Return the expected returns of uniformly random, memoryless and perfect play.

    "memoryless" is exactly the most that is earned by policies that ignore the instruction, since any of the objects
    may be the one that is named. (While it is shown it could be answered by a turn or a step, which then stands for a
    part of it.) "oracle" is exact; "random" is where there are at most 1024 ways for the objects to lie, as there are
    by default, otherwise it is the mean over 1024 of them, drawn from seed 0.
    """
    with torch.device("cpu"):  # whatever default device a program has set
        random = random_score(size, objects, 8 * size if max_steps is None else max_steps)
    return {"random": random, "memoryless": 1 / objects, "oracle": 1.0}


def random_score(size: int, objects: int, max_steps: int) -> float:
    """Return the expected return of uniformly random play, by backward induction over time and pose.

    The probability of reaching an object at all, over the number of objects.
    """
    places, starts = object_places(size), start_places(size)
    if math.comb(len(places), objects) <= MOST_LAYOUTS:
        chosen = torch.tensor(list(combinations(range(len(places)), objects)))
    else:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.rand(MOST_LAYOUTS, len(places), generator=generator).argsort(1)[:, :objects]
    x, y = places[chosen].unbind(-1)
    board = Board(len(chosen), size, size, torch.Generator())
    board.cells[board.rows.unsqueeze(1), y, x] = THINGS[0]
    is_thing, is_wall = ahead_of(board.cells == THINGS[0]), ahead_of(board.cells == cells.WALL)
    reach = torch.zeros(is_thing.shape)
    for _ in range(max_steps):
        forward = torch.where(is_wall, reach, ahead(reach)).masked_fill(is_thing, 1.0)
        reach = (reach.roll(1, 1) + reach.roll(-1, 1) + forward) / 3
    x, y = starts.unbind(-1)
    return float(reach[:, :, y, x].double().mean()) / objects


def object_places(size: int) -> Int[Tensor, "places 2"]:
    """Return the x and y where objects may lie: both even, so that a way leads to every side of each."""
    return torch.tensor(list(product(range(2, size - 1, 2), repeat=2)))


def start_places(size: int) -> Int[Tensor, "places 2"]:
    """Return the x and y where episodes may start: both odd, so that no object is beside them."""
    return torch.tensor(list(product(range(1, size - 1, 2), repeat=2)))
