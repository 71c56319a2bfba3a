"""What commands print for people."""

import sys


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print a name and a text in each line, one below the other."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


def fail(sentence: str, status: int) -> int:
    """Print what went wrong on standard error and return the status."""
    print(f"merlin: {sentence}", file=sys.stderr)
    return status
