"""Several agents, tasks and seeds trained and evaluated side by side, each run in a process of its own."""

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from merlin.agents import AGENTS
from merlin.config import from_dict, override, to_dict
from merlin.errors import MerlinError
from merlin.presets import RunConfig, preset
from merlin.run import interrupts, load_config, resolve_device
from merlin.training import checkpoint

RESULT = "evaluation.json"
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the tasks that agents are compared on."""

    task: str
    """A gymnasium id, or `module:Id`."""
    name: str = ""
    """What it is called in tables and pictures; the id unless given."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    steps: int | None = None
    """Environment steps of each run; none takes those of the preset."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of the agents that are compared, or one way to configure it."""

    agent: str
    """merlin, rl-mem or rl-lstm."""
    name: str = ""
    """What it is called in tables and pictures; the agent unless given."""
    set: tuple[str, ...] = ()
    """Settings, as of `merlin train --set`."""

    def __post_init__(self) -> None:
        for setting in self.set:
            if not setting.startswith(("model.", "training.")):
                raise MerlinError(f"what is set must be of model.* or training.*, but {setting!r} came: leave it out")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every agent on every task, with every seed."""

    tasks: tuple[Task, ...]
    agents: tuple[Contender, ...] = tuple(Contender(agent=name, name=name) for name in AGENTS)
    seeds: tuple[int, ...] = (1, 2, 3)
    episodes: int = 512
    """Held-out episodes of each evaluation."""
    max_seconds: float | None = None
    """End each run after this long; none lets it take all of its steps."""
    checkpoint: str = "last"
    """Which one is evaluated: last, or best, which the return in training chooses."""

    def __post_init__(self) -> None:
        # by what their run directories are called
        tasks, agents = ([_slug(entry.name) for entry in entries] for entries in (self.tasks, self.agents))
        for name, entries in (("tasks", tasks), ("agents", agents), ("seeds", list(self.seeds))):
            if not entries:
                raise MerlinError(f"a comparison needs {name}, but there are none: name at least one")
            if twice := [entry for entry in entries if entries.count(entry) > 1]:
                raise MerlinError(f"{name} must differ, but {twice[0]!r} comes twice: change one of them")
        if min(self.seeds) < 0:
            raise MerlinError(f"seeds must be at least 0, but {min(self.seeds)} came: take another")
        for task in self.tasks:
            if task.steps is not None and task.steps < 1:
                raise MerlinError(f"steps must be at least 1, but are {task.steps}: raise them, or leave them out")
        if self.checkpoint not in ("last", "best"):
            raise MerlinError(f"checkpoint must be last or best, but is {self.checkpoint!r}: choose one of them")
        if self.episodes < 1:
            raise MerlinError(f"episodes must be at least 1, but are {self.episodes}: raise them")


class Run(NamedTuple):
    """One run of a comparison."""

    task: Task
    contender: Contender
    seed: int
    run_dir: Path

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.task.name}, {self.contender.name}, seed {self.seed}"

    def config(self) -> RunConfig:
        """Return the configuration that `merlin train` makes of `arguments`."""
        config = preset(self.contender.agent, self.task.task, dict(self.task.env_kwargs))
        config = replace(config, seed=self.seed, steps=self.task.steps or config.steps)
        return override(config, list(self.contender.set))

    def arguments(self) -> list[str]:
        """Return those of `merlin train` that choose its configuration."""
        arguments = [self.task.task, "--agent", self.contender.agent, "--seed", str(self.seed)]
        arguments += ["--env-kwargs", json.dumps(self.task.env_kwargs)] if self.task.env_kwargs else []
        arguments += ["--steps", str(self.task.steps)] if self.task.steps else []
        return arguments + (["--set", *self.contender.set] if self.contender.set else [])

    def result(self) -> dict[str, Any] | None:
        """Return what its evaluation found, and how it was made; None before it."""
        try:
            return json.loads((self.run_dir / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None


def read_comparison(path: Path, changes: Mapping[str, Any] | None = None) -> Comparison:
    """Return the comparison that a TOML file describes, whose fields are those of `Comparison`.

    A task or an agent may be its id alone:

        agents = ["rl-mem", { agent = "merlin", name = "no trace", set = ["model.retroactive_discount=none"] }]
        tasks = [{ task = "merlin/MemoryGame-v0", env_kwargs = { pairs = 4 }, steps = 500_000 }]
        seeds = [1, 2, 3, 4, 5]

    Args:
        changes: What takes the place of entries of the file.

    Raises:
        MerlinError: It cannot be read, or says what has no meaning.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MerlinError(f"A comparison is read from a TOML file, but {path}: {error.strerror}.") from error
    except ValueError as error:
        raise MerlinError(f"A comparison is read from a TOML file, but {path} is none: {error}.") from error
    try:
        return make_comparison(values | dict(changes or {}))
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error


