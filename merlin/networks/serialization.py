"""Spaces as plain dicts for JSON, and back: what a run keeps of the spaces that its agent was built for.

Each has a `type`, which `register` says how to write and to read. Arrays are kept without axes along which nothing
changes: the bounds of a picture are two numbers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from merlin.errors import MerlinError
from merlin.networks.spaces import Picture, Symbols, Tokens, Vector

S = TypeVar("S", bound=Space)
_KINDS: dict[str, tuple[type, Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], Space]]] = {}


def register(space_class: type[S], write: Callable[[S], dict[str, Any]], read: Callable[[dict[str, Any]], S]) -> None:
    """Let spaces of a class, but not of those derived from it, be written and read."""
    _KINDS[space_class.__name__] = space_class, write, read


def space_to_dict(space: Space) -> dict[str, Any]:
    """Return a space as nested dicts and lists, ready for JSON; `space_from_dict` is the inverse.

    Raises:
        MerlinError: Spaces of this kind are not registered.
    """
    name = type(space).__name__
    kind = _KINDS.get(name)
    if kind is None or type(space) is not kind[0]:
        raise MerlinError(f"Spaces that are kept are {', '.join(_KINDS)}; this one is a {name}: register it.")
    return {"type": name} | kind[1](space)


def space_from_dict(values: Any) -> Space:
    """Return the space that `space_to_dict` turned into `values`.

    Raises:
        MerlinError: They are no space's.
    """
    try:
        return _KINDS[values["type"]][2](values)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise MerlinError(f"A space must be written as its kind writes it, but {values!r} came: restore it.") from error


def spaces_to_dict(spaces: dict[str, Space]) -> dict[str, Any]:
    """Return the entries of an observation as `space_to_dict` does, in their order."""
    return {name: space_to_dict(space) for name, space in spaces.items()}


def spaces_from_dict(values: dict[str, Any]) -> dict[str, Space]:
    """Return the entries that `spaces_to_dict` turned into `values`."""
    return {name: space_from_dict(space) for name, space in values.items()}


def _array(array: np.ndarray) -> Any:
    """Return an array as nested lists or one number, each axis along which nothing changes cut to length 1."""
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if (array == first).all():
            array = first
    if array.size == 1:
        return _number(array.item())
    return np.vectorize(_number, otypes=[object])(array).tolist()


def _number(number: Any) -> Any:
    """Return a number as JSON has it, which has no infinity."""
    return number if np.isfinite(number) else str(number)


def _spread(values: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Undo `_array`."""
    read = np.vectorize(lambda x: float(x) if isinstance(x, str) else x, otypes=[object])
    array = read(np.array(values, dtype=object)) if np.size(values) else np.zeros(shape)
    return np.broadcast_to(array.astype(dtype), shape).copy()


def _write_box(space: Box) -> dict[str, Any]:
    return {"shape": list(space.shape), "dtype": str(space.dtype)} | {
        "low": _array(space.low),
        "high": _array(space.high),
    }


def _read_box(values: dict[str, Any]) -> Box:
    shape, dtype = tuple(values["shape"]), values["dtype"]
    low, high = (_spread(values[name], shape, dtype) for name in ("low", "high"))
    return Box(low, high, dtype=np.dtype(dtype).type)


def _write_multi_discrete(space: MultiDiscrete) -> dict[str, Any]:
    return {
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "nvec": _array(space.nvec),
        "start": _array(space.start),
    }


def _read_multi_discrete(values: dict[str, Any]) -> MultiDiscrete:
    shape, dtype = tuple(values["shape"]), values["dtype"]
    nvec, start = (_spread(values[name], shape, "int64") for name in ("nvec", "start"))
    return MultiDiscrete(nvec, dtype=np.dtype(dtype).type, start=start)


register(Box, _write_box, _read_box)
register(
    Discrete,
    lambda space: {"n": int(space.n), "start": int(space.start)},
    lambda values: Discrete(values["n"], start=values["start"]),
)
register(MultiDiscrete, _write_multi_discrete, _read_multi_discrete)
register(
    MultiBinary,
    lambda space: {"shape": list(space.shape)},
    lambda values: MultiBinary(values["shape"] if len(values["shape"]) > 1 else values["shape"][0]),
)
register(
    Text,
    lambda space: {
        "min_length": space.min_length,
        "max_length": space.max_length,
        "characters": "".join(space.character_list),
    },
    lambda values: Text(values["max_length"], min_length=values["min_length"], charset=values["characters"]),
)
register(Vector, _write_box, lambda values: Vector(_read_box(values)))
register(
    Picture,
    lambda space: _write_box(space) | {"row_axis": space.row_axis},
    lambda values: Picture(_read_box(values), values["row_axis"]),
)
register(Symbols, _write_multi_discrete, lambda values: Symbols(_read_multi_discrete(values)))
register(
    Tokens,
    lambda space: {"vocabulary": list(space.vocabulary), "length": len(space.nvec)},
    lambda values: Tokens(tuple(values["vocabulary"]), values["length"]),
)
register(
    Dict,
    lambda space: {"spaces": [[key, space_to_dict(entry)] for key, entry in space.spaces.items()]},
    lambda values: Dict([(key, space_from_dict(entry)) for key, entry in values["spaces"]]),
)
register(
    Tuple,
    lambda space: {"spaces": [space_to_dict(entry) for entry in space.spaces]},
    lambda values: Tuple([space_from_dict(entry) for entry in values["spaces"]]),
)
