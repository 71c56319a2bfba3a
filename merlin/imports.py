"""Modules that users name: `module:Id` of a task, `module:Class` of an agent."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from merlin.errors import MerlinError, describe


def import_named(name: str) -> ModuleType:
    """Return the module of `module:Name`, imported the ordinary way.

    Raises:
        MerlinError: It cannot be imported.
    """
    module = name.rpartition(":")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = ": install it, or say where it lies with --import-from DIR" if is_missing else ""
        raise MerlinError(f"The module of {name!r} cannot be imported: {describe(error)}{hint}.") from error


@contextmanager
def importable_from(directory: Path | None) -> Iterator[None]:
    """Let modules be imported from a directory too, after the installed ones, which it so cannot replace."""
    path = None if directory is None else str(directory.resolve())
    if path is None or path in sys.path:
        yield
        return
    sys.path.append(path)
    try:
        yield
    finally:
        sys.path.remove(path)