def make_comparison(values: Mapping[str, Any]) -> Comparison:
    """Return the comparison of plain values, as a file holds them.

    Raises:
        MerlinError: A name or a value has no meaning. Nothing was trained yet.
    """
    values = to_dict(Comparison(tasks=(Task(task="", name=""),))) | {"tasks": []} | dict(values)
    for name, empty in (("tasks", Task(task="")), ("agents", Contender(agent=""))):
        if isinstance(values[name], list):
            values[name] = [_entry(to_dict(empty), name[:-1], entry) for entry in values[name]]
    return from_dict(Comparison, values)


def _entry(empty: dict[str, Any], key: str, entry: Any) -> Any:
    entry = {key: entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping):
        return entry  # which is then refused
    return empty | {"name": entry.get(key)} | dict(entry)


def plan(comparison: Comparison, out: Path) -> list[Run]:
    """Return all runs, seed by seed, so that the first ones tell something of every agent.

    Raises:
        MerlinError: A task or an agent cannot be configured so, or a run of that name was configured otherwise.
    """
    runs = []
    for seed, task, contender in product(comparison.seeds, comparison.tasks, comparison.agents):
        run = Run(task, contender, seed, out / f"{_slug(task.name)}_{_slug(contender.name)}_seed{seed}")
        config = run.config()
        asked, found = _how(comparison), run.result()
        was = {} if found is None else {name: found.get(name) for name in asked if found.get(name) != asked[name]}
        if (run.run_dir / "config.json").exists() and load_config(run.run_dir) != config:
            was = {"configuration": "another"}
        if was:
            name, value = next(iter(was.items()))
            raise MerlinError(
                f"{run.run_dir} holds a run with another {name}"
                f"{'' if name == 'configuration' else f', {value}, where {asked[name]} came'}: "
                f"choose another --out, or remove that directory."
            )
        runs.append(run)
    return runs


def compare(
    runs: Sequence[Run],
    comparison: Comparison,
    *,
    jobs: int | None = None,
    wandb: str = "disabled",
    stream: io.TextIOBase | None = None,
) -> list[str]:
    """Train and evaluate what was not yet, and return what went wrong, a sentence for each run that failed.

    Run again after an interruption or a failure, it goes on where it was. Each run directory is that of a usual run,
    with `evaluation.json` besides.

    Args:
        runs: What `plan` returned.
        jobs: Runs at a time; as many as there are cores unless given.
        wandb: auto, online, offline or disabled.
        stream: Where progress is shown; standard error unless told.

    Raises:
        KeyboardInterrupt: All runs that were training have written checkpoints.
    """
    stream = sys.stderr if stream is None else stream
    with _alone_in(runs[0].run_dir.parent) as lock:
        return _compare(runs, lambda run: _Job(run, comparison, wandb, lock), jobs or _default_jobs(runs), stream)


