"""merlin population."""

import argparse
import math
import shlex
import time
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
from merlin.cli.configuration import new_config, refuse
from merlin.cli.output import importing, print_table
from merlin.errors import MerlinError, launched
from merlin.plugins import short_name

if TYPE_CHECKING:
    from merlin.population.population import PopulationConfig
    from merlin.runs.presets import RunConfig

_EXAMPLES = """\
examples:
  merlin population merlin/CaptureTheFlag-v0 --agents 4 --agent ftw --steps 4e6
  merlin population merlin/CaptureTheFlag-v0 --agent rl-lstm --set population.burn_in_games=100
  merlin population --resume runs/CaptureTheFlag-v0-ftw-population-seed1-20260101-120000
  merlin tournament RUN_DIR random mixed             who is better, by how much
"""
_TASK, _AGENT = "merlin/CaptureTheFlag-v0", "ftw"
_PREFIX = "population."


def add_to(commands: Any) -> None:
    """Add the command and its arguments."""
    summary = "train agents that play with and against one another, and evolve"
    add = add_command(commands, "population", summary, population, names_modules=True, epilog=_EXAMPLES)
    add_configuration(add, _TASK, _AGENT, "what an agent alone has on the task, P times")
    add("--agents", metavar="P", type=whole_number(1, 1000), help="how many (default: 4)")
    add("--past-selves", metavar="N", type=whole_number(0, 1000), help="how many agents as they were play along, rated "
        "but learning no more; once there are N, the oldest makes room (default: 0)")  # fmt: skip
    add("--past-every", metavar="GAMES", type=whole_number(1), help="after how many games of the population another "
        "agent is kept as it is, each in turn (default: 500)")  # fmt: skip
    add("--steps", metavar="N", type=whole_number(1), help="steps of all players together (default: what an agent "
        "alone is trained for on the task, P times)")  # fmt: skip
    add("--run-dir", metavar="DIR", type=path, help="where the files go "
        "(default: runs/TASK-AGENT-population-seedS-DATE-TIME)")  # fmt: skip
    add("--resume", metavar="DIR", type=path, help="continue the population in this directory exactly where its last "
        "checkpoint was taken; needs nothing else")  # fmt: skip
    add("--max-seconds", metavar="S", type=seconds, default=math.inf, help="stop after this long, with a checkpoint")
    add_trackers(add)
    add_import_from(add, "the working directory; none with --resume")


def population(options: argparse.Namespace) -> int:
    """Train a population, or go on, and say how it ended."""
    from merlin import distributed
    from merlin.population import run
    from merlin.population.directory import PICTURE
    from merlin.runs.run import resolve_device

    config, settings = _resumed(options) if options.resume else _new(options)
    run_dir: Path = options.resume or options.run_dir or _default_run_dir(config)
    files = run_dir.absolute()

    def tell() -> None:
        print(
            f"training {settings.agents} agents, {config.agent}, on {config.task} until {config.steps:,} steps, "
            f"{config.num_envs} players on {resolve_device(config.device)}, seed {config.seed}; run directory "
            f"{run_dir}",
            flush=True,
        )

    is_resumed = options.resume is not None
    summary = run.train(
        config,
        settings,
        files,
        resume=is_resumed,
        wandb=options.wandb,
        tensorboard=options.tensorboard,
        max_seconds=options.max_seconds,
        on_start=tell,
    )
    if distributed.speaks():
        done = summary.env_steps >= config.steps
        how = "interrupted" if summary.interrupted else "done" if done else "out of time"
        print(f"{how} after {summary.env_steps:,} steps, {summary.wall_seconds:,.0f} s")
        name, modules = shlex.quote(str(run_dir)), importing(config, options.import_from)
        rows = [
            ("picture", f"{run_dir}/{PICTURE}"),
            ("tournament", f"merlin tournament {name}{modules}"),
            ("watch", f"merlin watch {name}/agents/00{modules}"),
        ]
        print_table(rows if done else [("resume", launched(f"population --resume {name}{modules}")), *rows])
    return 130 if summary.interrupted else 0


def _new(options: argparse.Namespace) -> "tuple[RunConfig, PopulationConfig]":
    from dataclasses import make_dataclass, replace

    from merlin.population.population import PopulationConfig
    from merlin.runs.settings import override

    own = [x for x in options.set if x.startswith(_PREFIX)]
    options.set = [x for x in options.set if not x.startswith(_PREFIX)]
    options.task = options.task or _TASK
    options.agent = options.agent or _AGENT
    config = new_config(options)
    try:
        given = {name: getattr(options, name) for name in ("agents", "past_selves", "past_every")}
        own += [f"{_PREFIX}{name}={value}" for name, value in given.items() if value is not None]
        groups = make_dataclass("Groups", [("population", PopulationConfig)])
        settings = override(groups(PopulationConfig()), own).population
        # Presets are of one agent: each learns from as much as it would alone, unless told.
        told = {x.partition("=")[0] for x in options.set} | {x for x in ("num_envs", "steps") if getattr(options, x)}
        for name in {"num_envs", "steps"} - told:
            config = replace(config, **{name: getattr(config, name) * settings.agents})
        if "training.staggered_episodes" not in told:
            config = replace(config, training=replace(config.training, staggered_episodes=True))
        return config, settings
    except MerlinError as error:
        refuse(options, error)


def _resumed(options: argparse.Namespace) -> "tuple[RunConfig, PopulationConfig]":
    from dataclasses import replace

    from merlin.population.directory import load_config

    fixed = ("task", "agent", "agents", "past_selves", "past_every", "preset", "seed", "num_envs", "env_kwargs", "wrap",
             "vectorization", "run_dir")  # fmt: skip
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name) is not None]
    if given or options.set:
        options.parser.error(
            "--resume continues a population as it began, so only --steps, --max-seconds and --device may change, but "
            f"{', '.join([*given, *options.set])} came: leave that out"
        )
    config, settings = load_config(options.resume)
    changed = {name: value for name in ("steps", "device") if (value := getattr(options, name)) is not None}
    return replace(config, **changed), settings


def _default_run_dir(config: "RunConfig") -> Path:
    names = f"{short_name(config.task)}-{short_name(config.agent)}-population-seed{config.seed}"
    return Path("runs") / f"{names}-{time.strftime('%Y%m%d-%H%M%S')}"
