"""Kinds of entries: what each entry of an observation is read as, by rules or as a user says.

Settled once, the kind travels with the space: `Picture`, `Vector`, `Symbols` and `Tokens` are spaces like any other,
whose class says it. Spaces of categories (Discrete, MultiDiscrete, MultiBinary) need no class of their own.
"""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Text

from merlin.errors import MerlinError, option

Kind = Literal["image", "vector", "category", "symbols", "text"]

MOST_CATEGORIES = 2**18  # of all variables of an entry; each has its own weights, together 400 MB where 400 units read
MOST_SHADES = 2**16  # from the lowest to the highest of a picture; wider bounds are no scale
MOST_FRAMES = 16  # stacked
# (rows and columns at least, channels at most) of a Box that is taken for a picture unless told
INTEGER_PICTURE, FLOAT_PICTURE = (5, 16), (16, 4)


class Vector(Box):
    """Numbers without neighbours, flattened, of any shape."""

    def __init__(self, box: Box):
        super().__init__(box.low, box.high, box.shape, box.dtype.type)


class Picture(Box):
    """A picture, whose rows and columns are two neighbouring axes; the others are channels: colours, stacked frames."""

    def __init__(self, box: Box, row_axis: int):
        """
        Args:
            row_axis: The axis that counts rows; the next one counts columns.
        """
        super().__init__(box.low, box.high, box.shape, box.dtype.type)
        self.row_axis = row_axis

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.shape[self.row_axis : self.row_axis + 2]
        return rows, columns

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """The axes that are neither rows nor columns, in order: () of a grey picture, (frames, colours) of a stack."""
        return self.shape[: self.row_axis] + self.shape[self.row_axis + 2 :]


class Symbols(MultiDiscrete):
    """A grid (Y, X) or (Y, X, C) of categories that are the same in every cell."""

    def __init__(self, space: MultiDiscrete):
        super().__init__(space.nvec, dtype=space.dtype.type, start=space.start)


class Tokens(MultiDiscrete):
    """A text as token ids, one per position; id 0 is padding, and the text ends at the first of them."""

    def __init__(self, vocabulary: tuple[str, ...], length: int, seed: int | None = None):
        """
        Args:
            vocabulary: What each id stands for, `vocabulary[0]` being the padding.
        """
        self.vocabulary = tuple(vocabulary)
        super().__init__([len(self.vocabulary)] * length, seed=seed)


def kind(space: gymnasium.Space) -> Kind:
    """Return what an entry is read as; of a space that is not settled yet, what the rules make of it.

    A Box is an `image` if its values run from 0 to 255 or from 0 to 1, and its shape is (Y, X, C), (C, Y, X) or a stack
    of at most 16 such frames. Of integers it has at least 5 rows and columns and at most 16 channels, of floats at
    least 16 and at most 4, and never more channels than rows or columns, if they are first no more than half as many.
    (Y, X) is one if it is uint8 from 0 to 255. Any other Box is a `vector`. A MultiDiscrete (Y, X, C) whose cells are
    all alike is `symbols`, Tokens are a `text`, and anything else is `category`.
    """
    match space:
        case Tokens():
            return "text"
        case Vector():
            return "vector"
        case Picture():
            return "image"
        case Symbols():
            return "symbols"
        case Box():
            return "image" if _looks_like_picture(space) else "vector"
        case MultiDiscrete() if len(space.shape) == 3 and _has_equal_cells(space):
            return "symbols"
    return "category"


