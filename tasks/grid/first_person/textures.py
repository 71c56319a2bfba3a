"""Looks of the things of a grid world from inside it: walls, doors, floors and objects, as functions of a place.

A pattern takes coordinates from 0 to 1 on what it covers, `across` from the left and `height` from the floor (on a
floor: along the two sides of the cell). It returns how much of the thing's own colour is seen there and how much white
on top. All but keys, flags and players from a side look the same mirrored.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..cells import CLOSED, OPEN, Cell

SKY, FOG, GROUND, LAVA = (88, 146, 214), (190, 204, 216), (96, 90, 84), (255, 96, 10)
STONE = (150, 138, 122)
COLOURS = {
    "red": (232, 36, 36),
    "green": (36, 200, 52),
    "blue": (40, 92, 255),
    "purple": (168, 60, 232),
    "yellow": (255, 220, 30),
    "grey": (170, 170, 176),
}

Places = Float[np.ndarray, "*places"]


class Look(NamedTuple):
    """Look of a pattern: its colour times `shade`, plus white times `light`, where it covers anything."""

    shade: Float[np.ndarray, "*places"]
    light: Float[np.ndarray, "*places"] | float = 0.0
    covers: Bool[np.ndarray, "*places"] | bool = True


def bricks(across: Places, height: Places) -> Look:
    is_even = np.floor(height * 4) % 2 == 0
    joint = np.where(is_even, _near(across, 0.035, 0.0, 0.5, 1.0), _near(across, 0.035, 0.25, 0.75))
    bed = _near(height, 0.035, 0.25, 0.5, 0.75)
    return Look(np.where(joint | bed, 0.62, np.where(is_even, 1.0, 0.9)))


def closed_door(across: Places, height: Places) -> Look:
    frame = _near(across, 0.09, 0.0, 1.0) | (height > 0.91)
    groove = _near(across, 0.03, 0.5) | _near(height, 0.03, 0.5)
    knob = (abs(abs(across - 0.5) - 0.14) < 0.06) & _near(height, 0.06, 0.42)
    return Look(np.where(frame, 0.3, np.where(groove, 0.55, 0.95)), 0.9 * knob)


def locked_door(across: Places, height: Places) -> Look:
    x, y = abs(across - 0.5), height - 0.5
    hole = (np.hypot(x, y - 0.06) < 0.09) | (x < 0.045) & (abs(y + 0.04) < 0.1)
    plate = (x < 0.26) & (abs(y) < 0.2)
    dark = (x > 0.41) | (height > 0.91) | hole | _near(height, 0.06, 0.18, 0.8)
    return Look(np.where(dark, 0.22, np.where(plate, 0.4, 0.95)), 0.55 * (plate & ~hole))


def door_post(across: Places, height: Places) -> Look:
    return Look(np.where(_near(height, 0.05, 0.0, 1.0), 0.4, 0.8) + 0 * across)


def ground(across: Places, along: Places) -> Look:
    return Look(np.where(_near(across, 0.035, 0.0, 1.0) | _near(along, 0.035, 0.0, 1.0), 0.7, 1.0))


def carpet(across: Places, along: Places) -> Look:
    return Look(np.where(_near(across, 0.06, 0.0, 1.0) | _near(along, 0.06, 0.0, 1.0), 0.45, 0.8))


def threshold(across: Places, along: Places) -> Look:
    return Look(np.where(_near(across, 0.1, 0.0, 1.0) | _near(along, 0.1, 0.0, 1.0), 0.9, 0.5))


def goal_tile(across: Places, along: Places) -> Look:
    off = np.maximum(abs(across - 0.5), abs(along - 0.5))
    return Look(np.where(off > 0.42, 0.55, 1.0), 0.6 * ((off > 0.2) & (off < 0.32)))


def lava(across: Places, along: Places) -> Look:
    waves = np.cos(4 * np.pi * across) + np.cos(4 * np.pi * along)
    return Look(np.where(waves < -1, 0.62, 0.95), 0.3 * (waves > 1))


def ball(across: Places, height: Places) -> Look:
    x, y = across - 0.5, height - 0.37
    rim = np.sqrt(np.clip(1 - (x**2 + y**2) / 0.37**2, 0, 1))
    return Look(0.45 + 0.6 * rim, 0.75 * np.exp(-(x**2 + (y - 0.14) ** 2) / 0.012), rim > 0)


def box(across: Places, height: Places) -> Look:
    x = abs(across - 0.5)
    edge = (x > 0.34) | (height < 0.08) | (height > 0.7)
    ribbon = ~edge & ((x < 0.08) | _near(height, 0.065, 0.4))
    covers = (x < 0.43) & _near(height, 0.39, 0.39)
    return Look(np.where(edge, 0.5, np.where(ribbon, 0.4, 1.0)), 0.6 * ribbon, covers)


def key(across: Places, height: Places) -> Look:
    x = across - 0.5
    ring = np.hypot(x, height - 0.7)
    bow = (ring < 0.3) & (ring > 0.11)
    shaft = (abs(x) < 0.095) & _near(height, 0.25, 0.25)
    teeth = (x > 0) & (x < 0.36) & _near(height, 0.075, 0.08, 0.31)
    return Look(np.where(bow & (ring > 0.24), 0.75, 1.0), 0.15 * bow, bow | shaft | teeth)


def stand(across: Places, along: Places) -> Look:
    off = np.maximum(abs(across - 0.5), abs(along - 0.5))
    return Look(np.where(off > 0.3, 1.0, 0.4), 0.25 * (off < 0.12))


def flag(across: Places, height: Places) -> Look:
    """A pennant on a pole."""
    x = across - 0.5
    pole = (abs(x + 0.26) < 0.06) & _near(height, 0.485, 0.485)
    pennant = (x > -0.22) & (abs(height - 0.72) < 0.24 * (0.45 - x) / 0.67)
    return Look(np.where(pole, 0.25, 1.0), 0.5 * pole, pole | pennant)


def fallen_flag(across: Places, height: Places) -> Look:
    """The same on the floor."""
    x = across - 0.5
    pole = (abs(x) < 0.45) & _near(height, 0.05, 0.05)
    pennant = (x > -0.2) & (height > 0) & (height < 0.42 * (0.45 - x) / 0.67)
    return Look(np.where(pole, 0.25, 1.0), 0.5 * pole, pole | pennant)


def player(heading: int, carries: bool) -> Callable[[Places, Places], Look]:
    """Return the look of a player that heads this many quarters to the right of where the viewer looks.

    From in front it shows two eyes, from behind a dark pack, from a side one eye ahead. One that carries has a pennant
    in white above its head.
    """

    def look(across: Places, height: Places) -> Look:
        x = across - 0.5
        body = (abs(x) < 0.3 - 0.12 * (height > 0.42)) & _near(height, 0.24, 0.24)
        head = np.hypot(x, height - 0.58) < 0.17
        eye = {1: 0.1, 3: -0.1}.get(heading)
        eyes = np.hypot((abs(x) - 0.07) if heading == 2 else x - (eye or 0), height - 0.6) < 0.045
        eyes = eyes & (heading != 0)
        pack = (heading == 0) & (abs(x) < 0.16) & (abs(height - 0.28) < 0.14)
        side = (heading in (1, 3)) & (np.sign(eye or 1) * x < -0.12) & (height < 0.4)
        pennant = carries & (x > -0.1) & (abs(height - 0.87) < 0.13 * (0.4 - x) / 0.5)
        pole = carries & (abs(x + 0.12) < 0.035) & (height > 0.5) & (height < 0.99)
        white = eyes | pennant | pole
        return Look(np.where(white, 0.0, np.where(pack | side, 0.35, 0.95)), 1.0 * white, body | head | pennant | pole)

    return look


PLAYERS = [player(heading, carries) for carries in (False, True) for heading in range(4)]
"""By the state of their cell."""


def beacon(across: Places, height: Places) -> Look:
    """A hovering diamond, which shows from afar where a goal is."""
    off = abs(across - 0.5) / 0.3 + abs(height - 0.55) / 0.45
    return Look(np.where(off > 0.75, 0.6, 1.0), 0.8 * (off < 0.45), off < 1)


def _near(places: Places, width: float, *where: float) -> Bool[np.ndarray, "*places"]:
    return np.any([abs(places - place) < width for place in where], axis=0)


class Paint(NamedTuple):
    """A pattern and its own colour."""

    pattern: Callable[[Places, Places], Look]
    colour: tuple[int, int, int]


class Painted(NamedTuple):
    """Mean over some samples of each paint at each place."""

    colours: Float[np.ndarray, "paints *places 3"]
    """Red, green and blue, from 0 to 255."""
    covered: Float[np.ndarray, "paints *places"]
    """Share of the samples that shows anything."""


def paint(
    paints: list[Paint], across: Float[np.ndarray, "*places samples"], height: Float[np.ndarray, "*places samples"]
) -> Painted:
    """Return what these paints look like there."""
    means = {}
    for pattern in dict.fromkeys(paint.pattern for paint in paints):
        shade, light, covers = np.broadcast_arrays(*pattern(across, height))
        count = np.maximum(covers.sum(-1), 1)
        means[pattern] = (shade * covers).sum(-1) / count, (light * covers).sum(-1) / count, covers.mean(-1)
    shade, light, covered = (np.stack([means[paint.pattern][i] for paint in paints]) for i in range(3))
    own = np.array([paint.colour for paint in paints], float).reshape(-1, *[1] * (across.ndim - 1), 3)
    return Painted((shade[..., None] * own + 255 * light[..., None]).clip(0, 255), covered)


def wall_of(cell: Cell) -> Paint | None:
    """Return what a cell shows to those who look at its sides; of an open door, at its posts."""
    if cell.kind == "wall":
        return Paint(bricks, STONE if cell.colour == "grey" else COLOURS[cell.colour])
    if cell.kind == "door":
        return Paint({OPEN: door_post, CLOSED: closed_door}.get(cell.state, locked_door), COLOURS[cell.colour])
    return None


def tile_of(cell: Cell) -> Paint:
    """Return what a cell shows on its floor."""
    if cell.kind == "lava":
        return Paint(lava, LAVA)
    if cell.kind == "door" and cell.state != OPEN:
        return Paint(ground, GROUND)
    pattern = {"floor": carpet, "goal": goal_tile, "door": threshold, "stand": stand}.get(cell.kind)
    return Paint(ground, GROUND) if pattern is None else Paint(pattern, COLOURS[cell.colour])


def sprite_of(cell: Cell) -> Paint | None:
    """Return what stands in the middle of a cell, or None."""
    if cell.kind == "player":
        return Paint(PLAYERS[cell.state], COLOURS[cell.colour])
    things = {"key": key, "ball": ball, "box": box, "goal": beacon, "flag": (flag, fallen_flag)[cell.state > 0]}
    pattern = things.get(cell.kind)
    return None if pattern is None else Paint(pattern, COLOURS[cell.colour])


def paints(
    paint_of: Callable[[Cell], Paint | None], cells: tuple[Cell, ...]
) -> tuple[list[Paint], Int[np.ndarray, "codes"]]:
    """Return the different paints of these cells, and which of them each has, by code; 0 if it has none."""
    found = [paint_of(cell) for cell in cells]
    different = list(dict.fromkeys(paint for paint in found if paint is not None))
    return different, np.array([0 if paint is None else different.index(paint) for paint in found])
