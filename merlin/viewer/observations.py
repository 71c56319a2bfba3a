"""Observations drawn entry by entry: categories as numbers on colours, grids as pictures, vectors as bars."""

import textwrap
from functools import lru_cache

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import ImageColor

from merlin.networks.categories import sizes_and_starts
from merlin.networks.spaces import ROOT, Picture, Symbols, kind
from merlin.viewer.canvas import BLUE, EMPTY, FAINT, GREY, INK, RED, Canvas, Number, category_colour, mix

MINIGRID_SIZES = (11, 6, 4)  # object, colour, state
NEUTRAL = "#e6eaf0"
MOST_NUMBERS = 32  # of a vector that are drawn as bars


def is_picture(space: gymnasium.Space) -> bool:
    """Return whether an entry is drawn as a picture, which takes the room that others leave."""
    return kind(space) in ("image", "symbols")


def is_minigrid(space: gymnasium.Space) -> bool:
    """Return whether an entry is a view of MiniGrid's, which counts columns first."""
    return isinstance(space, Symbols) and len(space.shape) == 3 and tuple(space.nvec[0, 0]) == MINIGRID_SIZES


def is_word(space: gymnasium.Space) -> bool:
    """Return whether an entry is one category, which a word says."""
    return isinstance(space, spaces.Discrete)


def label(name: str) -> str:
    """Return an entry's name for people."""
    return "" if name == ROOT else name.replace("_", " ")


def in_words(entries: dict[str, gymnasium.Space], observation: dict[str, np.ndarray]) -> str:
    """Return the single categories of an observation in words, such as `card 2, position 5`; "" if there are none."""
    said = [f"{label(name)} {observation[name]}".strip() for name, space in entries.items() if is_word(space)]
    return ", ".join(said[:3])


def as_picture(space: gymnasium.Space, value: np.ndarray) -> np.ndarray:
    """Return an image or a symbolic grid as uint8 [Y, X, 3]."""
    if isinstance(space, Symbols):
        return _symbols(space, value)
    assert isinstance(space, Picture), "other spaces are no pictures"
    low, high = float(space.low.min()), float(space.high.max())
    pixels = np.moveaxis(value, (space.row_axis, space.row_axis + 1), (0, 1))
    if pixels.ndim == 4:  # the newest of stacked frames
        pixels = pixels[:, :, -1]
    pixels = np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] != 3:  # grey, or of unknown channels such as stacked frames
        pixels = pixels.mean(-1, keepdims=True).repeat(3, -1)
    return (255 * pixels).round().astype(np.uint8)


def height_of(space: gymnasium.Space) -> int:
    """Return how high an entry that is not a picture is drawn, in points."""
    return {"category": 24, "vector": 40, "text": 44}[kind(space)]


def draw_entry(
    canvas: Canvas,
    x: Number,
    y: Number,
    width: Number,
    height: Number,
    space: gymnasium.Space,
    value: np.ndarray,
    truth: np.ndarray | None = None,
    is_coloured: bool = True,
    is_centred: bool = False,
) -> None:
    """Draw an entry into a box, pictures at its left or centred.

    Args:
        truth: Differences from it are marked.
        is_coloured: Single categories have colours, by which the eye finds equal ones. One entry should have them.
    """
    if is_picture(space):
        canvas.picture(x, y, width, height, as_picture(space, value), is_centred)
    elif kind(space) == "category":
        _draw_categories(canvas, x, y, width, space, value, truth, is_coloured)
    elif kind(space) == "text":
        _draw_text(canvas, x, y, width, space, value, truth)
    else:
        _draw_vector(canvas, x, y, width, height, space, value)


def draw_word(
    canvas: Canvas,
    x: Number,
    y: Number,
    width: Number,
    height: Number,
    space: spaces.Discrete,
    value: int,
    is_coloured: bool,
    size: Number = 11,
) -> None:
    """Draw one category as its number, on its colour or on grey."""
    index = int(value) - int(space.start)
    is_dark = is_coloured and index > 0
    canvas.box(x, y, width, height, category_colour(index) if is_coloured else NEUTRAL, radius=3)
    canvas.text(x + width / 2, y + height / 2, str(int(value)), size, "#ffffff" if is_dark else INK, "mm", bold=True)


