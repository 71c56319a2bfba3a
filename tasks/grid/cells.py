"""Contents of the cells of a grid world, as one small number each, and MiniGrid's rules for them, as tables.

A cell is an object with a colour and a state, as MiniGrid encodes them; a box also has the key inside it, which is not
seen. `code` numbers them. Everything here is a table over these numbers, made once.

Grids hold cells packed into an int32, so that one lookup brings what is seen and what it means:

    bits   0-7     8-15    16-23  24-30  31
           object  colour  state  code   hides what lies behind it
"""

from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64, UInt8
from torch import Tensor

OBJECTS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
OPEN, CLOSED, LOCKED = range(3)
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
NUM_ACTIONS = 7


class Cell(NamedTuple):
    """One thing that a cell can hold."""

    kind: str
    colour: str = "red"
    state: int = OPEN
    content: "Cell | None" = None


def _all_cells() -> list[Cell]:
    keys = [Cell("key", colour) for colour in COLOURS]
    return [
        Cell("unseen"),
        Cell("empty"),
        *(Cell("wall", colour) for colour in COLOURS),
        *(Cell("floor", colour) for colour in COLOURS),
        *(Cell("door", colour, state) for colour in COLOURS for state in (OPEN, CLOSED, LOCKED)),
        *keys,
        *(Cell("ball", colour) for colour in COLOURS),
        *(Cell("box", colour, OPEN, content) for colour in COLOURS for content in (None, *keys)),
        *(Cell("goal", colour) for colour in COLOURS),
        Cell("lava"),
    ]


CELLS = tuple(_all_cells())
_CODES = {cell: code for code, cell in enumerate(CELLS)}
UNSEEN, EMPTY = 0, 1


def code(kind: str, colour: str = "grey", state: int = OPEN, content: Cell | None = None) -> int:
    """Return the number of a cell. Empty cells and lava have no colour of their own.

    Raises:
        ValueError: There is no such cell.
    """
    if kind in ("unseen", "empty", "lava"):
        colour = "red"
    cell = Cell(kind, colour, state, content)
    if cell not in _CODES:
        raise ValueError(f"a cell holds one of {', '.join(OBJECTS[1:-1])} in one of {', '.join(COLOURS)}, not {cell}.")
    return _CODES[cell]


def coloured(kind: str, state: int = OPEN) -> tuple[int, ...]:
    """Return the codes of a kind of thing in every colour, in the order of `COLOURS`."""
    return tuple(code(kind, colour, state) for colour in COLOURS)


WALL, GOAL, LAVA = code("wall"), code("goal", "green"), code("lava")
FLOORS, KEYS, BALLS, BOXES = map(coloured, ("floor", "key", "ball", "box"))


def appearances() -> UInt8[np.ndarray, "codes 3"]:
    """Return (object, colour, state) of each cell, as MiniGrid shows it."""
    rows = [(OBJECTS.index(cell.kind), COLOURS.index(cell.colour), cell.state) for cell in CELLS]
    return np.array(rows, np.uint8)


def packed() -> Int32[Tensor, "codes"]:
    """Return each cell as grids hold it."""
    seen = appearances().astype(np.int64) @ [1, 1 << 8, 1 << 16]
    hides = [not can_see_behind(cell) for cell in CELLS]
    return torch.from_numpy((seen + (np.arange(len(CELLS)) << 24) + (np.array(hides) << 31)).astype(np.int32))


def code_of(cells: Int32[Tensor, "*cells"]) -> Int32[Tensor, "*cells"]:
    """Return the codes of packed cells."""
    return cells >> 24 & 127


def can_see_behind(cell: Cell) -> bool:
    """Return whether the view goes on behind the cell."""
    return cell.kind != "wall" and not (cell.kind == "door" and cell.state != OPEN)


def can_enter(cell: Cell) -> bool:
    """Return whether the agent may walk onto the cell."""
    return cell.kind in ("empty", "floor", "goal", "lava") or (cell.kind == "door" and cell.state == OPEN)


class Act(NamedTuple):
    """Effect of an action on the cell ahead."""

    ahead: int
    carried: int
    moves: bool = False
    reaches_goal: bool = False
    dies: bool = False


def act(action: int, ahead: int, carried: int) -> Act:
    """Return what `action` leads to with the cell `ahead` and `carried` (or `EMPTY`) in hand."""
    cell, hand = CELLS[ahead], CELLS[carried]
    if action == FORWARD and can_enter(cell):
        return Act(ahead, carried, True, cell.kind == "goal", cell.kind == "lava")
    if action == PICKUP and cell.kind in ("key", "ball", "box") and carried == EMPTY:
        return Act(EMPTY, ahead)
    if action == DROP and ahead == EMPTY and carried != EMPTY:
        return Act(carried, EMPTY)
    if action == TOGGLE and cell.kind == "box":
        return Act(EMPTY if cell.content is None else _CODES[cell.content], carried)
    if action == TOGGLE and cell.kind == "door":
        if cell.state != LOCKED:
            return Act(_CODES[cell._replace(state=CLOSED if cell.state == OPEN else OPEN)], carried)
        if hand.kind == "key" and hand.colour == cell.colour:
            return Act(_CODES[cell._replace(state=OPEN)], carried)
    return Act(ahead, carried)


class Outcomes(NamedTuple):
    """Effects of every action with every code carried and every code ahead: `Act` as tables."""

    ahead: Int32[Tensor, "actions carried ahead"]
    """Packed."""
    carried: Int64[Tensor, "actions carried ahead"]
    moves: Bool[Tensor, "actions carried ahead"]
    reaches_goal: Bool[Tensor, "actions carried ahead"]
    dies: Bool[Tensor, "actions carried ahead"]


def outcomes() -> Outcomes:
    """Return the tables of `act`."""
    return Outcomes(*(table.clone() for table in _outcomes()))


@lru_cache
def _outcomes() -> Outcomes:
    """Return `outcomes`, computed once."""
    codes = range(len(CELLS))
    acts = (act(action, ahead, carried) for action in range(NUM_ACTIONS) for carried in codes for ahead in codes)
    table = torch.from_numpy(np.fromiter(chain.from_iterable(acts), np.int64))
    ahead, carried, *flags = table.view(NUM_ACTIONS, len(CELLS), len(CELLS), -1).unbind(-1)
    return Outcomes(packed()[ahead], carried, *(flag.bool() for flag in flags))
