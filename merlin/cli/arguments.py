"""The arguments of the command line, and nothing else."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_EXAMPLES = """\
examples:
  merlin train                                      MERLIN on the memory game: learns within minutes
  merlin train MiniGrid-MemoryS7-v0 --agent rl-lstm --steps 2e6
  merlin train --env-kwargs '{"pairs": 4}' --set model.memory_size=12 training.learning_rate=1e-3
  merlin train --resume runs/MemoryGame-v0-merlin-seed1-20260101-120000
  torchrun --nproc-per-node 2 -m merlin train       two processes or GPUs train one agent
"""

_COMPARISONS = """\
examples:
  merlin compare merlin/MemoryGame-v0 --env-kwargs '{"pairs": 4}' --seeds 1 2 3 4 5
  merlin compare merlin/TMaze-v0 MiniGrid-MemoryS7-v0 --agents merlin rl-lstm --max-seconds 900
  merlin compare examples/ablations.toml
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.rstrip('.')} ({self.prog} --help tells more).\n")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command in `command`, with `fail`, which ends the program with a sentence and status 2.

    An option that was not given is None where its default depends on others.
    """
    parser = _Parser("merlin", description="Agents that remember: train, evaluate and watch them.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, **more: Any) -> Callable:
        added = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False, **more
        )
        added.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        added.set_defaults(command=name, fail=added.error)
        return added.add_argument

    add = command(
        "train",
        "train an agent, or continue training one",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_configuration(add)
    add("--steps", metavar="N", type=_whole_number(1), help="environment steps in all, such as 1e6 "
        "(default: by task; 1e6 for the default one)")  # fmt: skip
    add("--help-settings", action="store_true", help="list every setting of --set, with its type, its value for this "
        "task and agent and what it is, and exit")  # fmt: skip
    add("--run-dir", metavar="DIR", type=Path, help="where the run's files go "
        "(default: runs/TASK-AGENT-seedS-DATE-TIME)")  # fmt: skip
    add("--resume", metavar="DIR", type=Path, help="continue the run in this directory exactly where its last "
        "checkpoint was taken; needs nothing else")  # fmt: skip
    add("--max-seconds", metavar="S", type=_seconds, default=math.inf, help="stop after this long, with a checkpoint")
    add("--wandb", choices=("auto", "online", "offline", "disabled"), default="auto", help="Weights & Biases; auto, "
        "the default, goes online if you are logged in")  # fmt: skip

    add = command("evaluate", "play held-out episodes with a trained agent and print its score")
    add("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a run")
    add("--episodes", metavar="N", type=_whole_number(1), default=100, help="how many (default: 100)")
    add("--seed", metavar="S", type=_seed, help="chooses the held-out episodes (default: the run's seed)")
    add("--greedy", action="store_true", help="take the most probable actions instead of sampling")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights: last, or best, by the return of "
        "100 episodes in training or, if there are any, by its evaluations (default: best)")  # fmt: skip
    add("--num-envs", metavar="B", type=_whole_number(1), help="environments stepped together (default: the run's)")
    add("--memory", choices=("own", "zeroed", "frozen", "shuffled"), default="own", help="show the agent another "
        "memory than its own, to see what it uses it for: zeroed, empty at every step; frozen, as an earlier episode "
        "left it; shuffled, that of another environment (default: own)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object and nothing else")

    add = command(
        "compare",
        "train several agents on several tasks with several seeds, and compare them",
        epilog=_COMPARISONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add("what", metavar="TASK|FILE", nargs="+", help="gymnasium ids, or a .toml file that says what is compared")
    add("--agents", metavar="NAME", nargs="+", help="merlin, rl-lstm, rl-mem (default: all)")
    add("--seeds", metavar="S", nargs="+", type=_seed, help="one run for each (default: 1 2 3)")
    add("--steps", metavar="N", type=_whole_number(1), help="environment steps of each run (default: by task)")
    add("--env-kwargs", metavar="JSON", type=_json_object, help="""settings of the tasks, such as '{"pairs": 4}'""")
    add(
        "--set",
        metavar="path=value",
        nargs="+",
        action="extend",
        default=[],
        help="settings of all agents, of model.*, training.* and num_envs, as of train",
    )
    add("--max-seconds", metavar="S", type=_seconds, help="end each run after this long; with more, they go on")
    add("--episodes", metavar="N", type=_whole_number(1), help="held-out episodes of each evaluation (default: 512)")
    add("--memory", nargs="+", choices=("zeroed", "frozen", "shuffled"), help="evaluate each agent that has a memory "
        "with another than its own, too: see evaluate --help")  # fmt: skip
    add("--only", metavar="NAME", nargs="+", help="train only the tasks and only the agents of these "
        "names; the table is of all that is done")  # fmt: skip
    add("--jobs", metavar="N", type=_whole_number(1), help="runs at a time (default: one for each core)")
    add("--out", metavar="DIR", type=Path, help="where the runs, the table and the picture go; what is done there is "
        "not done again (default: runs/compare-NAME, by the first task or the file)")  # fmt: skip
    add("--wandb", choices=("auto", "online", "offline", "disabled"), default="auto", help="Weights & Biases, runs "
        "grouped by task; auto, the default, goes online if you are logged in")  # fmt: skip

    add = command("analyse", "ask a trained agent what it knows, where it reads and what it expects: a report")
    add("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a run")
    add("--out", metavar="DIR", type=Path, help="where report, pictures and numbers go (default: RUN_DIR/analysis)")
    add("--episodes", metavar="N", type=_whole_number(4), default=256, help="held-out episodes that figures and "
        "scores are of (default: 256)")  # fmt: skip
    add("--seed", metavar="S", type=_seed, default=0, help="another seed plays other episodes (default: 0)")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights: last, or best, by the return of "
        "100 episodes in training or, if there are any, by its evaluations (default: best)")  # fmt: skip

    add = command("watch", "record episodes of a trained agent: what it sees, believes, expects and recalls")
    add("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a run")
    add("--episodes", metavar="N", type=_whole_number(1), default=1, help="how many (default: 1)")
    add("--seed", metavar="S", type=_seed, default=0, help="another seed shows other episodes (default: 0)")
    add("--greedy", action="store_true", help="take the most probable actions instead of sampling")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights: last, or best, by the return of "
        "100 episodes in training or, if there are any, by its evaluations (default: best)")  # fmt: skip
    add("--out", metavar="FILE", type=Path, help="a .gif or .mp4 film, an .html page to step through, or a .png "
        "of one step (default: RUN_DIR/episode.gif)")  # fmt: skip

    add = command("profile", "train for some seconds and tell where the time and the memory go; nothing is kept")
    _add_configuration(add)
    add("--seconds", metavar="S", type=_seconds, default=10.0, help="how long to measure (default: 10)")
    add("--trace", metavar="FILE", type=Path, help="also write a Chrome trace of one window, for chrome://tracing or "
        "ui.perfetto.dev")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object and nothing else")

    add = command("play", "play a task yourself, from the keyboard")
    add("task", metavar="TASK", help="a gymnasium id, or module:Id, which imports the module first")
    add("--env-kwargs", metavar="JSON", type=_json_object, help="""settings of the task, such as '{"pairs": 4}'""")
    add("--seed", metavar="S", type=_seed, help="another seed shows other episodes (default: new ones each time)")
    add("--view", choices=("agent", "above"), help="what the agent sees, or the picture that the task draws of itself; "
        "tab changes it (default: agent, or above where that gives nothing away)")  # fmt: skip

    command("tasks", "list the tasks of this package")
    command("agents", "list the agents")
    return parser.parse_args(arguments)


def _add_configuration(add: Callable) -> None:
    """Add what chooses a run's configuration."""
    add("task", metavar="TASK", nargs="?", help="a gymnasium id, or module:Id, which imports the module first "
        "(default: merlin/MemoryGame-v0)")  # fmt: skip
    add("--agent", metavar="NAME", help="merlin, rl-lstm or rl-mem (default: merlin)")
    add("--num-envs", metavar="B", type=_whole_number(1), help="environments stepped together, "
        "by all processes (default: by task; 128 for the default one)")  # fmt: skip
    add("--seed", metavar="S", type=_seed, help="of weights, environments and every random choice (default: 1)")
    add("--device", metavar="auto|cpu|cuda", help="auto, the default, takes a GPU where there is one")
    add("--env-kwargs", metavar="JSON", type=_json_object, help="""settings of the task, such as '{"pairs": 4}'""")
    add("--vectorization", choices=("sync", "async"), help="whether environments that are not tensors are stepped in "
        "this process or in one process each (default: sync)")  # fmt: skip
    add("--set", metavar="path=value", nargs="+", action="extend", default=[], help="change settings of the agent "
        "(model.*) and of training (training.*); see `merlin train --help-settings`")  # fmt: skip


def _whole_number(minimum: int, maximum: int = 2**62) -> Callable[[str], int]:
    """Return a parser of whole numbers, which may be written 1e6 or 1_000_000."""
    bounds = f"of at least {minimum}" if maximum == 2**62 else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            number = int(text) if text.strip("+-_0123456789") == "" else float(text)
            whole = int(number)
        except (ValueError, OverflowError):
            whole, number = minimum, math.nan
        if whole != number or not minimum <= whole <= maximum:
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}")
        return whole

    return parse


def _seed(text: str) -> int:
    return _whole_number(0, 2**31 - 1)(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""must be a JSON object such as '{{"pairs": 4}}', got {text!r}""")
    return value