def coloured_entry(entries: dict[str, gymnasium.Space]) -> str | None:
    """Return the entry whose categories have colours: the first, if it is one category."""
    name, space = next(iter(entries.items()))
    return name if is_word(space) else None


def _draw_categories(canvas, x, y, width, space, value, truth, is_coloured) -> None:
    if is_word(space):
        draw_word(canvas, x, y, width, 22, space, int(value), is_coloured)
        if truth is not None and value != truth:
            canvas.box(x - 2, y - 2, width + 4, 26, outline=RED, line=1.5, radius=4)
        return
    values, (_, starts) = value.reshape(-1), sizes_and_starts(space)
    wrong = np.zeros(len(values), bool) if truth is None else values != truth.reshape(-1)
    if len(values) > width / 6:
        canvas.strip(x, y, width, 22, [category_colour(int(v) - s) for v, s in zip(values, starts, strict=True)])
        return
    cell = min(22, width / len(values))
    for i, (number, start) in enumerate(zip(values, starts, strict=True)):
        index = int(number) - start
        canvas.box(x + i * cell, y, cell - 1, 22, category_colour(index), RED if wrong[i] else None, 1.5, 2)
        if cell >= 14:
            colour = INK if index == 0 else "#ffffff"
            canvas.text(x + (i + 0.5) * cell - 0.5, y + 11, str(number), 10, colour, "mm", bold=True)


def _draw_text(canvas, x, y, width, space, value, truth) -> None:
    tokens = value.tolist()
    end = tokens.index(0) if 0 in tokens else len(tokens)
    words = [space.vocabulary[token] for token in tokens[:end]]
    joined = ("" if all(len(word) == 1 for word in words) else " ").join(words)
    colour = RED if truth is not None and (value != truth).any() else INK
    lines = textwrap.wrap(joined, max(8, int(width / 5.9))) or ["(empty)"]
    for i, line in enumerate(lines[:3]):
        canvas.text(x, y + 7 + 13 * i, line + ("…" if i == 2 and len(lines) > 3 else ""), 9.5, colour, width=width)


def _draw_vector(canvas, x, y, width, height, space, value) -> None:
    numbers = np.nan_to_num(value.reshape(-1).astype(np.float64))
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
    bounded = np.isfinite(low) & np.isfinite(high) & (np.abs(low) < 1e6) & (np.abs(high) < 1e6)
    reach = np.where(bounded, np.maximum(np.abs(low), np.abs(high)), np.maximum(np.abs(numbers), 1.0))
    shares = np.clip(numbers / np.maximum(reach, 1e-9), -1, 1)
    signed = bool((np.where(bounded, low, -1) < 0).any())
    canvas.box(x, y, width, height, EMPTY, radius=2)
    if len(shares) > MOST_NUMBERS:
        canvas.strip(x, y, width, height, [mix(BLUE if s >= 0 else RED, abs(s)) for s in shares])
        return
    middle, half = (y + height / 2, height / 2 - 2) if signed else (y + height - 2, height - 4)
    cell = width / len(shares)
    for i, share in enumerate(shares):
        bar = half * abs(share)
        top = middle - bar if share > 0 else middle
        canvas.box(x + i * cell + 1, top, cell - 2, max(bar, 0.5), BLUE if share >= 0 else RED)
    canvas.line([(x, middle), (x + width, middle)], FAINT, 0.5)
    if len(shares) <= 2:
        canvas.text(x + width / 2, y + 8, "  ".join(f"{n:.2f}" for n in numbers), 8.5, GREY, "mm", width=width)


def _symbols(space: Symbols, value: np.ndarray) -> np.ndarray:
    if is_minigrid(space):
        return _minigrid(value.astype(np.uint8).tobytes(), value.shape)
    colours = [ImageColor.getrgb(category_colour(index)) for index in range(int(space.nvec.max()))]
    shown = value - space.start
    return np.array(colours, np.uint8)[shown[..., 0] if shown.ndim == 3 else shown]


@lru_cache(maxsize=1024)  # what a slot holds is drawn at every step
def _minigrid(view: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return a view of MiniGrid as MiniGrid draws it: columns first, the agent in the middle of the last row."""
    from minigrid.core.grid import Grid

    grid, visible = Grid.decode(np.frombuffer(view, np.uint8).reshape(shape))
    return grid.render(16, (shape[0] // 2, shape[1] - 1), 3, visible)
