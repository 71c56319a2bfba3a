"""Action spaces: nested ones opened into simple ones, and the actions of all of them as one flat row."""

import math
from itertools import chain

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from merlin.errors import MerlinError
from merlin.networks.categories import sizes_and_starts
from merlin.networks.spaces import shape_of

SimpleSpace = Discrete | MultiDiscrete | MultiBinary | Box

MOST_CHOICES = 2**20  # of which a policy has a number each


def open_action_space(space: gymnasium.Space, task: str = "this one") -> list[tuple[str, SimpleSpace]]:
    """Return the simple spaces of an action space, in order, each after its dotted path such as `hand.grip`.

    A space that is neither a Dict nor a Tuple comes back after an empty path.

    Args:
        task: Whose space it is, for messages.

    Raises:
        MerlinError: It has a space of another kind, nothing to choose, or too many choices.
    """
    parts = _opened(space, "", task)
    if (choices := num_choices([part for _, part in parts])) > MOST_CHOICES:
        raise MerlinError(
            f"A policy has a number for each choice, at most {MOST_CHOICES:,} of them, but {task} has {choices:,}: "
            "split them with a wrapper into a MultiDiscrete, or make them a Box."
        )
    return parts


def describe_actions(space: gymnasium.Space) -> str:
    """Return what an action is, in words such as `5 actions` or `box of 3 numbers, -2 to 2`."""
    named = [(path, _described(part)) for path, part in open_action_space(space)]
    return ", ".join(f"{path}: {what}" if path else what for path, what in named)


def num_choices(parts: list[SimpleSpace]) -> int:
    """Return how many categories there are in all, which is how long a mask of actions is; a Box has none."""
    return sum(sum(sizes_and_starts(part)[0]) for part in parts if not isinstance(part, Box))


def join_spaces(parts: list[SimpleSpace]) -> SimpleSpace:
    """Return the flat space of the actions of simple ones side by side: all of them Boxes, or none."""
    boxes = [part for part in parts if isinstance(part, Box)]
    if boxes:
        low, high = (np.concatenate([getattr(box, bound).ravel() for box in boxes]) for bound in ("low", "high"))
        return Box(low.astype(np.float64), high.astype(np.float64), dtype=np.float64)
    sizes_starts = [sizes_and_starts(part) for part in parts if not isinstance(part, Box)]
    sizes, starts = (list(chain(*columns)) for columns in zip(*sizes_starts, strict=True))
    return MultiDiscrete(sizes, start=starts)


def _described(part: SimpleSpace) -> str:
    if isinstance(part, Box):
        low, high, number = float(part.low.min()), float(part.high.max()), part.low.size
        bounds = f"{low:g} to {high:g}" if np.isfinite([low, high]).any() else "no bounds"
        return f"box of {number} number{'s' if number != 1 else ''}, {bounds}"
    sizes = sizes_and_starts(part)[0]
    if len(sizes) == 1:
        return f"{sizes[0]} action{'s' if sizes[0] != 1 else ''}"
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return f"{len(sizes)} choices of {each} actions each"


def _opened(space: gymnasium.Space, path: str, task: str) -> list[tuple[str, SimpleSpace]]:
    if isinstance(space, Dict | Tuple):
        children = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        opened = [_opened(child, f"{path}.{key}" if path else str(key), task) for key, child in children]
        parts = [part for parts in opened for part in parts]
    elif isinstance(space, Discrete | MultiDiscrete | MultiBinary | Box):
        parts = [(path, space)] if math.prod(shape_of(space)) else []
    else:
        raise MerlinError(
            "Action spaces are made of Discrete, MultiDiscrete, MultiBinary, Box, Dict and Tuple; "
            f"{task} has a {type(space).__name__}: convert it with a wrapper."
        )
    if not parts:
        raise MerlinError(f"An action must have something to choose, but {task} has {space}: leave it out.")
    return parts
