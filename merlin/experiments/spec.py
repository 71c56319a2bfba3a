"""Comparisons of agents on tasks with seeds, from a command or a file, as runs for `merlin.experiments.launcher`."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from merlin.agents.memory_ablation import ABLATIONS
from merlin.errors import MerlinError, describe, obstacle
from merlin.runs.directory import changes
from merlin.runs.metrics import read_rows
from merlin.runs.presets import GENERAL, RunConfig, preset
from merlin.runs.run import load_config
from merlin.runs.settings import from_dict, override, to_dict
from merlin.training import checkpoint

RESULT = "evaluation.json"
_ELSEWHERE = "choose another --out, or remove that directory"


COMPARED = ("merlin", "rl-lstm", "rl-mem")
"""Agents that are compared unless others are named. Dreamer learns of a step at some fifty times their price."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task of a comparison, as it is configured."""

    task: str
    """A gymnasium id, or `module:Id`."""
    name: str = ""
    """Its label in tables and pictures; the id unless given."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    steps: int | None = None
    """Environment steps of each run; none takes those of the preset."""
    max_seconds: float | None = None
    """End each run after this long; none takes the comparison's."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """An agent of a comparison, as it is configured."""

    agent: str
    """merlin, dreamer, ftw, rl-mem, rl-lstm, or `module:Class`."""
    name: str = ""
    """Its label in tables and pictures; the agent unless given."""
    set: tuple[str, ...] = ()
    """Settings, as of `merlin train --set`."""

    def __post_init__(self) -> None:
        for setting in self.set:
            if not setting.startswith(("model.", "training.", "num_envs=")):
                raise MerlinError(
                    f"what is set must be of model.* or training.*, or num_envs, but {setting!r} came: leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every agent on every task, with every seed."""

    tasks: tuple[TaskSpec, ...]
    agents: tuple[AgentSpec, ...] = tuple(AgentSpec(agent=name, name=name) for name in COMPARED)
    seeds: tuple[int, ...] = (1, 2, 3)
    episodes: int = 512
    """Held-out episodes of each evaluation."""
    max_seconds: float | None = None
    """End each run after this long; none lets it take all of its steps."""
    checkpoint: str = "last"
    """The weights that are evaluated: last, or best, which the return in training chooses."""
    memory: tuple[str, ...] = ()
    """Ablations of the memory that are evaluated besides: zeroed, frozen, shuffled."""

    def __post_init__(self) -> None:
        # by what their run directories are called
        tasks, agents = ([slug(entry.name) for entry in entries] for entries in (self.tasks, self.agents))
        named: dict[str, Sequence[str | int]] = {"tasks": tasks, "agents": agents, "seeds": self.seeds}
        for name, entries in named.items():
            if not entries:
                raise MerlinError(f"a comparison needs {name}, but there are none: name at least one")
            if twice := [entry for entry in entries if entries.count(entry) > 1]:
                raise MerlinError(f"{name} must differ, but {twice[0]!r} comes twice: change one of them")
        if min(self.seeds) < 0:
            raise MerlinError(f"seeds must be at least 0, but {min(self.seeds)} came: take another")
        for task in self.tasks:
            if task.steps is not None and task.steps < 1:
                raise MerlinError(f"steps must be at least 1, but are {task.steps}: raise them, or leave them out")
        for seconds in (self.max_seconds, *(task.max_seconds for task in self.tasks)):
            if seconds is not None and not seconds > 0:
                raise MerlinError(f"max_seconds must be above 0, but is {seconds:g}: raise it, or leave it out")
        if self.checkpoint not in ("last", "best"):
            raise MerlinError(f"checkpoint must be last or best, but is {self.checkpoint!r}: choose one of them")
        if unknown := [name for name in self.memory if name not in ABLATIONS]:
            raise MerlinError(f"a memory can be {', '.join(ABLATIONS)}, but {unknown[0]!r} came: choose one of them")
        if len({*self.memory}) < len(self.memory):
            raise MerlinError(f"ways of memory must differ, but are {', '.join(self.memory)}: leave one out")
        if "shuffled" in self.memory and self.episodes < 2:
            raise MerlinError("memories are shuffled between episodes, but episodes is 1: raise it")
        if self.episodes < 1:
            raise MerlinError(f"episodes must be at least 1, but are {self.episodes}: raise them")


class Run(NamedTuple):
    """One run of a comparison."""

    task: TaskSpec
    agent: AgentSpec
    seed: int
    run_dir: Path
    conditions: dict[str, Any]
    """Those of its results beside its configuration: episodes, checkpoint, max_seconds."""
    settled: tuple[str, ...] = ()
    """Settings that follow from how long a step took once, so that all runs of the comparison have the same."""

    @property
    def name(self) -> str:
        """Its label in reports of progress."""
        return f"{self.task.name}, {self.agent.name}, seed {self.seed}"

    def config(self) -> RunConfig:
        """Return the configuration that `merlin train` makes of `arguments`."""
        config = preset(self.agent.agent, self.task.task, dict(self.task.env_kwargs))
        config = replace(config, seed=self.seed, steps=self.task.steps or config.steps)
        return override(config, [*self.settled, *self.agent.set])

    def arguments(self) -> list[str]:
        """Return those of `merlin train` that choose its configuration."""
        arguments = [self.task.task, "--agent", self.agent.agent, "--seed", str(self.seed)]
        arguments += ["--env-kwargs", json.dumps(self.task.env_kwargs)] if self.task.env_kwargs else []
        arguments += ["--steps", str(self.task.steps)] if self.task.steps else []
        settings = [*self.settled, *self.agent.set]
        return arguments + (["--set", *settings] if settings else [])

    def missing(self, memory: Sequence[str]) -> list[str]:
        """Return the evaluations still to be made: own first, which tells what the agent's memory bears."""
        found = self.result()
        if found is None:
            return ["own", *memory]
        possible = found.get("ablations", memory if hasattr(self.config().model, "memory_size") else ())
        return [name for name in memory if name in possible and name not in found]

    def result(self) -> dict[str, Any] | None:
        """Return the results of its evaluation and their conditions; None before it, or where the run is to go on."""
        try:
            found = json.loads((self.run_dir / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        if not isinstance(found, dict):
            return None
        spent, allowed = (float(x.get("max_seconds") or "inf") for x in (found, self.conditions))
        last = checkpoint.last_step(self.run_dir)
        is_of_last = last is None or found.get("checkpoint_step", last) == last
        return found if allowed <= spent and is_of_last else None


def read_comparison(path: Path, changes: Mapping[str, Any] | None = None) -> Comparison:
    """Return the comparison that a TOML file describes, whose fields are those of `Comparison`.

    A task or an agent may be its id alone:

        agents = ["rl-mem", { agent = "merlin", name = "no trace", set = ["model.retroactive_discount=none"] }]
        tasks = [{ task = "merlin/MemoryGame-v0", env_kwargs = { pairs = 4 }, steps = 500_000 }]
        seeds = [1, 2, 3, 4, 5]

    Args:
        changes: Values that replace entries of the file; `max_seconds` replaces those of its tasks too.

    Raises:
        MerlinError: It cannot be read, or says what has no meaning.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MerlinError(f"A comparison is read from a TOML file, but {path}: {obstacle(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise MerlinError(f"A comparison is read from a TOML file, but {path} is none: {describe(error)}.") from error
    try:
        comparison = make_comparison(values | dict(changes or {}))
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error
    if "max_seconds" in (changes or {}):
        return replace(comparison, tasks=tuple(replace(task, max_seconds=None) for task in comparison.tasks))
    return comparison


def choose(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Return the comparison of those of its tasks and of its agents that are named; of all where none of them is.

    Raises:
        MerlinError: A name is that of none, or of a task and an agent.
    """
    known = [entry.name for entry in (*comparison.tasks, *comparison.agents)]
    if wrong := [name for name in names if known.count(name) != 1]:
        raise MerlinError(
            f"Tasks and agents of the comparison are chosen by their names, {', '.join(map(repr, known))}, "
            f"but {wrong[0]!r} came, which {'is two' if wrong[0] in known else 'is none'} of them: choose another."
        )
    tasks = tuple(task for task in comparison.tasks if task.name in names)
    agents = tuple(agent for agent in comparison.agents if agent.name in names)
    return replace(comparison, tasks=tasks or comparison.tasks, agents=agents or comparison.agents)


def make_comparison(values: Mapping[str, Any]) -> Comparison:
    """Return the comparison of plain values, as a file holds them.

    Raises:
        MerlinError: A name or a value has no meaning. Nothing was trained yet.
    """
    values = to_dict(Comparison(tasks=(TaskSpec(task="", name=""),))) | {"tasks": []} | dict(values)
    for name, empty in (("tasks", TaskSpec(task="")), ("agents", AgentSpec(agent=""))):
        if isinstance(values[name], list):
            values[name] = [_entry(to_dict(empty), name[:-1], entry) for entry in values[name]]
    return from_dict(Comparison, values)


def _entry(empty: dict[str, Any], key: str, entry: Any) -> Any:
    entry = {key: entry} if isinstance(entry, str) else entry
    if not isinstance(entry, Mapping):
        return entry  # which is then refused
    return empty | dict(entry) | {"name": entry.get("name") or entry.get(key)}


def plan(comparison: Comparison, out: Path) -> list[Run]:
    """Return all runs, seed by seed, so that the first ones tell something of every agent.

    A run that ended sooner than it now may is to go on. (One that was to take other steps was scheduled otherwise.)

    Raises:
        MerlinError: A task or an agent cannot be configured so, or a run of that name was configured otherwise.
    """
    runs: list[Run] = []
    for seed, task, agent in product(comparison.seeds, comparison.tasks, comparison.agents):
        run_dir = out / f"{slug(task.name)}_{slug(agent.name)}_seed{seed}"
        seconds = comparison.max_seconds if task.max_seconds is None else task.max_seconds
        asked = {"episodes": comparison.episodes, "checkpoint": comparison.checkpoint, "max_seconds": seconds}
        run = Run(task, agent, seed, run_dir, asked)
        run = run._replace(settled=_settled(run, [other for other in runs if other[:2] == run[:2]]))
        if (run_dir / "config.json").exists() and (then := load_config(run_dir)) != run.config():
            differing = changes(run.config(), to_dict(then))
            what = next((f", with {path} {other!r} rather than {value!r}" for path, value, other in differing), "")
            raise MerlinError(f"{run_dir} holds a run of another configuration{what}: {_ELSEWHERE}")
        found = run.result() or asked
        if differing := [name for name in asked if found.get(name) != asked[name]]:
            came = f"{differing[0]} {found.get(differing[0])}, but {asked[differing[0]]} came"
            raise MerlinError(f"{run_dir} holds a run with {came}: {_ELSEWHERE}")
        runs.append(run)
    return runs


def _settled(run: Run, others: Sequence[Run]) -> tuple[str, ...]:
    """Return the settings that speed decides, as the other runs of the same task and agent have them, or this one."""
    if others:
        return others[0].settled
    known = (run.run_dir / "config.json").exists()
    config = load_config(run.run_dir) if known else run.config()
    return (f"training.passes={config.training.passes}",) if config.preset == GENERAL else ()


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """Return the last report of a run; nothing if there is none yet."""
    rows = read_rows(run_dir)
    return rows[-1] if rows else {}


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
