"""Whole run configurations by family of tasks, task and agent.

Each family is a module whose `table(task, env_kwargs)` says, for each agent, all settings that are not the defaults of
its dataclasses, by the names that `merlin train --set` takes. A name that the agent's configuration lacks is an error.
What no family of ours names gets the table `general`, which depends on what a look at the task shows, not on its name.

An agent of `module:Class` starts from the table of the agent here whose configuration class its own extends. If it
extends none of them, it starts from RL-MEM's table, as far as its configuration has fields of those names.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from merlin.agents import AGENTS, find_agent
from merlin.environments.arguments import wrong_argument
from merlin.environments.batch import make_environment
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec, rows_per_game
from merlin.environments.sight import Sight, look
from merlin.errors import MerlinError, describe, quote
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.ranges import COUNT, SEED, Range, SettingError, Settings
from merlin.runs.curriculum import CurriculumConfig
from merlin.runs.presets import (
    capture_the_flag,
    dreamer,
    ftw,
    general,
    grid_world,
    matching,
    memory_game,
    minigrid_memory,
    paper,
    symbols,
    tmaze,
)
from merlin.runs.settings import from_dict
from merlin.training.trainer import TrainingConfig

DEFAULT_TASK = "merlin/MemoryGame-v0"
GENERAL = "general"


class Family(NamedTuple):
    """A family of tasks that are trained alike."""

    tasks: tuple[str, ...]
    """Beginnings of their ids."""
    table: Callable[[str, Mapping[str, Any]], dict[str, dict[str, Any]]] | None
    """Settings by agent, given the task's id and the keyword arguments of its environment; none takes `general`'s,
    which are given what a look at the task shows."""


FAMILIES = {
    "memory-game": Family(("merlin/MemoryGame",), memory_game.table),
    "tmaze": Family(("merlin/TMaze",), tmaze.table),
    "symbols": Family(("merlin/RepeatPrevious", "merlin/Playback", "merlin/VisuomotorMapping"), symbols.table),
    "minigrid-memory": Family(("merlin/Memory-", "MiniGrid-Memory"), minigrid_memory.table),
    "matching": Family(("merlin/LatentLearning", "merlin/TransientInstruction"), matching.table),
    "capture-the-flag": Family(("merlin/CaptureTheFlag",), capture_the_flag.table),
    "paper": Family((), paper.table),
    "grid-world": Family(("merlin/",), grid_world.table),  # all others of ours
    GENERAL: Family(("",), None),  # all others
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Everything that a run is made from."""

    task: str = DEFAULT_TASK
    """A gymnasium id, or `module:Id`, which imports the module first."""
    agent: str = "merlin"
    """Which agent: see `merlin agents`, or `module:Class`, which imports the module first."""
    preset: str = field(default="", compare=False)
    """The family of tasks whose table the settings started from. A record only, unknown of old runs."""
    preset_reason: str = field(default="", compare=False)
    """Why that table, in words. A record only."""
    seed: Annotated[int, SEED] = 1
    """Of the weights, the environments and every random choice."""
    steps: Annotated[int, COUNT] = 1_000_000
    """Environment steps to train for."""
    num_envs: Annotated[int, Range(1, 1_048_576)] = 128
    """B, environments stepped together, by all processes."""
    device: str = field(default="auto", compare=False)
    """cpu, cuda, or auto: cuda where there is one. No part of what a run is."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    vectorization: Literal["sync", "async"] = "sync"
    """How environments that are not tensors are stepped: sync in this process, async in one process each."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """How environments are taken."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Easier tasks that training begins with."""
    started_from: str | None = None
    """Directory of the run whose weights it starts with; none draws them from the seed."""
    started_from_checkpoint: Literal["best", "last"] = "best"
    """Which of that run's weights."""
    model: ActorCriticConfig
    """The agent's configuration."""
    training: TrainingConfig
    """The training's configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.minibatches > self.num_envs:
            raise SettingError(
                f"training.minibatches must be at most num_envs, {self.num_envs}, as windows are split by environment, "
                f"but is {self.training.minibatches}: lower it."
            )


def preset(
    agent: str = "merlin",
    task: str = DEFAULT_TASK,
    env_kwargs: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    environment: EnvironmentConfig | None = None,
) -> RunConfig:
    """Return the configuration that an agent is trained with on a task unless told otherwise.

    For a task that is none of ours, one is built and stepped for a moment, to see what it is and how fast.

    Args:
        name: One of `FAMILIES`; the family of the task unless given. "paper" has the sizes and costs of the paper,
            "general" what is for tasks of any kind.
        environment: How the task is taken; the configuration has it.

    Raises:
        MerlinError: There is no such agent or preset.
    """
    env_kwargs, environment = env_kwargs or {}, environment or EnvironmentConfig()
    by_task = family_of(task)
    reason = "as told" if name is not None and name != by_task else "by the task's name"
    name = by_task if name is None else name
    config_class = find_agent(agent).config_class
    sight = look(task, env_kwargs, environment) if GENERAL in (name, by_task) else None
    if name == GENERAL:
        reason = f"{'as told' if name != by_task else 'no table of ours names the task'}: {sight}"
    values = {"model": {}, "training": {}} | _nested(recommended(agent, task, env_kwargs, name, sight))
    values |= {"task": task, "agent": agent, "preset": name, "preset_reason": reason, "env_kwargs": env_kwargs}
    try:
        return replace(from_dict(RunConfig, values, {"model": config_class}), environment=environment)
    except MerlinError as error:
        if env_kwargs and sight is None:  # which the task may refuse in words of its own
            rows = rows_per_game(find_spec(task), env_kwargs, environment)
            make_environment(task, rows, env_kwargs=env_kwargs, config=environment).close()
        raise MerlinError(f"The preset {name!r} does not fit the agent {agent!r}: {error}") from error


def family_of(task: str) -> str:
    """Return the name of the family that a task calls for."""
    task_id = task.rpartition(":")[2]
    return next(name for name, family in FAMILIES.items() if task_id.startswith(family.tasks))


def recommended(
    agent: str, task: str, env_kwargs: Mapping[str, Any], name: str, sight: Sight | None = None
) -> dict[str, Any]:
    """Return the settings that a preset says of an agent, by their dotted names.

    Args:
        sight: What the task looks like, of which `general` and Dreamer make something.
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
        raise MerlinError(f"A preset is one of {', '.join(FAMILIES)}, but {quote(name)} came: {hint}")
    table_of, is_continuous = FAMILIES[name].table, sight is not None and sight.is_continuous
    is_paper = name == "paper"
    try:
        table = general.table(sight or Sight()) if table_of is None else table_of(task.rpartition(":")[2], env_kwargs)
        table |= {
            "dreamer": dreamer.paper(is_continuous) if is_paper else dreamer.table(name, is_continuous),
            "ftw": ftw.paper() if is_paper else ftw.table(name, env_kwargs),
        }
    except (TypeError, ValueError, ArithmeticError) as error:  # sizes that follow from them, as if they were numbers
        if (told := wrong_argument(find_spec(task), env_kwargs)) is not None:
            raise MerlinError(f"{told}.") from error
        raise MerlinError(
            f"Settings of {quote(task)} must be what it takes, but {quote(dict(env_kwargs))} came, of which the preset "
            f"{name!r} makes nothing ({describe(error)}): correct them."
        ) from error
    return _of_agent(agent, table)


