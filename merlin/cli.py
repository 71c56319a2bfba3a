"""The command line: parse, build, call. Whatever is slow to import is imported by the command that needs it."""

import argparse
import json
import math
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from merlin.errors import MerlinError

if TYPE_CHECKING:
    from merlin.presets import RunConfig
    from merlin.run import Summary

_CHOOSE_THE_PRESET = ("task", "agent", "env_kwargs")
_EXAMPLES = """\
examples:
  merlin train                                      MERLIN on the memory game: learns within minutes
  merlin train MiniGrid-MemoryS7-v0 --agent rl-lstm --steps 2e6
  merlin train --env-kwargs '{"pairs": 4}' --set model.memory_size=12 training.learning_rate=1e-3
  merlin train --resume runs/MemoryGame-v0-merlin-seed1-20260101-120000
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 130 interrupted.

    Raises:
        SystemExit: With status 2 for bad usage, with 0 after --help.
    """
    options = _parser().parse_args(arguments)
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    except BrokenPipeError:
        # Whoever read the pipe has left, as `head` does; what Python writes while it exits must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, MerlinError):
            return _fail(str(error), 1)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"unexpected {reason[:500]}: run again with --debug for the traceback.", 1)


def _fail(sentence: str, status: int) -> int:
    print(f"merlin: {sentence}", file=sys.stderr)
    return status


def _train(options: argparse.Namespace) -> int:
    config = _resumed_config(options) if options.resume else _new_config(options)
    if options.help_settings:
        from merlin.config import fields_help

        print("\n".join(line for line in fields_help(config) if not line.startswith(_CHOOSE_THE_PRESET)))
        return 0
    from merlin import run

    run_dir = options.resume or options.run_dir or _default_run_dir(config)
    print(
        f"training {config.agent} on {config.task} until {config.steps:,} steps, {config.num_envs} environments on "
        f"{run.resolve_device(config.device)}, seed {config.seed}; run directory {run_dir}",
        flush=True,
    )
    summary = run.train(
        config,
        run_dir,
        resume=options.resume is not None,
        wandb=options.wandb,
        max_seconds=options.max_seconds,
    )
    _conclude(summary, config, run_dir)
    return 130 if summary.interrupted else 0


def _new_config(options: argparse.Namespace) -> "RunConfig":
    from dataclasses import replace

    from merlin.config import override
    from merlin.presets import DEFAULT_TASK, preset

    for assignment in options.set:
        if assignment.startswith(_CHOOSE_THE_PRESET):
            options.fail(f"{assignment} would come after what it chooses: use TASK, --agent or --env-kwargs")
    try:
        config = preset(options.agent or "merlin", options.task or DEFAULT_TASK, options.env_kwargs)
        flags = {name: getattr(options, name) for name in ("seed", "steps", "num_envs", "device", "vectorization")}
        config = replace(config, **{name: value for name, value in flags.items() if value is not None})
        return override(config, options.set)
    except MerlinError as error:
        options.fail(str(error))


def _resumed_config(options: argparse.Namespace) -> "RunConfig":
    names = ("task", "agent", "seed", "num_envs", "device", "env_kwargs", "vectorization", "run_dir")
    given = ["TASK" if name == "task" else _flag(name) for name in names if getattr(options, name) is not None]
    given += [f"--set {setting}" for setting in options.set if not setting.startswith("training.")]
    if given:
        options.fail(
            f"--resume continues a run as it began, so only --steps, --max-seconds, --wandb and --set training.* may "
            f"change, but {', '.join(given)} came: leave that out"
        )
    from dataclasses import replace

    from merlin.config import override
    from merlin.run import load_config

    config = load_config(options.resume)
    try:
        return override(replace(config, steps=options.steps or config.steps), options.set)
    except MerlinError as error:
        options.fail(str(error))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default_run_dir(config: "RunConfig") -> Path:
    task = config.task.rpartition(":")[2].rpartition("/")[2]
    return Path("runs") / f"{task}-{config.agent}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _conclude(summary: "Summary", config: "RunConfig", run_dir: Path) -> None:
    """Say how the run ended, where its files are and what can be done next."""
    from merlin.training.checkpoint import steps

    name = shlex.quote(str(run_dir))
    score = f", episode return {summary.episode_return_mean:.2f}" if math.isfinite(summary.episode_return_mean) else ""
    how = "interrupted" if summary.interrupted else "done" if summary.env_steps >= config.steps else "out of time"
    rows = [("checkpoint", str(steps(run_dir)[-1]))]
    if (curve := run_dir / "learning_curve.png").exists():
        rows.append(("learning curve", str(curve)))
    if how != "done":
        rows.append(("resume", f"merlin train --resume {name}"))
    rows += [("evaluate", f"merlin evaluate {name}"), ("watch", f"merlin watch {name}")]
    print(f"{how} after {summary.env_steps:,} steps, {summary.wall_seconds:,.0f} s{score}")
    _print_table(rows)


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from merlin.run import build_environment, load_agent, load_config
    from merlin.training.evaluation import HELD_OUT_SEED, evaluate

    config = load_config(options.run_dir)
    torch.set_num_threads(config.training.num_threads)
    seed = config.seed if options.seed is None else options.seed
    num_envs = min(options.num_envs or config.num_envs, options.episodes)
    with build_environment(config, num_envs) as environment:
        agent = load_agent(options.run_dir, environment, config, options.checkpoint)
        result = evaluate(
            agent, environment, episodes=options.episodes, seed=seed + HELD_OUT_SEED, greedy=options.greedy
        )
        scores = environment.scores or {}
    if options.json:
        print(json.dumps(result))
        return 0
    actions = "most probable" if options.greedy else "sampled"
    print(f"{config.agent} on {config.task}, {options.checkpoint} checkpoint, {actions} actions, held-out seed {seed}")
    rows = [
        ("episode return", f"{result['episode_return_mean']:.3f} ± {result['episode_return_std']:.3f}"),
        *((f"  of {name} play", f"{score:.3f}") for name, score in scores.items()),
        ("episode length", f"{result['episode_length_mean']:.1f} steps"),
        ("episodes", f"{result['episodes']:,}"),
    ]
    if "success_rate" in result:
        rows.insert(1 + len(scores), ("success rate", f"{result['success_rate']:.1%}"))
    _print_table(rows)
    return 0


