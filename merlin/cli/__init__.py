"""The command line."""

from merlin.cli.commands import main

__all__ = ["main"]
