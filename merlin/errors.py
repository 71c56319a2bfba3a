"""The one exception that users meet, and others in a line."""

from typing import Any


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""


def quote(value: Any) -> str:
    """Return a value as messages show it: its repr, the middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is at its end: of Python, of the processor or of a GPU."""
    return "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError) or "allocate memory" in str(error)


def describe(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its message, without its full stop."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0][:300].rstrip('.')}" if message else type(error).__name__
