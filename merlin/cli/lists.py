"""merlin tasks, merlin agents."""

import argparse
from importlib import import_module
from typing import Any

from merlin.cli.arguments import add_command
from merlin.cli.output import print_table


def add_to(commands: Any) -> None:
    """Add the commands."""
    add_command(commands, "tasks", "list the tasks of this package", list_tasks)
    add_command(commands, "agents", "list the agents", list_agents)


def list_tasks(_: argparse.Namespace) -> int:
    """Print a line for each task."""
    # By its name, as gymnasium loads it: nothing else of this package knows of it.
    print_table([(name, task.summary) for name, task in import_module("merlin.tasks").TASKS.items()])
    print("Any other gymnasium id works too, such as MiniGrid-MemoryS7-v0, or module:Id, which imports its module.")
    return 0


def list_agents(_: argparse.Namespace) -> int:
    """Print a line for each agent."""
    from merlin.agents import AGENTS

    print_table([(name, entry.summary) for name, entry in AGENTS.items()])
    print("Any other comes as module:Class, which imports its module: a class that extends merlin.Agent.")
    print("`merlin train --agent NAME --help-settings` lists the settings of one.")
    return 0
