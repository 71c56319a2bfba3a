"""The command line: build, call, and say what came of it.

Whatever is slow to import is imported by the command that needs it, so that --help is instant.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from merlin.cli.arguments import parse_arguments
from merlin.errors import MerlinError

if TYPE_CHECKING:
    from merlin.runs.presets import RunConfig
    from merlin.runs.run import Summary

_CHOOSE_THE_PRESET = ("task", "agent", "env_kwargs")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 130 interrupted.

    Raises:
        SystemExit: With status 2 for bad usage, with 0 after --help.
    """
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "compare": _compare,
        "analyse": _analyse,
        "watch": _watch,
        "profile": _profile,
        "play": _play,
        "tasks": _tasks,
        "agents": _agents,
    }
    options = parse_arguments(arguments)
    try:
        status = commands[options.command](options)
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
        from merlin.runs.settings import fields_help

        print("\n".join(line for line in fields_help(config) if not line.startswith(_CHOOSE_THE_PRESET)))
        return 0
    from merlin import distributed
    from merlin.runs import run

    run_dir = options.resume or options.run_dir or _default_run_dir(config)
    leads = not distributed.is_launched() or os.environ["RANK"] == "0"  # of several processes one speaks
    if leads:
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
    if leads:
        _conclude(summary, config, run_dir)
    return 130 if summary.interrupted else 0


