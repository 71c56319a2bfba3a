"""Arguments of a task that it does not take, in words: what its class or function says of them."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gymnasium.envs.registration import EnvSpec, load_env_creator

from merlin.errors import quote
from merlin.plugins import nearest

OURS = ("num_envs", "device", "render_mode")
"""Arguments that are none of the user's."""


def unknown_argument(spec: EnvSpec, reason: str) -> str | None:
    """Return that a task has no such argument, where Python gives that as the reason of a failure, and what it has.

    None where that is not the reason, or what it takes is not known.
    """
    found = re.search(r"got an unexpected keyword argument '(\w+)'", reason)
    for creator in _creators(spec) if found else ():
        taken = _parameters(creator)
        if taken is not None and found is not None and found[1] not in taken:
            known = [name for name in taken if name not in OURS]
            hint = nearest(found[1], known, "leave it out.")
            return f"{_name(creator)} has no argument {found[1]}: {hint} It takes {', '.join(known) or 'none'}"
    return None


def wrong_argument(spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> str | None:
    """Return that an argument is not of the type that a task's class or function annotates, if one is not."""
    for creator in _creators(spec):
        for name, parameter in (_parameters(creator) or {}).items():
            annotation = parameter.annotation
            value = env_kwargs.get(name, parameter.default)
            if value is not parameter.default and not _fits(value, annotation):
                must = inspect.formatannotation(annotation)
                return f"The argument {name} of {_name(creator)} must be {must}, but {quote(value)} came: correct it"
    return None


def may_take(creator: Callable[..., Any], name: str) -> bool:
    """Return whether a class or function takes an argument of this name, or passes on what it does not name."""
    functions = _functions(creator)
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # built in
            return True
        if name in parameters:
            return True
        if not any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            return False
    return bool(functions)


def _creators(spec: EnvSpec) -> Iterator[Callable[..., Any]]:
    for entry_point in (spec.entry_point, spec.vector_entry_point):
        if entry_point is not None:
            yield load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _name(creator: Callable[..., Any]) -> str:
    return getattr(creator, "__name__", type(creator).__name__)


def _parameters(creator: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return what can be given by name, annotations being types; None where it may pass on what it does not name.

    A class that passes on to the one that it extends takes that one's too.
    """
    taken: dict[str, inspect.Parameter] = {}
    for function in _functions(creator):
        try:
            parameters = inspect.signature(function).parameters
            hints = get_type_hints(function)
        except (TypeError, ValueError, NameError, AttributeError):  # built in, or of names that are not there
            return None
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                taken.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            return taken
    return None


def _functions(creator: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return what takes the arguments: a function, or what constructs a class, each passing on to the next."""
    if not isinstance(creator, type):
        return [creator]
    return [x.__init__ for x in creator.__mro__ if "__init__" in vars(x) and x is not object]


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value may be of an annotation: of what is no plain type, any may."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(annotation))
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (tuple, list, Sequence):  # JSON has lists alone
        return isinstance(value, list | tuple)
    if isinstance(value, bool) and origin in (int, float):
        return False
    if origin is float:
        return isinstance(value, int | float)
    return isinstance(value, origin) if origin in (int, str, bool, dict, NoneType) else True