def paper_values(agent: str, task: str, env_kwargs: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the settings that the paper or others who rebuilt it state: (value, "paper" or "second-hand")."""
    sourced = paper.sourced(task.rpartition(":")[2], env_kwargs)
    rows = {} if agent in AGENTS and agent not in sourced else _of_agent(agent, sourced)  # of other papers
    return {path: (value, source) for path, (value, source) in rows.items() if source != paper.OURS}


def _of_agent(agent: str, table: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return an agent's part of a table, by the rule in the module's docstring."""
    if agent in table:
        return table[agent]
    config_class = find_agent(agent).config_class
    for name in table:
        if issubclass(config_class, AGENTS[name].config_class):
            return table[name]
    return {path: value for path, value in _flat(table["rl-mem"]).items() if _has(config_class, path)}


def _has(config_class: type, path: str) -> bool:
    """Return whether an agent's configuration has a setting; other settings of a run are there for every agent."""
    group, *names = path.split(".")
    owner: Any = config_class
    for name in names if group == "model" else ():
        if not is_dataclass(owner) or name not in {x.name for x in fields(owner)}:
            return False
        owner = get_type_hints(owner)[name]
    return True


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted names only, from some whose values are dicts of further ones."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dicts in dicts from dotted names."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *groups, name = path.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return nested
