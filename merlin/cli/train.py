"""merlin train."""

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merlin.cli.arguments import (
    add_command,
    add_configuration,
    add_import_from,
    add_trackers,
    path,
    seconds,
    whole_number,
)
from merlin.cli.configuration import new_config, print_settings, resumed_config
from merlin.cli.output import importing, print_table
from merlin.errors import counted, launched

if TYPE_CHECKING:
    from merlin.runs.presets import RunConfig
    from merlin.runs.run import Summary

_EXAMPLES = """\
examples:
  merlin train                                      MERLIN on the memory game: learns within minutes
  merlin train MiniGrid-MemoryS7-v0 --agent rl-lstm --steps 2e6
  merlin train --env-kwargs '{"pairs": 4}' --set model.memory_size=12 training.learning_rate=1e-3
  merlin train my_task:Mine-v0 --agent my_agent:Mine --preset general
  merlin train --resume runs/MemoryGame-v0-merlin-seed1-20260101-120000
  torchrun --nproc-per-node 2 -m merlin train       two processes or GPUs train one agent
"""


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "train an agent, or continue training one"
    add = add_command(commands, "train", summary, train, names_modules=True, epilog=_EXAMPLES)
    add_configuration(add)
    add("--steps", metavar="N", type=whole_number(1), help="environment steps in all, such as 1e6 "
        "(default: by task; 1e6 for the default one)")  # fmt: skip
    add("--help-settings", action="store_true", help="list every setting of --set, with its type, its value for this "
        "task, agent and preset, the paper's and what it is, and exit")  # fmt: skip
    add("--run-dir", metavar="DIR", type=path, help="where the run's files go "
        "(default: runs/TASK-AGENT-seedS-DATE-TIME)")  # fmt: skip
    add("--resume", metavar="DIR", type=path, help="continue the run in this directory exactly where its last "
        "checkpoint was taken; needs nothing else")  # fmt: skip
    add("--from", metavar="RUN_DIR", dest="started_from", type=Path, help="start with the weights of the run in this "
        "directory, which has the same agent and sizes; all else is new")  # fmt: skip
    add("--from-checkpoint", choices=("best", "last"), dest="started_from_checkpoint", help="which weights of that run "
        "(default: best)")  # fmt: skip
    add("--max-seconds", metavar="S", type=seconds, default=math.inf, help="stop after this long, with a checkpoint")
    add_trackers(add)
    add_import_from(add, "the working directory; none with --resume")


def train(options: argparse.Namespace) -> int:
    """Train, or go on training, and say how it ended."""
    config = resumed_config(options) if options.resume else new_config(options)
    if options.help_settings:
        print_settings(config)
        return 0
    from merlin import distributed
    from merlin.runs import run
    from merlin.runs.directory import default_run_dir

    run_dir = options.resume or options.run_dir or default_run_dir(config)
    files = run_dir.absolute()  # whatever an environment makes the working directory

    def tell() -> None:
        print(
            f"training {config.agent} on {config.task} until {config.steps:,} steps, "
            f"{counted(config.num_envs, 'environment')} on {run.resolve_device(config.device)}, seed {config.seed}; "
            f"run directory {run_dir}",
            flush=True,
        )

    summary = run.train(
        config,
        files,
        resume=options.resume is not None,
        wandb=options.wandb,
        tensorboard=options.tensorboard,
        max_seconds=options.max_seconds,
        on_start=tell,
        film=_film,
    )
    if distributed.speaks():
        _conclude(summary, config, run_dir, files, options.import_from)
    return 130 if summary.interrupted else 0


def _film(run_dir: Path) -> Path:
    """Film an episode, for Weights & Biases."""
    from merlin.viewer.watch import watch

    return watch(run_dir)


def _conclude(summary: "Summary", config: "RunConfig", run_dir: Path, files: Path, import_from: Path | None) -> None:
    """Say how the run ended, where its files are and what can be done next."""
    from merlin.training.checkpoint import steps

    name = shlex.quote(str(run_dir)) + importing(config, import_from)
    last = counted(summary.episodes, "episode") if summary.episodes != 1 else "episode"
    score = f", mean return {summary.episode_return_mean:.2f} of the last {last}"
    score = score if math.isfinite(summary.episode_return_mean) else ""
    how = "interrupted" if summary.interrupted else "done" if summary.env_steps >= config.steps else "out of time"
    rows = [("checkpoint", str(run_dir / "checkpoints" / steps(files)[-1].name))]
    if (files / "learning_curve.png").exists():
        rows.append(("learning curve", str(run_dir / "learning_curve.png")))
    if how != "done":
        rows.append(("resume", launched(f"train --resume {name}")))
    rows += [("evaluate", f"merlin evaluate {name}"), ("watch", f"merlin watch {name}")]
    print(f"{how} after {summary.env_steps:,} steps, {summary.wall_seconds:,.0f} s{score}")
    print_table(rows)
