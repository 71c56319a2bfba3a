"""Play without memory: the agent goes for what is in view by the first rule that fits, and explores otherwise."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..grid import cells
from ..grid.cells import BALLS, BOXES, KEYS
from ..grid.layouts import FACING_UP
from ..grid.world import GridWorld
from .planning import ACT, IS_CLOSED_DOOR, NO_LIMIT, Stage, can_open_doors, passable, plan

NOTHING = (cells.EMPTY,)
LOCKED_DOORS = cells.coloured("door", cells.LOCKED)


class Rule(NamedTuple):
    """With one of these in hand, do this facing one of those."""

    hand: tuple[int, ...]
    action: int
    things: tuple[int, ...]
    """Cells to face; a box stands for all boxes of its colour."""
    shown: tuple[int, ...] = ()
    """Only where one of these is in view as well."""


REACH_GOAL = Rule((*NOTHING, *KEYS, *BALLS, *BOXES), cells.FORWARD, (cells.GOAL,))


class Reactive:
    """A function of the present observation and of chance, which `env.rules` make.

    The first rule whose thing is in view counts: the agent goes there on a shortest way through what is in view. Where
    none counts, where no way is shorter than two views, and 1 time of 8, it explores: on (3 times of 4) or turning. It
    opens closed doors that it comes upon, if it can, and shuns lava.
    """

    distraction = 0.125

    def __init__(self, env: GridWorld, seed: int = 0):
        self.view, self.can_open, self.most_steps = env.view_size, can_open_doors(env), 2 * env.view_size
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.codes = _codes_by_appearance().to(env.device)
        sets = [(rule.hand, rule.things, rule.shown or range(len(cells.CELLS))) for rule in env.rules]
        self.sets = [[_members(codes).to(env.device) for codes in three] for three in sets]
        self.passable, self.is_closed_door = passable(self.can_open).to(env.device), IS_CLOSED_DOOR.to(env.device)
        self.actions = torch.tensor([rule.action for rule in env.rules], device=env.device)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        view, middle = self.view, self.view // 2
        kind, colour, state = observation["image"].transpose(1, 2).long().unbind(-1)
        seen = self.codes[kind, colour, state]  # by row and column of the view; the agent looks up
        hand = seen[:, -1, middle].clone()
        seen[:, -1, middle] = cells.UNSEEN
        faced, applies = [], []
        for hands, things, shown in self.sets:
            faced.append(things[seen])
            applies.append(hands[hand] & faced[-1].flatten(1).any(1) & shown[seen].flatten(1).any(1))
        applies = torch.stack(applies, 1)
        rule = applies.to(torch.uint8).argmax(1)  # the first that applies

        choice, goes = self._explore(seen), applies.any(1)
        if self.distraction:
            goes &= self._draw(len(hand)) > self.distraction
        rows = goes.nonzero().squeeze(1)
        wanted = torch.stack(faced, 1)[rows, rule[rows]]
        framed = [torch.nn.functional.pad(x, (1, 1, 1, 1)) for x in (seen[rows], wanted)]  # unseen: no way leads there
        made = plan(framed[0], [Stage(cells.FORWARD, framed[1])], can_open=self.can_open, most_steps=self.most_steps)
        here = (slice(None), 0, FACING_UP, view, middle + 1)
        choice[rows] = torch.where(made.steps[here].isinf(), choice[rows], made.choices[here].long())
        opens = self.is_closed_door[seen[:, -2, middle]] & (choice == cells.FORWARD)
        return torch.where(choice == ACT, self.actions[rule], choice.masked_fill(opens, cells.TOGGLE))

    def _explore(self, seen: Int[Tensor, "B V V"]) -> Int[Tensor, " B"]:
        """Return an action that shows more."""
        turns, strolls = self._draw(2, len(seen))
        front = self.passable[seen[:, -2, self.view // 2]]
        return torch.where(front & (strolls < 0.75), cells.FORWARD, torch.where(turns < 0.5, cells.LEFT, cells.RIGHT))

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.generator.device, generator=self.generator)


class WallFollower(Reactive):
    """Goes for what is in view, as `Reactive` does, and otherwise keeps a wall to its right.

    It knows what it sees now and whether it turned right just now, no more: not where it is, nor where it has been.

    Args:
        wander: How often, instead of following the wall, it goes forward if it can and turns at random if it cannot.
    """

    distraction = 0.0

    def __init__(self, env: GridWorld, wander: float = 0.0, seed: int = 0):
        super().__init__(env, seed)
        self.wander, self.most_steps = wander, NO_LIMIT
        self.turned_right = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        actions = super().__call__(observation)
        self.turned_right = actions == cells.RIGHT
        return actions

    def _explore(self, seen: Int[Tensor, "B V V"]) -> Int[Tensor, " B"]:
        strays, turns = self._draw(2, len(seen))
        front, right = (self.passable[seen[:, row, self.view // 2 + aside]] for row, aside in ((-2, 0), (-1, 1)))
        follow = torch.where(front, cells.FORWARD, cells.LEFT).masked_fill(right & ~self.turned_right, cells.RIGHT)
        stroll = torch.where(front, cells.FORWARD, torch.where(turns < 0.5, cells.RIGHT, cells.LEFT))
        return torch.where(strays < self.wander, stroll, follow)


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
