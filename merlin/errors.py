"""The one exception that users meet, and others in a line."""


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""


def describe(error: BaseException) -> str:
    """Return the kind of an exception and the first line of its message, without its full stop."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0].rstrip('.')}" if message else type(error).__name__
