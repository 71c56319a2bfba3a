"""Classes by name: those of this package, and `module:Name` of anybody's file."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from merlin.errors import MerlinError

Class = TypeVar("Class")


def load_class(name: str, known: Mapping[str, type[Class]], base: type[Class], what: str) -> type[Class]:
    """Return the class of a name that is known, or of `module:Name`, importing the module.

    Args:
        base: What the class must be derived from.
        what: What it is called in messages, such as "memory".

    Raises:
        MerlinError: There is no such module or class, or it is not derived from `base`.
    """
    module_name, colon, class_name = name.partition(":")
    if not colon:
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
        raise MerlinError(f"The {what} must be one of {', '.join(known)} or module:Name, but is {name!r}: {hint}")
    found: Any = getattr(load_module(module_name, name), class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        came = "it has nothing of that name" if found is None else "what it has of that name is none"
        raise MerlinError(
            f"The {what} {name!r} must name a class derived from {base.__name__}, but {came}: correct it."
        )
    return found


def load_module(module: str, name: str) -> Any:
    """Return the module, imported for the sake of `name`, which messages quote.

    Raises:
        MerlinError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the module does while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise MerlinError(f"The module of {name!r} cannot be imported: {reason}.") from error
