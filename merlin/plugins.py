"""Classes and tasks of anybody's modules, by name: `module:Name`."""

import difflib
import importlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from merlin.errors import MerlinError, describe_with_place, is_on_the_command_line

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
        hint = nearest(name, known, "choose one of them.")
        raise MerlinError(f"The {what} must be one of {', '.join(known)} or module:Name, but is {name!r}: {hint}")
    module = load_module(module_name, name)
    found: Any = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        came, hint = "what it has of that name is none", "correct it."
        if found is None:
            came = f"{getattr(module, '__file__', None) or module_name} has nothing of that name"
            hint = nearest(class_name, vars(module), hint)
        raise MerlinError(f"The {what} {name!r} must name a class derived from {base.__name__}, but {came}: {hint}")
    return found


def load_module(module: str, name: str) -> ModuleType:
    """Return the module, imported for the sake of `name`, which messages quote.

    Raises:
        MerlinError: It cannot be imported.
    """
    check_is_no_file(module, name.rpartition(":")[2])
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does while it is imported
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        root = Path(module.partition(".")[0])
        place = "." if any(root.glob("*.py")) or root.with_name(f"{root.name}.py").is_file() else "DIR"
        hint = f": install it, or {_lies_in(place)}" if is_missing else ""
        raise MerlinError(f"The module of {name!r} cannot be imported: {describe_with_place(error)}{hint}.") from error


def check_is_no_file(module: str, name: str) -> None:
    """Raise a MerlinError if a module is named by its file, as Python's own command takes it."""
    if module.endswith(".py"):
        *folders, file = Path(module).parts
        raise MerlinError(
            f"A module is named as in `import`, but {module!r} is a file: write {file.removesuffix('.py')}:{name}"
            + (f", and {_lies_in(shlex.quote(str(Path(*folders))))}." if folders else ".")
        )


def _lies_in(folder: str) -> str:
    """Return what to do for modules of a folder to be found."""
    told = f"say where it lies with `--import-from {folder}`"
    return told if is_on_the_command_line() else "add its folder to sys.path"


@contextmanager
def importable_from(directory: Path | None) -> Iterator[None]:
    """Let modules be imported from a directory too, after the installed ones, whose place it cannot take."""
    path = None if directory is None else str(directory.resolve())
    if path is None or path in sys.path:
        yield
        return
    sys.path.append(path)
    try:
        yield
    finally:
        sys.path.remove(path)


def short_name(name: str) -> str:
    """Return the last part of a task's id, or of `module:Class`, for names of directories."""
    return name.rpartition(":")[2].rpartition("/")[2]


def nearest(name: str, known: Any, otherwise: str) -> str:
    """Return the question whether the nearest of known names was meant, or what to do where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
