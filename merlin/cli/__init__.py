"""The command line: one module for each command, which builds, calls, and says what came of it.

Whatever is slow to import is imported by the command that needs it, so that --help is instant.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

from merlin.cli import (
    analyse,
    compare,
    evaluate,
    export,
    lists,
    on_ray,
    play,
    population,
    profile,
    tournament,
    train,
    watch,
)
from merlin.cli.arguments import Parser
from merlin.cli.output import fail
from merlin.errors import MerlinError, is_out_of_memory, on_the_command_line
from merlin.plugins import importable_from
from merlin.version import __version__

__all__ = ["main", "parse_arguments"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 130 interrupted.

    Raises:
        SystemExit: With status 2 for bad usage, with 0 after --help.
    """
    options = parse_arguments(arguments)
    try:
        with on_the_command_line(options.command), importable_from(_directory_of_modules(options)):
            status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return fail("interrupted.", 130)
    except BrokenPipeError:
        # Whoever read the pipe has left, as `head` does; what Python writes while it exits must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, MerlinError):
            return fail(str(error), 1)
        if is_out_of_memory(error):
            return fail(
                "there is not enough memory for this: take fewer environments, or smaller settings of model.*.", 1
            )
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return fail(f"unexpected {reason[:500]}: run again with --debug for the traceback.", 1)


def _directory_of_modules(options: argparse.Namespace) -> Path | None:
    """Return where modules are imported from besides: where told, or the working directory if the user names them."""
    if options.import_from is None and options.names_modules and not getattr(options, "resume", None):
        return Path()
    return options.import_from


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command, whose name is `command`.

    With them come `run`, which carries it out, and `parser`, which ends the program with a sentence and status 2. An
    option that was not given is None where its default depends on others.
    """
    parser = Parser("merlin", description="Agents that remember: train, evaluate and watch them.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"merlin-agents {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        train,
        population,
        tournament,
        evaluate,
        compare,
        analyse,
        watch,
        export,
        profile,
        play,
        on_ray,
        lists,
    ):
        module.add_to(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.refuse_options(unknown, getattr(options, "agent", None))
    return options
