"""Contents of the cells of a game, as numbers: as the map holds them, and as a player sees them.

On the map a team is red or blue, and a player has one of four headings. A player sees its own side or theirs, and
headings relative to its own. Grids hold cells packed into an int32:

    bits   0-7   8-19                                                                24-30  31
           code  of the map: open cells ahead, at most 5, 3 bits for each direction  code   hides what lies behind it
"""

import torch
from jaxtyping import Int32
from torch import Tensor

from ..grid.cells import EMPTY, UNSEEN, Cell, can_see_behind

OBJECTS = ("unseen", "empty", "wall", "stand", "flag at home", "flag lying", "player")
NONE, OWN, THEIRS = range(3)
NUM_STATES = 8  # of a player: heading + 4 if it carries a flag
COLOURS = ("red", "blue")  # of the teams; seen from inside, theirs and own
AT_HOME, LYING = range(2)

CELLS = (
    Cell("unseen"),
    Cell("empty"),
    Cell("wall", "grey"),
    *(Cell("stand", colour) for colour in COLOURS),
    *(Cell("flag", colour, state) for state in (AT_HOME, LYING) for colour in COLOURS),
    *(Cell("player", colour, state) for colour in COLOURS for state in range(NUM_STATES)),
)
WALL, STAND, FLAG, PLAYER = 2, 3, 5, 9
"""Codes. Those of a stand are of red's, to which the team is added; a flag's red's at home, + team + 2 if it lies; a
player's red's, + 8 · team + heading + 4 if it carries."""
assert CELLS[EMPTY].kind == "empty" and CELLS[UNSEEN].kind == "unseen"


def packed() -> Int32[Tensor, "codes"]:
    """Return each cell as grids hold it."""
    codes = torch.arange(len(CELLS))
    hides = torch.tensor([not can_see_behind(cell) for cell in CELLS])
    return (codes | codes << 24 | hides.long() << 31).to(torch.int32)


def seen() -> Int32[Tensor, "team heading codes"]:
    """Return (object, side, state) of each cell, 8 bits each, as it is seen by a player of this team and heading."""
    table = torch.empty(2, 4, len(CELLS), dtype=torch.int32)
    kinds = {"stand": "stand", "player": "player", "flag": ("flag at home", "flag lying")}
    for code, cell in enumerate(CELLS):
        kind = kinds.get(cell.kind, cell.kind)
        name = kind if isinstance(kind, str) else kind[cell.state]
        for team, colour in enumerate(COLOURS):
            side = NONE if code < STAND else OWN if cell.colour == colour else THEIRS
            for heading in range(4):
                table[team, heading, code] = OBJECTS.index(name) | side << 8 | _state(cell, heading) << 16
    return table


def relative() -> Int32[Tensor, "team heading codes"]:
    """Return each cell, packed, as it would be on the map to a blue player that heads right, the same to each player.

    So the own side is blue and the other red, and headings are relative: a view from inside tells no more.
    """
    table = torch.empty(2, 4, len(CELLS), dtype=torch.int64)
    for code, cell in enumerate(CELLS):
        for team, colour in enumerate(COLOURS):
            side = cell.colour if code < STAND else "blue" if cell.colour == colour else "red"
            for heading in range(4):
                state = _state(cell, heading) if cell.kind == "player" else cell.state
                table[team, heading, code] = CELLS.index(Cell(cell.kind, side, state))
    return packed()[table]


def _state(cell: Cell, heading: int) -> int:
    return (cell.state - heading & 3) + (cell.state & 4) if cell.kind == "player" else 0