def _watch(options: argparse.Namespace) -> int:
    if options.out is not None and options.out.suffix not in (".gif", ".mp4", ".html", ".png"):
        options.fail(f"--out must end in .gif, .mp4, .html or .png, but is {options.out}: choose one of them")
    from merlin.analysis.watching import watch

    path = watch(
        options.run_dir,
        options.out,
        episodes=options.episodes,
        seed=options.seed,
        which=options.checkpoint,
        greedy=options.greedy,
    )
    print(path)
    return 0


def _tasks(_: argparse.Namespace) -> int:
    # By its name, as gymnasium loads it: nothing else of this package knows of it.
    _print_table([(name, task.summary) for name, task in import_module("tasks").TASKS.items()])
    print("Any other gymnasium id works too, such as MiniGrid-MemoryS7-v0, or module:Id, which imports its module.")
    return 0


def _agents(_: argparse.Namespace) -> int:
    from merlin.agents import AGENTS

    _print_table([(name, entry.summary) for name, entry in AGENTS.items()])
    print("`merlin train --agent NAME --help-settings` lists the settings of one.")
    return 0


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.rstrip('.')} ({self.prog} --help tells more).\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("merlin", description="Agents that remember: train, evaluate and watch them.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable, summary: str, **more: Any) -> Callable:
        added = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False, **more
        )
        added.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        added.set_defaults(command=function, fail=added.error)
        return added.add_argument

    add = command(
        "train",
        _train,
        "train an agent, or continue training one",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add("task", metavar="TASK", nargs="?", help="a gymnasium id, or module:Id, which imports the module first "
        "(default: merlin/MemoryGame-v0)")  # fmt: skip
    add("--agent", metavar="NAME", help="merlin, rl-lstm or rl-mem (default: merlin)")
    add("--steps", metavar="N", type=_whole_number(1), help="environment steps in all, such as 1e6 (default: 1e6)")
    add("--num-envs", metavar="B", type=_whole_number(1), help="environments stepped together "
        "(default: 128 for tasks on tensors, 32 for others)")  # fmt: skip
    add("--seed", metavar="S", type=_seed, help="of weights, environments and every random choice (default: 1)")
    add("--device", metavar="auto|cpu|cuda", help="auto, the default, takes a GPU where there is one")
    add("--env-kwargs", metavar="JSON", type=_json_object, help="""settings of the task, such as '{"pairs": 4}'""")
    add("--vectorization", choices=("sync", "async"), help="whether environments that are not tensors are stepped in "
        "this process or in one process each (default: sync)")  # fmt: skip
    add("--set", metavar="path=value", nargs="+", action="extend", default=[], help="change settings of the agent "
        "(model.*) and of training (training.*); see --help-settings")  # fmt: skip
    add("--help-settings", action="store_true", help="list every setting of --set, with its type, its value for this "
        "task and agent and what it is, and exit")  # fmt: skip
    add("--run-dir", metavar="DIR", type=Path, help="where the run's files go "
        "(default: runs/TASK-AGENT-seedS-DATE-TIME)")  # fmt: skip
    add("--resume", metavar="DIR", type=Path, help="continue the run in this directory exactly where its last "
        "checkpoint was taken; needs nothing else")  # fmt: skip
    add("--max-seconds", metavar="S", type=_seconds, default=math.inf, help="stop after this long, with a checkpoint")
    add("--wandb", choices=("auto", "online", "offline", "disabled"), default="auto", help="Weights & Biases; auto, "
        "the default, goes online if you are logged in")  # fmt: skip

    add = command("evaluate", _evaluate, "play held-out episodes with a trained agent and print its score")
    add("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a run")
    add("--episodes", metavar="N", type=_whole_number(1), default=100, help="how many (default: 100)")
    add("--seed", metavar="S", type=_seed, help="chooses the held-out episodes (default: the run's seed)")
    add("--greedy", action="store_true", help="take the most probable actions instead of sampling")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")
    add("--num-envs", metavar="B", type=_whole_number(1), help="environments stepped together (default: the run's)")
    add("--json", action="store_true", help="print one JSON object and nothing else")

    add = command("watch", _watch, "record episodes of a trained agent: what it sees, believes, expects and recalls")
    add("run_dir", metavar="RUN_DIR", type=Path, help="the directory of a run")
    add("--episodes", metavar="N", type=_whole_number(1), default=1, help="how many (default: 1)")
    add("--seed", metavar="S", type=_seed, default=0, help="another seed shows other episodes (default: 0)")
    add("--greedy", action="store_true", help="take the most probable actions instead of sampling")
    add("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")
    add("--out", metavar="FILE", type=Path, help="a .gif or .mp4 film, an .html page to step through, or a .png "
        "of one step (default: RUN_DIR/episode.gif)")  # fmt: skip

    command("tasks", _tasks, "list the tasks of this package")
    command("agents", _agents, "list the agents")
    return parser


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