def _new_config(options: argparse.Namespace) -> "RunConfig":
    from dataclasses import replace

    from merlin.runs.presets import DEFAULT_TASK, preset
    from merlin.runs.settings import override

    for assignment in options.set:
        if assignment.startswith(_CHOOSE_THE_PRESET):
            options.fail(f"{assignment} would come after what it chooses: use TASK, --agent or --env-kwargs")
    try:
        config = preset(options.agent or "merlin", options.task or DEFAULT_TASK, options.env_kwargs)
        names = ("seed", "steps", "num_envs", "device", "vectorization")
        flags = {name: getattr(options, name, None) for name in names}
        config = replace(config, **{name: value for name, value in flags.items() if value is not None})
        parts = min(config.training.minibatches, config.num_envs)  # a window is split by environment
        return override(replace(config, training=replace(config.training, minibatches=parts)), options.set)
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

    from merlin.runs.run import load_config
    from merlin.runs.settings import override

    config = load_config(options.resume)
    try:
        return override(replace(config, steps=options.steps or config.steps), options.set)
    except MerlinError as error:
        options.fail(str(error))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default_run_dir(config: "RunConfig") -> Path:
    return (
        Path("runs") / f"{_short_name(config.task)}-{config.agent}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    )


def _short_name(task: str) -> str:
    return task.rpartition(":")[2].rpartition("/")[2]


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
    from merlin.agents.memory_ablation import MemoryAblation
    from merlin.runs.run import build_environment, existing_checkpoint, load_agent, load_config
    from merlin.training.evaluation import HELD_OUT_SEED, evaluate

    config = load_config(options.run_dir)
    config.training.set_torch()
    way = options.memory
    seed = config.seed if options.seed is None else options.seed
    num_envs = min(options.num_envs or config.num_envs, options.episodes)
    if way == "shuffled" and num_envs < 2:
        options.fail(
            "--memory shuffled needs at least 2 environments to shuffle between: raise --num-envs or --episodes"
        )
    with build_environment(config, num_envs) as environment:
        agent = load_agent(options.run_dir, environment, config, options.checkpoint)
        result = evaluate(
            agent if way == "own" else MemoryAblation(agent, way),
            environment,
            episodes=options.episodes,
            seed=seed + HELD_OUT_SEED,
            greedy=options.greedy,
            skip=1 if way == "frozen" else 0,
        )
        scores = environment.scores
    if options.json:
        print(json.dumps(result | {"memory": way}))
        return 0
    actions = "most probable" if options.greedy else "sampled"
    which = existing_checkpoint(options.run_dir, options.checkpoint)
    who = config.agent if way == "own" else f"{config.agent} with its memory {way}"
    print(f"{who} on {config.task}, {which} checkpoint, {actions} actions, held-out seed {seed}")
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


def _compare(options: argparse.Namespace) -> int:
    from merlin.experiments.launcher import compare
    from merlin.experiments.results import (
        CURVE_COLUMNS,
        collect,
        collect_curves,
        plot_comparison,
        reference_scores,
        table,
        write_rows,
    )
    from merlin.experiments.spec import choose, make_comparison, plan, read_comparison

    first, *others = options.what
    asked = {name: getattr(options, name) for name in ("seeds", "episodes", "max_seconds", "memory")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if first.endswith(".toml"):
        names = [_flag(name) for name in ("agents", "steps", "env_kwargs", "set") if getattr(options, name)]
        if others or names:
            options.fail(
                f"a file says which tasks and agents are compared, but {', '.join(others + names)} came too: "
                f"leave that out, or write it into {first}"
            )
        comparison = read_comparison(Path(first), asked)
    else:
        entry = {"env_kwargs": options.env_kwargs or {}, "steps": options.steps}
        agents = [{"agent": name, "set": options.set} for name in options.agents or _agent_names()]
        try:
            comparison = make_comparison(
                {"tasks": [{"task": x, **entry} for x in options.what], "agents": agents, **asked}
            )
        except MerlinError as error:
            options.fail(str(error))
    out = options.out or Path("runs") / f"compare-{Path(first).stem if first.endswith('.toml') else _short_name(first)}"
    runs = plan(comparison, out)
    chosen = plan(choose(comparison, options.only or []), out)
    references = reference_scores(comparison, runs)  # and each task can be built
    failures = compare(chosen, comparison, jobs=options.jobs, wandb=options.wandb)
    runs = [run for run in runs if run in chosen or run.result()]
    rows = collect(runs, references)
    if rows:
        text = table(rows, references)
        write_rows(rows, out / "results.csv")
        (out / "results.md").write_text(text, encoding="utf-8")
        write_rows(collect_curves(runs), out / "curves.csv", CURVE_COLUMNS)
        plot_comparison(runs, references, out / "curves.png")
        print(text)
        _print_table(
            [
                ("table", str(out / "results.md")),
                ("runs", str(out / "results.csv")),
                ("curves", f"{out / 'curves.png'}, {out / 'curves.csv'}"),
            ]
        )
    if failures:
        return _fail(f"{len(failures)} of {len(chosen)} runs failed, the first of them {failures[0]}", 1)
    return 0


def _agent_names() -> list[str]:
    from merlin.agents import AGENTS

    return list(AGENTS)


def _analyse(options: argparse.Namespace) -> int:
    from merlin.analysis.report import analyse

    path = analyse(
        options.run_dir,
        options.out,
        episodes=options.episodes,
        seed=options.seed,
        which=options.checkpoint,
        note=lambda sentence: print(f"{sentence} ...", file=sys.stderr),
    )
    print(path)
    return 0


def _watch(options: argparse.Namespace) -> int:
    if options.out is not None and options.out.suffix not in (".gif", ".mp4", ".html", ".png"):
        options.fail(f"--out must end in .gif, .mp4, .html or .png, but is {options.out}: choose one of them")
    from merlin.viewer.watch import watch

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


def _profile(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from merlin.runs.profiling import profile
    from merlin.runs.run import resolve_device

    config = _new_config(options)
    if options.trace is not None and not options.trace.parent.is_dir():
        options.fail(f"--trace must name a file in a directory that exists, but {options.trace.parent} does not")
    result = profile(config, options.seconds, options.trace)
    if options.json:
        print(json.dumps(asdict(result) | {"utilization": result.utilization}))
        return 0
    threads = config.training.num_threads
    device = str(resolve_device(config.device))
    where = f"cpu, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
    print(
        f"{config.agent} on {config.task}, {config.num_envs} environments, windows of {config.training.unroll_length} "
        f"steps, {where}"
    )
    rest = max(0.0, 1 - sum(result.shares.values()))
    rows = [("environment steps", f"{result.steps_per_second:,.0f} per second")]
    rows += [(f"  {name}", f"{share:.1%} of the time") for name, share in (result.shares | {"the rest": rest}).items()]
    rows += [
        ("operations", f"{result.flops_per_step / 1e6:,.2f} million per environment step: products, convolutions"),
        (
            "  of the machine's",
            f"{result.utilization:.1%} of {result.product_flops_per_second / 1e9:,.0f} billion per second, "
            f"which large products reach here",
        ),
        ("peak memory", f"{result.peak_megabytes:,.0f} MB, {result.first_megabytes:,.0f} MB of it before training"),
        ("agent's state", f"{result.agent_bytes:,.0f} bytes per environment"),
    ]
    if result.task_bytes is not None:
        rows.append(("task's state", f"{result.task_bytes:,.0f} bytes per environment"))
    if options.trace is not None:
        rows.append(("trace", str(options.trace)))
    _print_table(rows)
    return 0


def _play(options: argparse.Namespace) -> int:
    from merlin.viewer.play import play

    task = import_module("merlin.tasks").TASKS.get(options.task)
    summary = task.summary if task else ""
    play(options.task, options.env_kwargs, seed=options.seed, view=options.view, summary=summary)
    return 0


def _tasks(_: argparse.Namespace) -> int:
    # By its name, as gymnasium loads it: nothing else of this package knows of it.
    _print_table([(name, task.summary) for name, task in import_module("merlin.tasks").TASKS.items()])
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
