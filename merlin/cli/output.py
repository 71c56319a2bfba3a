"""What commands print for people."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merlin.runs.presets import RunConfig


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print a name and a text in each line, one below the other."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


def fail(sentence: str, status: int) -> int:
    """Print what went wrong on standard error and return the status."""
    print(f"merlin: {sentence}", file=sys.stderr)
    return status


def importing(config: "RunConfig", import_from: Path | None) -> str:
    """Return what a command that reads a run must be told besides its directory, of modules that may lie here."""
    from merlin.runs.directory import names_modules

    return f" --import-from {shlex.quote(str(import_from or '.'))}" if names_modules(config) else ""