def settle(name: str, space: gymnasium.Space, wanted: Any = None) -> gymnasium.Space:
    """Return the space of an entry with its kind settled; it has the same values.

    Args:
        wanted: The kind, as somebody typed it; none goes by the rules (`kind`).

    Raises:
        MerlinError: The entry cannot be read, or not as what is wanted.
    """
    check_supported(name, space)
    if 0 in (space.shape or ()):
        raise MerlinError(f"Entries hold something, but entry '{name}', {_told(space)}, is empty: leave it out.")
    readings = _readings(space)
    if wanted is not None and wanted not in list(readings):
        raise MerlinError(
            f"Entry '{name}', {_told(space)}, can be read as {_listed(readings, 'or')}, but environment.kinds.{name} "
            f"is {wanted!r}: choose what fits."
        )
    found = readings[wanted if wanted is not None else kind(space)]
    if num_categories(found) > MOST_CATEGORIES:
        remedy = (
            f", or read numbers with {option('set', f'environment.kinds.{name}=vector')}"
            if "vector" in readings
            else ""
        )
        raise MerlinError(
            f"An entry has at most {MOST_CATEGORIES:,} categories, but '{name}', {_told(space)}, has "
            f"{num_categories(found):,}: wrap the environment so that it has fewer{remedy}."
        )
    return found


def check_supported(name: str, space: gymnasium.Space) -> None:
    """Raise a MerlinError unless there is a network for this entry."""
    if isinstance(space, Text):
        raise MerlinError(
            "Texts are turned into token ids for environments that are made one by one (gymnasium.make); entry "
            f"'{name}' is a Text of a batch or of a loop of your own: return ids, in merlin.networks.spaces.Tokens, "
            "or leave it out."
        )
    if not isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary)):
        raise MerlinError(
            "Observation spaces are made of Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple; "
            f"entry '{name}' is a {type(space).__name__}: leave it out with a wrapper."
        )


def picture_by_bounds(space: gymnasium.Space) -> gymnasium.Space:
    """Return a bounded Box (Y, X) or (Y, X, C) as a picture, as version 0.2.0 read it, and anything else as it is."""
    if type(space) is Box and len(space.shape) in (2, 3) and min(space.shape[:2]) >= 5:
        low, high = float(space.low.min()), float(space.high.max())
        if np.isfinite([low, high]).all() and low < high:
            return Picture(space, 0)
    return space


def num_categories(space: gymnasium.Space) -> int:
    """Return how many categories the variables of a space have together; 0 of numbers."""
    match space:
        case Discrete():
            return int(space.n)
        case MultiDiscrete():
            return sum(int(n) for n in space.nvec.flat)
        case MultiBinary():
            return 2 * int(np.prod(space.shape))
    return 0


def describe_entries(spaces: dict[str, gymnasium.Space]) -> list[str]:
    """Return what each entry is read as, in words such as `camera: image of 84 x 84 pixels, grey, uint8, 0 to 255`."""
    return [f"{name}: {_described(space)}" for name, space in spaces.items()]


def _described(space: gymnasium.Space) -> str:
    match space:
        case Tokens():
            return f"text of at most {space.shape[0]} tokens out of {len(space.vocabulary) - 1}"
        case Symbols():
            categories = np.atleast_1d(space.nvec[0, 0]).tolist()
            return f"symbols in {_by(space.shape[:2])} cells of {_listed(categories, 'and')} categories"
        case Picture():
            where = "first" if space.row_axis == len(space.shape) - 2 else "last"
            channels = f"{_many(space.channel_shape[-1], 'channel')} {where}" if space.channel_shape else "grey"
            frames = f"{space.shape[0]} frames of " if len(space.shape) == 4 else ""
            return f"image of {_by(space.size)} pixels, {frames}{channels}, {space.dtype}, {_bounds(space)}"
        case Box():
            shape = f" ({_by(space.shape)})" if len(space.shape) > 1 else ""
            return f"vector of {_many(space.low.size, 'number')}{shape}, {space.dtype}, {_bounds(space)}"
        case Discrete():
            return f"category of {space.n}"
        case MultiDiscrete():
            fewest, most = int(space.nvec.min()), int(space.nvec.max())
            each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            return f"{_many(space.nvec.size, 'category', 'categories')} of {each}"
    return f"{_many(num_categories(space) // 2, 'category', 'categories')} of 2"


