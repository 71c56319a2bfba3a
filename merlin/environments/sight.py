"""A look at a task before it is trained on: what kinds of entries and actions it has, and how long a step takes."""

import statistics
import textwrap
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from gymnasium.spaces import Box

from merlin.environments.batch import Environment, make_environment
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec
from merlin.environments.passed import find_instance, is_of_this_process
from merlin.environments.workers import Workers
from merlin.errors import MerlinError
from merlin.networks.action_spaces import open_action_space
from merlin.networks.actions import make_action_distribution
from merlin.networks.spaces import kind

SECONDS = 0.5
"""That looking may take once the environment stands, though never less than `FEWEST_STEPS`."""
FEWEST_STEPS, MOST_STEPS = 3, 50
"""Steps that are looked at."""
PATIENCE = 10.0
"""Seconds after which a task that does not answer is looked at no longer."""


class Sight(NamedTuple):
    """What a task looks like. Nothing of it depends on the task's name."""

    kinds: frozenset[str] = frozenset()
    """Kinds of the observation's entries; empty where the task could not be looked at."""
    is_continuous: bool = False
    """Whether some number of an action is of a Box."""
    is_native: bool = False
    """Whether it is a batch of tensors, in which a step of one environment costs almost nothing."""
    step_seconds: float = 0.0
    """Of a step of one environment, in its own process: that which a quarter of the steps are faster than."""
    failure: str = ""
    """Why it could not be looked at."""

    def __str__(self) -> str:
        if not self.kinds:
            return f"its trial steps failed: {textwrap.shorten(self.failure, 120, placeholder=' ...')}"
        actions = "actions of a Box" if self.is_continuous else "choices"
        speed = "a batch of tensors" if self.is_native else f"{1e3 * self.step_seconds:.2g} ms a step"
        return f"{', '.join(sorted(self.kinds))}; {actions}; {speed}"


def look(task: str, env_kwargs: Mapping[str, Any], config: EnvironmentConfig | None = None) -> Sight:
    """Return what a task looks like, having played some random steps of it, once in a process.

    That is done in a process of its own, as a task may hang, or end the process that it is in. One that does, or cannot
    be built, looks like nothing: whoever trains on it is told why.
    """
    config = config or EnvironmentConfig()
    if is_of_this_process(task):
        return _look(task, env_kwargs, config)
    key = task, repr(sorted(env_kwargs.items())), repr(config)
    seen = _SEEN.get(key) or _look(task, env_kwargs, config)
    if seen.kinds:
        _SEEN[key] = seen
    return seen


_SEEN: dict[tuple[str, ...], Sight] = {}


def _look(task: str, env_kwargs: Mapping[str, Any], config: EnvironmentConfig) -> Sight:
    config = replace(config, step_seconds=min(config.step_seconds or PATIENCE, PATIENCE))
    try:
        instance = find_instance(find_spec(task))
        num_envs = 1 if instance is None else instance.num_envs
        with make_environment(
            task, num_envs, env_kwargs=dict(env_kwargs), vectorization="async", config=config
        ) as environment:
            kinds = frozenset(map(kind, environment.spaces.values()))
            parts = [part for _, part in open_action_space(environment.action_space)]
            is_continuous = any(isinstance(part, Box) for part in parts)
            is_there = environment.is_native or instance is not None  # which is not stepped without being asked
            seconds = 0.0 if is_there else _step_seconds(environment)
            return Sight(kinds, is_continuous, environment.is_native, seconds)
    except MerlinError as error:
        return Sight(failure=str(error).rstrip("."))


def _step_seconds(environment: Environment) -> float:
    actions = make_action_distribution(environment.action_space)
    parameters = torch.zeros(1, actions.num_parameters)
    generator = torch.Generator().manual_seed(0)
    batch = environment.vector_env.unwrapped
    timestep, spent, begin = environment.reset(0), [], time.perf_counter()
    while len(spent) < FEWEST_STEPS or (len(spent) < MOST_STEPS and time.perf_counter() - begin < SECONDS):
        action = actions.sample(actions.restrict(parameters, timestep.observation), generator)
        before = time.perf_counter()
        timestep = environment.step(action)
        waited = time.perf_counter() - before
        # On a busy machine an answer from another process takes milliseconds, whatever the step took.
        spent.append(batch.get_attr("step_seconds")[0] if isinstance(batch, Workers) else waited)
    return statistics.quantiles(spent, n=4)[0]  # on a busy machine many steps are interrupted
