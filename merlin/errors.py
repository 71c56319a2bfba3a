"""The exceptions that users meet, others in a line, and notes."""

import functools
import os
import sys


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""


class EnvironmentFailure(MerlinError):
    """An environment failed or returned what it should not; what was learnt until then is sound."""


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
