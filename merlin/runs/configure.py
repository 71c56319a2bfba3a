"""The configuration of a run that begins: a preset, and what is told otherwise; for the command line and for Python."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import gymnasium
from gymnasium.vector import VectorEnv

from merlin.agents import Agent
from merlin.environments.config import EnvironmentConfig
from merlin.environments.passed import Passed, module_name, name_of
from merlin.errors import MerlinError, is_on_the_command_line, option, quote
from merlin.runs.presets import DEFAULT_TASK, GENERAL, RunConfig, family_of, preset
from merlin.runs.settings import list_settings, override

CHOOSE_THE_PRESET = ("task", "agent", "preset", "env_kwargs")
"""Settings that the others follow from, and so are given apart."""

Assignments = Mapping[str, Any] | Sequence[str]
"""Settings by their dotted names, or texts such as "model.kl_cost=0.02"."""
Wrapper = str | Callable[[gymnasium.Env], Any]
Wrappers = Wrapper | Sequence[Wrapper]
"""One wrapper, or several, the first innermost."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def configure(
    task: str | Passed | None = None,
    agent: str | type[Agent] | None = None,
    *,
    preset_name: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrap: Wrappers = (),
    set: Assignments = (),
    **values: Any,
) -> RunConfig:
    """Return the configuration of a run: those of a preset, but for what is told.

    Args:
        task: An id, `module:Id`, an environment, or a function that makes one; none is `DEFAULT_TASK`.
        agent: A name, `module:Class`, or a class.
        preset_name: The family of the task unless told.
        wrap: A wrapper, or several, the first innermost.
        set: Further settings.
        values: Of the run's own settings, such as `steps`; none leaves one as the preset has it.

    Raises:
        MerlinError: Something is not there, or does not fit.
    """
    for name in _paths(set):
        if name.startswith(CHOOSE_THE_PRESET):
            place = "TASK" if is_on_the_command_line() else "env"
            names = f"{place}, {option('agent')}, {option('preset')} or {option('env-kwargs')}"
            raise MerlinError(f"{name} would come after what it chooses: use {names}")
    name = DEFAULT_TASK if task is None else name_of(task)
    wrappers = [wrap] if isinstance(wrap, str) or callable(wrap) else wrap
    environment = EnvironmentConfig(wrappers=tuple(map(_wrapper_name, wrappers)))
    agent_name = "merlin" if agent is None else agent if isinstance(agent, str) else _class_name(agent)
    looked_at, settings = name, None if env_kwargs is None else dict(env_kwargs)
    given = {x: y for x, y in values.items() if y is not None}
    if isinstance(task, gymnasium.Env | VectorEnv):
        if settings:
            raise MerlinError(
                f"An environment that is passed itself has its settings, so {option('env-kwargs')} must not be given: "
                "leave that out, or pass a function that makes environments."
            )
        given.setdefault("num_envs", task.num_envs if isinstance(task, VectorEnv) else 1)
    if isinstance(task, gymnasium.Env | VectorEnv) and task.spec is not None and family_of(task.spec.id) != GENERAL:
        # Its family is known by the id that it was made by; of others a look tells, at the environment itself.
        looked_at = task.spec.id
        settings = {x: y for x, y in task.spec.kwargs.items() if x not in ("device", "render_mode", "num_envs")}
    config = preset(agent_name, looked_at, settings, name=preset_name, environment=environment)
    if looked_at != name:
        config = replace(config, task=name, env_kwargs={})
    return changed(config, given, set)


def changed(config: RunConfig, values: Mapping[str, Any], set: Assignments) -> RunConfig:
    """Return a configuration with some of the run's own settings and further ones changed."""
    if "num_envs" in values and isinstance(values["num_envs"], int):  # windows are split by environment
        parts = min(config.training.minibatches, max(1, values["num_envs"]))
        config = replace(config, training=replace(config.training, minibatches=parts))
    return override(override(config, values), set)


def _paths(set: Assignments) -> list[str]:
    return list(set) if isinstance(set, Mapping) else [assignment.partition("=")[0].strip() for assignment in set]


def _wrapper_name(wrapper: str | Callable) -> str:
    name = wrapper if isinstance(wrapper, str) else module_name(wrapper)
    if name is None:
        raise MerlinError(
            f"A wrapper is a function or a class of a module, so that a run can put it on again, but {quote(wrapper)} "
            "is none that its module has under its name: define it there, or wrap the environment in a function and "
            "pass that."
        )
    return name


def _class_name(agent: type[Agent]) -> str:
    name = module_name(agent)
    if name is None or not issubclass(agent, Agent):
        raise MerlinError(
            f"An agent is a name, or a class of a module that is derived from merlin.Agent, but {quote(agent)} came: "
            "define it in a module."
        )
    return name


def nearest_setting(name: str, agent: str | None = None) -> str | None:
    """Return the setting whose last name, or the initials of that, are nearest to a name; None where none is near."""
    try:
        settings = list_settings(preset(agent or "merlin"))
    except MerlinError:
        return None
    paths: dict[str, str] = {}
    for setting in sorted(settings, key=lambda setting: not setting.path.startswith("training.")):
        last = setting.path.rpartition(".")[2]
        paths.setdefault(last, setting.path)
        paths.setdefault("".join(word[0] for word in last.split("_")), setting.path)
    near = [name] if name in paths else difflib.get_close_matches(name, paths, n=1, cutoff=0.7)
    return paths[near[0]] if near else None


def naming_settings(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that says of an argument which it does not have what may have been meant, as a TypeError."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for name in kwargs:
            if name not in known:
                near, path = difflib.get_close_matches(name, known, n=1), nearest_setting(name)
                hint = f"set={{{path!r}: ...}}" if path else near[0] if near else ""
                raise TypeError(
                    f"merlin.{function.__name__} has no argument {name!r}: "
                    + (f"did you mean {hint}?" if hint else f"it takes {', '.join(known)}.")
                )
        return function(*args, **kwargs)

    return call
