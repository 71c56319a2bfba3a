"""Play without memory: what is in view is gone for by the first rule that fits, otherwise the agent wanders."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..grid import cells
from ..grid.world import GridWorld
from .planning import ACT, Stage, plan

KEYS = tuple(cells.code("key", colour) for colour in cells.COLOURS)
BALLS = tuple(cells.code("ball", colour) for colour in cells.COLOURS)
BOXES = tuple(cells.code("box", colour) for colour in cells.COLOURS)
LOCKED_DOORS = tuple(cells.code("door", colour, cells.LOCKED) for colour in cells.COLOURS)
NOTHING = (cells.EMPTY,)


class Rule(NamedTuple):
    """With one of these in hand, do this facing one of those."""

    hand: tuple[int, ...]
    action: int
    things: tuple[int, ...]
    """What is faced; a box stands for all boxes of its colour."""
    shown: tuple[int, ...] = ()
    """Only where one of these is in view as well."""


REACH_GOAL = Rule((*NOTHING, *KEYS, *BALLS, *BOXES), cells.FORWARD, (cells.GOAL,))


class Reflexes:
    """A function of the present observation and of chance, which `env.rules` make.

    The first rule whose thing is in view counts: the agent goes there on a shortest way through what is in view. Where
    none counts, where there is no way, and 1 time of 8, it wanders: on (3 times of 4) or turning. It opens closed doors
    that it comes upon and shuns lava.
    """

    def __init__(self, env: GridWorld, seed: int = 0):
        self.view = env.view_size
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.codes = _codes_by_appearance().to(env.device)
        sets = [(rule.hand, rule.things, rule.shown or range(len(cells.CELLS))) for rule in env.rules]
        self.sets = [[_members(codes).to(env.device) for codes in three] for three in sets]
        self.closed_doors, self.open = _members(CLOSED_DOORS).to(env.device), _members(OPEN).to(env.device)
        self.actions = torch.tensor([rule.action for rule in env.rules], device=env.device)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        view, middle = self.view, self.view // 2
        kind, colour, state = observation["image"].transpose(1, 2).long().unbind(-1)
        seen = self.codes[kind, colour, state]  # by row and column of the view; the agent looks up
        hand, front = seen[:, -1, middle].clone(), seen[:, -2, middle]
        seen[:, -1, middle] = cells.UNSEEN
        faced, applies = [], []
        for hands, things, shown in self.sets:
            faced.append(things[seen])
            applies.append(hands[hand] & faced[-1].flatten(1).any(1) & shown[seen].flatten(1).any(1))
        applies = torch.stack(applies, 1)
        rule = applies.to(torch.uint8).argmax(1)  # the first that applies

        draws = torch.rand(3, len(hand), device=hand.device, generator=self.generator)
        either = torch.where(draws[0] < 0.5, cells.LEFT, cells.RIGHT)
        choice = torch.where(self.open[front] & (draws[1] < 0.75), cells.FORWARD, either)
        rows = (applies.any(1) & (draws[2] > 0.125)).nonzero().squeeze(1)
        wanted = torch.stack(faced, 1)[rows, rule[rows]]
        framed = [torch.nn.functional.pad(x, (1, 1, 1, 1)) for x in (seen[rows], wanted)]  # unseen: no way leads there
        made = plan(framed[0], [Stage(cells.FORWARD, framed[1])], most_steps=2 * view)
        here = (slice(None), 0, 3, view, middle + 1)
        choice[rows] = torch.where(made.steps[here].isinf(), choice[rows], made.choices[here].long())
        is_closed = self.closed_doors[front] & (choice == cells.FORWARD)
        return torch.where(choice == ACT, self.actions[rule], choice.masked_fill(is_closed, cells.TOGGLE))


CLOSED_DOORS = tuple(cells.code("door", colour, cells.CLOSED) for colour in cells.COLOURS)
OPEN = (*(i for i, cell in enumerate(cells.CELLS) if cells.can_enter(cell) and cell.kind != "lava"), *CLOSED_DOORS)


def _members(codes) -> Bool[Tensor, "codes"]:
    """Return which codes are among these."""
    is_member = torch.zeros(len(cells.CELLS), dtype=torch.bool)
    is_member[list(codes)] = True
    return is_member


@lru_cache
def _codes_by_appearance() -> Int[Tensor, "objects colours states"]:
    """Return the code of what looks so, by object, colour and state; of boxes, that of an empty one."""
    table = torch.zeros(len(cells.OBJECTS), len(cells.COLOURS), 4, dtype=torch.int64)
    for code, cell in reversed(list(enumerate(cells.CELLS))):
        table[cells.OBJECTS.index(cell.kind), cells.COLOURS.index(cell.colour), cell.state] = code
    return table
