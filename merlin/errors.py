"""The exceptions that users meet, others in a line, and notes."""

import functools
import os
import sys
from typing import Any


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""


class EnvironmentFailure(MerlinError):
    """An environment failed or returned what it should not; what was learnt until then is sound."""


def quote(value: Any) -> str:
    """Return a value as messages show it: its repr, the middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


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


@functools.cache
def tell(sentence: str) -> None:
    """Print a sentence to standard error, once in a process, and only in the first of processes that work together."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)
