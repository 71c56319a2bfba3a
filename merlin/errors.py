"""The one exception that users meet."""


class MerlinError(Exception):
    """A user's mistake, told in one plain sentence: what must hold, what came and what to do."""
