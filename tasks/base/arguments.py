"""Arguments of tasks, held to the types that their constructors annotate."""

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda x: isinstance(x, bool | np.bool_)),
    int: ("a whole number", lambda x: isinstance(x, Integral) and not isinstance(x, bool)),
    float: ("a finite number", lambda x: isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)),
    str: ("a string", lambda x: isinstance(x, str)),
    NoneType: ("None", lambda x: x is None),
}
"""What is checked, and how; of other types, anything will do."""


def check_types(task: type, *args: Any, **settings: Any) -> None:
    """Refuse what would be taken for something else: "no" is true, and a task of 2.5 steps fails in the third.

    Raises:
        ValueError: An argument is not of its type.
    """
    names = list(inspect.signature(task.__init__).parameters)[1:]
    for name, value in {**dict(zip(names, args, strict=False)), **settings}.items():
        kinds = _kinds(task).get(name, ())
        if kinds and all(kind in KINDS and not KINDS[kind][1](value) for kind in kinds):
            must = " or ".join(KINDS[kind][0] for kind in kinds)
            raise ValueError(f"{name} must be {must}, but is {value!r}: correct it.")


@lru_cache
def _kinds(task: type) -> dict[str, tuple[Any, ...]]:
    """Return the types that each argument may have, those included that are passed on to the classes it extends."""
    hints: dict[str, Any] = {"max_episode_steps": int | None}
    for owner in reversed(task.__mro__):
        if "__init__" in vars(owner) and owner is not object:
            try:
                hints |= get_type_hints(owner.__init__)
            except (NameError, TypeError):
                continue  # names that are not there
    return {k: get_args(x) if get_origin(x) in (Union, UnionType) else (x,) for k, x in hints.items()}
