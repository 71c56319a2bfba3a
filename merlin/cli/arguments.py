"""Arguments that several commands take, and the types of their values."""

import argparse
import difflib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from merlin.errors import quote

PRESETS = (
    "memory-game",
    "tmaze",
    "symbols",
    "minigrid-memory",
    "matching",
    "capture-the-flag",
    "grid-world",
    "general",
    "paper",
)
"""Names of `merlin.runs.presets.FAMILIES`, known here without importing anything."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
            message += f": did you mean {near[0]!r}?" if near else ""
        self.fail(message, f"{self.prog} --help")

    def fail(self, message: str, more: str = "") -> NoReturn:
        """End the program with a sentence and status 2.

        Args:
            more: The command that tells more.
        """
        pointer, stop = f" ({more} tells more)" * bool(more), "" if message.endswith("?") and not more else "."
        self.exit(2, f"{self.prog}: {message.rstrip('.')}{pointer}{stop}\n")

    def refuse_options(self, unknown: list[str], agent: str | None) -> NoReturn:
        """End the program with what may have been meant by options that there are not."""
        given = unknown[0].partition("=")[0]
        what = (
            f"there is no option {given}" if given.startswith("--") else f"there is nothing that takes {quote(given)}"
        )
        options = re.findall(r"--[a-z][\w-]*", self.format_usage())
        if near := difflib.get_close_matches(given, options, n=1, cutoff=0.7):
            self.error(f"{what}: did you mean {near[0]}?")
        if "--set" not in options or not given.startswith("--"):
            self.error(what)
        from merlin.runs.configure import nearest_setting

        path = nearest_setting(given.strip("-").replace("-", "_"), agent)
        hint = f": did you mean --set {path}=...?" if path else ", nor a setting of a name like that"
        self.fail(f"{what}{hint}", "merlin train --help-settings")


def add_command(
    commands: Any, name: str, summary: str, run: Callable, *, names_modules: bool = False, **more: Any
) -> Callable:
    """Add a command that `run` carries out, and return what adds arguments to it.

    Args:
        names_modules: Its arguments may be `module:Id`, imported from the working directory too. A command that only
            reads a run directory imports nothing from there unasked.
    """
    if "epilog" in more:
        more["formatter_class"] = argparse.RawDescriptionHelpFormatter
    description = f"{summary[0].upper()}{summary[1:]}."
    added = commands.add_parser(name, help=summary, description=description, allow_abbrev=False, **more)
    added.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    added.set_defaults(command=name, run=run, parser=added, names_modules=names_modules, import_from=None)
    return added.add_argument


def add_configuration(
    add: Callable,
    task: str = "merlin/MemoryGame-v0",
    agent: str = "merlin",
    num_envs: str = "by task; 128 for the default one",
) -> None:
    """Add what chooses a run's configuration, of which the defaults are told."""
    add("task", metavar="TASK", nargs="?", help="a gymnasium id, or module:Id, which imports the module first "
        f"(default: {task})")  # fmt: skip
    add("--agent", metavar="NAME", help="merlin, dreamer, ftw, rl-lstm, rl-mem, or module:Class, which imports the "
        f"module first (default: {agent})")  # fmt: skip
    add("--preset", metavar="NAME", help="what the settings start from: those of a family of tasks, "
        f"{', '.join(PRESETS[:-1])}, or the paper's sizes and costs, {PRESETS[-1]} (default: the family that the task "
        "calls for)")  # fmt: skip
    add("--num-envs", metavar="B", type=whole_number(1), help="environments stepped together, "
        f"by all processes (default: {num_envs})")  # fmt: skip
    add("--seed", metavar="S", type=seed, help="of weights, environments and every random choice (default: 1)")
    add_device(add, "auto, the default, takes a GPU where there is one")
    add("--env-kwargs", metavar="JSON", type=json_object, help="""settings of the task, such as '{"pairs": 4}'""")
    add_wrap(add)
    add("--vectorization", choices=("sync", "async"), help="whether environments that are not tensors are stepped in "
        "this process or in one process each (default: sync)")  # fmt: skip
    add_set(add, "change settings of the agent (model.*) and of training (training.*); see `merlin train "
        "--help-settings`")  # fmt: skip


def add_wrap(add: Callable) -> None:
    """Add --wrap."""
    add("--wrap", metavar="module:Wrapper", action="append", help="put a wrapper of yours around each environment; "
        "again for more, the first innermost")  # fmt: skip


def add_set(add: Callable, text: str) -> None:
    """Add --set."""
    add("--set", metavar="path=value", nargs="+", action="extend", default=[], help=text)


def add_device(add: Callable, text: str) -> None:
    """Add --device."""
    add("--device", metavar="auto|cpu|cuda", help=text)


def add_run_dir(add: Callable, device: str = "that of the run") -> None:
    """Add the run that a command reads, which of its weights, and where its agent runs."""
    add("run_dir", metavar="RUN_DIR", type=path, help="the directory of a run")
    add_device(add, f"where the agent runs; auto takes a GPU where there is one (default: {device})")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights: last, or best, by episodes in "
        "training and held-out ones at its end or, if there are any, by evaluations, which alone choose in self-play "
        "(default: best)")  # fmt: skip
    add_import_from(add)


def add_import_from(add: Callable, default: str = "none") -> None:
    """Add where modules of the user's may lie."""
    add("--import-from", metavar="DIR", type=directory, help="where the modules of module:Id and module:Class lie "
        f"that are not installed (default: {default})")  # fmt: skip


def add_wandb(add: Callable, more: str = "") -> None:
    """Add --wandb."""
    add("--wandb", choices=("auto", "online", "offline", "disabled"), default="auto", help=f"Weights & Biases{more}; "
        "auto, the default, goes online if you are logged in")  # fmt: skip


def add_trackers(add: Callable) -> None:
    """Add --wandb and --tensorboard."""
    add_wandb(add)
    add("--tensorboard", action="store_true", help="write files for TensorBoard too, in RUN_DIR/tensorboard; needs "
        "pip install 'merlin-agents[tensorboard]'")  # fmt: skip


def flag(name: str) -> str:
    """Return how an option is written."""
    return f"--{name.replace('_', '-').removeprefix('started-')}"


def whole_number(minimum: int, maximum: int = 2**62) -> Callable[[str], int]:
    """Return a parser of whole numbers, which may be written 1e6 or 1_000_000."""
    bounds = f"of at least {minimum}" if maximum == 2**62 else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            number = int(text) if text.strip("+-_0123456789") == "" else float(text)
            whole = int(number)
        except (ValueError, OverflowError):
            whole, number = minimum, math.nan
        if whole != number or not minimum <= whole <= maximum:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {quote(text)}")
        return whole

    return parse


def seed(text: str) -> int:
    """Return a seed."""
    return whole_number(0, 2**31 - 1)(text)


def seconds(text: str) -> float:
    """Return a time in seconds, above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {quote(text)}")
    return number


def path(text: str) -> Path:
    """Return a path that a file can have."""
    parts = [os.fsencode(part) for part in Path(text).parts]
    if not text or "\0" in text or len(text) > 4000 or any(len(part) > 255 for part in parts):
        raise argparse.ArgumentTypeError(f"must be the path of a file or directory, got {quote(text)}")
    return Path(text)


def directory(text: str) -> Path:
    """Return a directory that exists."""
    if not path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a directory, got {quote(text)}")
    return Path(text)


def json_object(text: str) -> dict[str, Any]:
    """Return a dict that is written as JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""must be a JSON object such as '{{"pairs": 4}}', got {quote(text)}""")
    return value
