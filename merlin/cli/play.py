"""merlin play."""

import argparse
from importlib import import_module
from typing import Any

from merlin.cli.arguments import add_command, add_import_from, add_wrap, json_object, seed


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    add = add_command(commands, "play", "play a task yourself, from the keyboard", play, names_modules=True)
    add("task", metavar="TASK", help="a gymnasium id, or module:Id, which imports the module first")
    add("--env-kwargs", metavar="JSON", type=json_object, help="""settings of the task, such as '{"pairs": 4}'""")
    add_wrap(add)
    add("--seed", metavar="S", type=seed, help="another seed shows other episodes (default: new ones each time)")
    add("--view", choices=("agent", "above"), help="what the agent sees, or the picture that the task draws of itself; "
        "tab changes it (default: agent, or above where that gives nothing away)")  # fmt: skip
    add_import_from(add, "the working directory")


def play(options: argparse.Namespace) -> int:
    """Play."""
    from merlin.viewer import play as game

    task = import_module("merlin.tasks").TASKS.get(options.task)
    summary = task.summary if task else ""
    game.play(
        options.task,
        options.env_kwargs,
        seed=options.seed,
        view=options.view,
        summary=summary,
        wrappers=options.wrap or (),
    )
    return 0
