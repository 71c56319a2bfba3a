"""The exceptions that users meet, others in a line, and notes."""

import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAUNCHER = "MERLIN_LAUNCHER"
"""The environment variable that tells how this process was started as one of several, if not by torchrun."""
_COMMAND: list[str | None] = [None]  # that of the command line, or none in Python


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""


class EnvironmentFailure(MerlinError):
    """An environment failed or returned what it should not; what was learnt until then is sound."""


def quote(value: Any) -> str:
    """Return a value as messages show it: its repr, the middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


@contextmanager
def on_the_command_line(command: str) -> Iterator[None]:
    """Let messages speak of the command line's options, as they do of Python's arguments otherwise."""
    before, _COMMAND[0] = _COMMAND[0], command
    try:
        yield
    finally:
        _COMMAND[0] = before


def is_on_the_command_line() -> bool:
    """Return whether messages speak of the command line's options."""
    return _COMMAND[0] is not None


def option(name: str, *values: str | Path) -> str:
    """Return how users give a setting where they are: `--set a=1` on the command line, `set={"a": 1}` in Python.

    Args:
        name: Of the command line's option, without its dashes.
        values: Of `set`, such as "model.kl_cost=0.02", or of another one.
    """
    if is_on_the_command_line():
        return " ".join([f"--{name}", *map(str, values)])
    if name == "set":
        pairs = (str(value).partition("=")[::2] for value in values)
        return f"set={{{', '.join(f'{path!r}: {_as_python(text)}' for path, text in pairs)}}}".replace("'", '"')
    name = {"from": "started_from"}.get(name, name.replace("-", "_"))
    if not values:
        return name
    shown = ", ".join(f'"{value}"' for value in values)
    return f"{name}=[{shown}]" if name == "wrap" else f"{name}={shown}"


def _as_python(text: str) -> str:
    """Return how a value is written in Python."""
    try:
        float(text)
    except ValueError:
        return {"true": "True", "false": "False", "none": "None"}.get(text, f'"{text}"')
    return text


def resuming(run_dir: Path | str) -> str:
    """Return how users go on with a run where they are, in as many processes as there are."""
    if is_on_the_command_line():
        command = "population" if _COMMAND[0] == "population" else "train"
        return f"`{launched(f'{command} --resume {shlex.quote(str(run_dir))}')}`"
    return f'`merlin.train(resume="{run_dir}")`{f" under {launcher()}" if is_launched() else ""}'


def is_launched() -> bool:
    """Return whether torchrun, or what sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "MASTER_ADDR" in os.environ


def launched(arguments: str) -> str:
    """Return the command that starts `merlin` with these arguments in as many processes as there are."""
    if not is_launched():
        return f"merlin {arguments}"
    return f"{launcher()} {arguments}" if LAUNCHER in os.environ else f"{launcher()} -m merlin {arguments}"


def launcher() -> str:
    """Return the beginning of the command that starts as many processes as there are."""
    if LAUNCHER in os.environ:
        return os.environ[LAUNCHER]
    size = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return f"torchrun {f'--nnodes {size // here} ' * (here < size)}--nproc-per-node {here}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is at its end: of Python, of the processor or of a GPU."""
    return "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError) or "allocate memory" in str(error)


def describe(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its message, without its full stop."""
    try:
        message = str(error).strip().splitlines()
    except Exception:  # an exception that cannot say what it is
        message = []
    return f"{type(error).__name__}: {message[0].rstrip('.')[:500]}" if message else type(error).__name__


def obstacle(error: OSError) -> str:
    """Return what kept a file from being read or written: what is in its place, or else what the system says."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and isinstance(error.filename, str):
        path = Path(error.filename)
        if path.is_dir():
            return f"{path} is a directory"
        for place in (path, *path.parents):
            if place.is_file():
                return f"{place} is a file"
    return error.strerror or str(error)


def describe_with_place(error: BaseException) -> str:
    """Return `describe`'s line, and the last line of code that it passed which is of no installed package, if any."""
    places = (
        _place(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    )
    return describe(error) + next((place for place in reversed([*places]) if place), "")


def place_of(thing: Any) -> str:
    """Return where a class or a function is written; nothing where that is unknown or in an installed package."""
    try:
        thing = inspect.unwrap(thing)
        return _place(thing.__module__, inspect.getsourcefile(thing) or "<", inspect.getsourcelines(thing)[1])
    except (OSError, TypeError, AttributeError):  # typed at a prompt, or neither a class nor a function
        return ""


def _place(module: str, file: str, line: int) -> str:
    installed = (sys.prefix, sys.base_prefix, "<")
    is_users = not f"{module}.".startswith("merlin.") and not file.startswith(installed)
    return f" at {file}:{line}" if is_users else ""


def with_article(noun: str) -> str:
    """Return "an int", but "a float"."""
    return f"{'an' if noun[:1].lower() in set('aeiou') else 'a'} {noun}"


def counted(number: int, noun: str) -> str:
    """Return "1 episode", but "1,200 episodes"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


@functools.cache
def tell(sentence: str) -> None:
    """Print a sentence to standard error, once in a process, and only in the first of processes that work together."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)