def _compare(runs: Sequence[Run], start: Callable[[Run], "_Job"], jobs: int, stream: io.TextIOBase) -> list[str]:
    waiting = [run for run in runs if run.result() is None]
    total = sum(run.config().steps for run in waiting)
    running: list[_Job] = []
    failures: list[str] = []
    with (
        tqdm(total=total, unit=" steps", unit_scale=True, file=stream, disable=not stream.isatty()) as bar,
        interrupts() as interrupted,
    ):

        def note(text: str) -> None:
            tqdm.write(text, file=stream)

        note(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done; {min(jobs, len(waiting))} at a time")
        over = 0
        try:
            while (waiting or running) and not interrupted:
                while waiting and len(running) < jobs:
                    running.append(start(waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if not job.goes_on()]:
                    running.remove(job)
                    over += job.run.config().steps
                    if job.failure is not None:
                        failures.append(f"{job.run.name}: {job.failure}")
                    number = len(runs) - len(waiting) - len(running)
                    note(f"[{number}/{len(runs)}] {job.run.name}: {job.failure or job.outcome()}")
                bar.n = over + sum(job.env_steps() for job in running)
                bar.refresh()
        finally:
            if running:
                note(f"waiting for {len(running)} runs to save: the same command goes on from there")
            _end(running)
        if interrupted:
            raise KeyboardInterrupt
    return failures


@contextmanager
def _alone_in(directory: Path) -> Iterator[int]:
    """Keep a second comparison out of a directory, for as long as the descriptor is open here or in a run."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MerlinError(
                f"Another comparison, or runs that it left behind, is at work in {directory}: "
                f"wait for it, or choose another --out."
            ) from error
        yield file.fileno()


def _end(jobs: Sequence["_Job"]) -> None:
    """Let runs write their checkpoints and end, all at once; whoever interrupts that kills them."""
    try:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.process.wait()
    finally:
        for job in jobs:
            job.process.kill()
            job.process.wait()
            job.output.unlink(missing_ok=True)


class _Job:
    """One run on its way: training, then evaluation."""

    def __init__(self, run: Run, comparison: Comparison, wandb: str, lock: int) -> None:
        self.run, self.comparison, self.lock, self.failure = run, comparison, lock, None
        self.log = run.run_dir.with_name(f"{run.run_dir.name}.log")
        self.output = run.run_dir.with_name(f".{run.run_dir.name}.out")
        self.is_evaluating = False
        begin = ["--resume", str(run.run_dir)]
        if not checkpoint.steps(run.run_dir):
            # Whatever ended before its first checkpoint begins anew.
            shutil.rmtree(run.run_dir, ignore_errors=True)
            begin = [*run.arguments(), "--run-dir", str(run.run_dir)]
        if comparison.max_seconds is not None:
            # A run whose time is over, but for its evaluation, ends at once.
            left = comparison.max_seconds - checkpoint.read_wall_seconds(run.run_dir)
            begin += ["--max-seconds", str(max(left, 1e-3))]
        self._start("train", *begin, "--wandb", wandb)

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "merlin", *arguments]
        with open(self.log, "a", encoding="utf-8") as log, open(self.output, "w", encoding="utf-8") as output:
            log.write(f"{shlex.join(command)}\n")
            log.flush()
            # A session of its own: Ctrl-C is for this process, which asks each run once to end.
            self.process = subprocess.Popen(
                command, stdout=output, stderr=log, start_new_session=True, pass_fds=[self.lock]
            )

    def goes_on(self) -> bool:
        """Look after the run and return whether it is still on its way."""
        status = self.process.poll()
        if status is None:
            return True
        printed = self.output.read_text(encoding="utf-8")
        self.output.unlink()
        if status:
            lines = self.log.read_text(encoding="utf-8").strip().splitlines()
            self.failure = f"failed with status {status}, see {self.log}: {lines[-1][:200]}"
            return False
        if self.is_evaluating:
            try:
                found = json.loads(printed.strip().splitlines()[-1])  # tasks may have printed before
            except (ValueError, IndexError):
                self.failure = f"was evaluated, but printed no result: {printed[-200:]!r}"
                return False
            temporary = self.run.run_dir / f".{RESULT}"
            temporary.write_text(json.dumps(found | _how(self.comparison)) + "\n", encoding="utf-8")
            os.replace(temporary, self.run.run_dir / RESULT)
            return False
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(printed)
        self.is_evaluating = True
        episodes, which = str(self.comparison.episodes), self.comparison.checkpoint
        self._start("evaluate", str(self.run.run_dir), "--checkpoint", which, "--episodes", episodes, "--json")
        return True

    def env_steps(self) -> int:
        """Return how far the run got."""
        return int(self._last("env_steps"))

    def outcome(self) -> str:
        """Return how well the run ended, in a line."""
        result = self.run.result() or {}
        success = f", success {result['success_rate']:.0%}" if "success_rate" in result else ""
        return (
            f"return {result['episode_return_mean']:.2f}{success} after {self.env_steps():,} steps, "
            f"{self._last('wall_seconds'):,.0f} s"
        )

    def _last(self, name: str) -> float:
        return float(last_metrics(self.run.run_dir).get(name, 0.0))


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """Return the last report of a run; nothing if there is none yet."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:  # being written
            continue
    return {}


def _default_jobs(runs: Sequence[Run]) -> int:
    """Return how many runs the cores bear; one where they would share a GPU."""
    configs = [run.config() for run in runs]
    if any(resolve_device(config.device).type == "cuda" for config in configs):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(config.training.num_threads for config in configs))


def _how(comparison: Comparison) -> dict[str, Any]:
    """Return what of a comparison, beside the configuration, its results depend on."""
    return {name: getattr(comparison, name) for name in ("episodes", "checkpoint", "max_seconds")}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
