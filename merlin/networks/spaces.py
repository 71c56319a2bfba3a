"""Observation spaces: nested ones made flat, and the kind of network that each entry calls for."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from merlin.errors import MerlinError

Kind = Literal["image", "vector", "category", "symbols", "text"]

ROOT = "observation"  # the one key of a space that is neither a Dict nor a Tuple
ACTION_MASK = "action_mask"  # the entry that says which actions are allowed; agents obey it, and do not observe it
SMALLEST_IMAGE = 5  # a picture has at least this many rows and columns; a smaller Box is a vector


class Tokens(MultiDiscrete):
    """A text as token ids, one per position; id 0 is padding, and the text ends at the first of them."""

    def __init__(self, vocabulary: tuple[str, ...], length: int, seed: int | None = None):
        """
        Args:
            vocabulary: What each id stands for, `vocabulary[0]` being the padding.
        """
        self.vocabulary = tuple(vocabulary)
        super().__init__([len(self.vocabulary)] * length, seed=seed)


def flatten_space(space: gymnasium.Space) -> dict[str, gymnasium.Space]:
    """Return the entries of a space, nested Dicts and Tuples opened, under dotted paths such as `sensors.velocity`.

    The entry `action_mask` is left out: it says what may be done, and is not observed.

    Raises:
        MerlinError: An entry is of a space that no network here reads.
    """
    leaves = dict(_leaves(space, ""))
    leaves.pop(ACTION_MASK, None)
    if not leaves:
        raise MerlinError("An observation space must have an entry; this one is empty: add what the agent sees.")
    for name, leaf in leaves.items():
        check_supported(name, leaf)
    return leaves


def flatten_observation(observation: Any) -> dict[str, Any]:
    """Return the entries of an observation under the names of `flatten_space`; a flat dict comes back as it is."""
    return dict(_leaves(observation, ""))


def shape_of(space: gymnasium.Space) -> tuple[int, ...]:
    """Return the shape of one value of an entry."""
    assert space.shape is not None, "an entry is no Dict, Tuple or other nested space"
    return tuple(space.shape)


def kind(space: gymnasium.Space) -> Kind:
    """Return which network reads an entry.

    `image` is a bounded Box (Y, X, C) or (Y, X); `vector` any other Box, flattened; `symbols` a MultiDiscrete
    (Y, X, C) whose channels have the same sizes in every cell; `text` Tokens; `category` everything else.
    """
    if isinstance(space, Tokens):
        return "text"
    if isinstance(space, Box):
        return "image" if _is_image(space) else "vector"
    if isinstance(space, MultiDiscrete) and len(space.shape) == 3 and bool((space.nvec == space.nvec[0, 0]).all()):
        return "symbols"
    return "category"


def check_supported(name: str, space: gymnasium.Space) -> None:
    """Raise a MerlinError unless there is a network for this entry."""
    if not isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary)):
        raise MerlinError(
            "Observation spaces are made of Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple; "
            f"entry '{name}' is a {type(space).__name__}: leave it out with a wrapper."
        )
    if isinstance(space, Box) and len(space.shape) == 3 and space.shape[0] <= 4 and min(space.shape[1:]) >= 16:
        raise MerlinError(
            f"Pictures are laid out as (height, width, channels); entry '{name}' has shape {space.shape}: "
            "move its channels last with a wrapper."
        )


def _is_image(space: Box) -> bool:
    return (
        len(space.shape) in (2, 3)
        and min(space.shape[:2]) >= SMALLEST_IMAGE
        and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        and float(space.low.min()) < float(space.high.max())
    )


def _leaves(node: Any, path: str):
    """Yield (dotted path, leaf) of nested dicts, tuples, Dict spaces and Tuple spaces."""
    if isinstance(node, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        node = node.spaces
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, tuple | list):
        children = enumerate(node)
    else:
        yield path or ROOT, node
        return
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))