def _readings(space: gymnasium.Space) -> dict[str, gymnasium.Space]:
    """Return all that a supported space can be read as, by kind."""
    if isinstance(space, Tokens | Vector | Picture | Symbols):
        return {kind(space): space}
    readings: dict[str, gymnasium.Space] = {}
    if isinstance(space, Box):
        readings["vector"] = Vector(space)
        if len(space.shape) in (2, 3, 4) and _is_scale(space):
            readings["image"] = Picture(space, _row_axis(space.shape))
        categories = _as_categories(space)
    else:
        readings["vector"] = Vector(_as_numbers(space))
        readings["category"] = categories = space
    if isinstance(categories, MultiDiscrete):
        if len(categories.shape) in (2, 3) and _has_equal_cells(categories):
            readings["symbols"] = Symbols(categories)
        if kind(categories) == "category":
            readings["category"] = categories
        else:
            readings.pop("category", None)
    return readings


def _as_categories(space: Box) -> MultiDiscrete | None:
    """Return the same integers as categories; None where they are no integers, or too many."""
    if np.issubdtype(space.dtype, np.floating):
        return None
    sizes = space.high.astype(np.float64) - space.low.astype(np.float64) + 1
    if not sizes.size or sizes.sum() > MOST_CATEGORIES:
        return None
    return MultiDiscrete(sizes.astype(np.int64), start=space.low.astype(np.int64))


def _as_numbers(space: gymnasium.Space) -> Box:
    """Return the same categories as integers."""
    if isinstance(space, Discrete):
        low, high = np.array(space.start, np.int64), np.array(space.start + space.n - 1, np.int64)
    elif isinstance(space, MultiDiscrete):
        low = space.start.astype(np.int64)
        high = low + space.nvec.astype(np.int64) - 1
    else:
        low, high = np.zeros(space.shape or (), np.int64), np.ones(space.shape or (), np.int64)
    return Box(low, high, low.shape, np.int64)


def _looks_like_picture(space: Box) -> bool:
    shape = space.shape
    if len(shape) not in (2, 3, 4) or 0 in shape or (space.low != 0).any():
        return False
    highest = float(space.high.flat[0])
    if highest not in (1, 255) or (space.high != highest).any():
        return False
    if len(shape) == 2:
        return space.dtype == np.uint8 and highest == 255 and min(shape) >= INTEGER_PICTURE[0]
    fewest, most = FLOAT_PICTURE if np.issubdtype(space.dtype, np.floating) else INTEGER_PICTURE
    axis = _row_axis(shape)
    size, channels = shape[axis : axis + 2], (shape[:axis] + shape[axis + 2 :])[-1]
    is_first = axis == len(shape) - 2
    is_plausible = min(size) >= fewest and channels <= most and (2 if is_first else 1) * channels <= min(size)
    return is_plausible and (len(shape) == 3 or shape[0] <= MOST_FRAMES)


def _row_axis(shape: tuple[int, ...]) -> int:
    """Return the axis that counts rows: stacked frames come first, and colours last unless there are fewer first."""
    frames = max(len(shape) - 3, 0)
    return frames + int(len(shape) > 2 and shape[-1] > shape[-3])


def _is_scale(space: Box) -> bool:
    low, high = float(space.low.min()), float(space.high.max())
    return bool(np.isfinite([low, high]).all()) and 0 < high - low <= MOST_SHADES


def _has_equal_cells(space: MultiDiscrete) -> bool:
    return bool((space.nvec == space.nvec[0, 0]).all() and (space.start == space.start[0, 0]).all())


def _told(space: gymnasium.Space) -> str:
    return f"a {type(space).__name__}" + (f" of shape {space.shape}" if space.shape else "")


def _bounds(space: Box) -> str:
    """Return the bounds of each number where they are few and differ, else the lowest and the highest."""
    pairs = list(zip(space.low.flatten().tolist(), space.high.flatten().tolist(), strict=True))
    if not 1 < len(pairs) <= 4 or len(set(pairs)) == 1:
        pairs = [(float(space.low.min()), float(space.high.max()))]
    told = [f"{low:g} to {high:g}" if np.isfinite([low, high]).any() else "no bounds" for low, high in pairs]
    return _listed(told, "and")


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _many(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _listed(words, last: str) -> str:
    *rest, final = map(str, words)
    return f"{', '.join(rest)} {last} {final}" if rest else final
