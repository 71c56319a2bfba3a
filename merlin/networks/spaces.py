"""Observation spaces: nested ones made flat, each entry with the kind of network that it calls for."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from merlin.errors import MerlinError
from merlin.networks.kinds import (
    Kind,
    Picture,
    Symbols,
    Tokens,
    Vector,
    check_supported,
    describe_entries,
    kind,
    picture_by_bounds,
    settle,
)

__all__ = [
    "ACTION_MASK", "ROOT", "Kind", "Picture", "Symbols", "Tokens", "Vector", "check_supported", "describe_entries",
    "flatten_observation", "flatten_space", "kind", "leaves", "settle", "shape_of",
]  # fmt: skip

ROOT = "observation"  # the one key of a space that is neither a Dict nor a Tuple
ACTION_MASK = "action_mask"  # the entry that says which actions are allowed; agents obey it, and do not observe it


def flatten_space(
    space: gymnasium.Space, kinds: Mapping[str, Any] | None = None, pictures_by_bounds: bool = False
) -> dict[str, gymnasium.Space]:
    """Return the entries of a space, nested Dicts and Tuples opened, under dotted paths such as `sensors.velocity`.

    Each entry's kind is settled. Entries of no numbers at all, such as a Box (0,), are left out, and so is
    `action_mask`, which says what may be done, and is not observed.

    Args:
        kinds: What entries are read as where the rules (`merlin.networks.kinds.kind`) would say otherwise, by name.
        pictures_by_bounds: Read every bounded Box of two or three axes as a picture, as version 0.2.0 did.

    Raises:
        MerlinError: An entry is of a space that no network here reads, or `kinds` names what there is not.
    """
    entries: dict[str, gymnasium.Space] = {}
    for name, leaf in leaves(space):
        if name == ACTION_MASK:
            continue
        check_supported(name, leaf)
        if name in entries:
            raise MerlinError(
                f"Entries need names of their own, but two are called '{name}' once nested names are joined by dots: "
                "rename one with a wrapper."
            )
        entries[name] = leaf
    entries = {name: leaf for name, leaf in entries.items() if 0 not in shape_of(leaf)}
    if not entries:
        raise MerlinError(
            "An observation space must have an entry that holds something; this one is empty: add what the agent sees."
        )
    kinds = kinds or {}
    for name in kinds:
        if name not in entries:
            near = difflib.get_close_matches(name, entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name one of them."
            raise MerlinError(
                f"environment.kinds names the entry {name!r}, but the observation's are {', '.join(entries)}: {hint}"
            )
    if pictures_by_bounds:
        entries = {name: leaf if name in kinds else picture_by_bounds(leaf) for name, leaf in entries.items()}
    return {name: settle(name, leaf, kinds.get(name)) for name, leaf in entries.items()}


def flatten_observation(observation: Any) -> dict[str, Any]:
    """Return the entries of an observation under the names of `flatten_space`; a flat dict comes back as it is."""
    return dict(leaves(observation))


def shape_of(space: gymnasium.Space) -> tuple[int, ...]:
    """Return the shape of one value of an entry."""
    assert space.shape is not None, "an entry is no Dict, Tuple or other nested space"
    return tuple(space.shape)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
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
        yield from leaves(child, f"{path}.{key}" if path else str(key))
