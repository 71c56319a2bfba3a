"""From a gymnasium id to a batch of environments."""

import difflib
import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from merlin.environments.adapters import AgentView
from merlin.environments.arguments import may_take, unknown_argument, wrong_argument
from merlin.environments.config import EnvironmentConfig
from merlin.environments.passed import find_instance, find_passed, spec_of
from merlin.environments.validation import what_came
from merlin.environments.workers import WorkerFailure, Workers
from merlin.errors import MerlinError, describe_with_place, option, place_of, quote, resuming, with_article
from merlin.plugins import check_is_no_file, load_module, nearest

Wrapper = Callable[[gymnasium.Env], Any]

# The module that registers the ids with a prefix, imported by its name where no plugin of gymnasium registered them.
REGISTERED_BY = {"merlin/": "merlin", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}

NEAR = 0.7
"""Likeness from which one id is taken for another, misspelt."""


def find_spec(task: str) -> EnvSpec:
    """Return the specification of a gymnasium id, or of "module:Id" after importing the module.

    An id may also be the name of a function or a class of that module, which makes the environment.

    Raises:
        MerlinError: There is no such module or id; the sentence names the nearest id.
    """
    if (passed := find_passed(task)) is not None:
        return passed
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid's pygame greets on standard output
    module, _, task_id = task.rpartition(":")
    if module:
        found: Any = load_module(module, task)
        for part in () if task_id in gymnasium.registry else task_id.split("."):
            found = getattr(found, part, None)
        if callable(found):
            return spec_of(task_id, found)
    check_is_no_file(task, "NAME")
    if task_id not in gymnasium.registry:
        _import_quietly([name for prefix, name in REGISTERED_BY.items() if task_id.startswith(prefix)])
    if task_id not in gymnasium.registry:
        _import_quietly(REGISTERED_BY.values())  # for their ids to be suggested
        raise _unregistered(module, task_id) if module else _no_such_task(task_id)
    return gymnasium.registry[task_id]


def _unregistered(module: str, name: str) -> MerlinError:
    """Return what to do about a name that is neither an id nor in its module, which was imported."""
    there = [key for key, value in vars(sys.modules[module]).items() if callable(value) and not key.startswith("_")]
    if not re.search(r"-v\d+$|/", name):
        hint = nearest(name, [*there, *gymnasium.registry], "correct the name.")
        return MerlinError(
            f"A task module:NAME must be an id, a function or a class, but {module} has none named {name!r}: {hint}"
        )
    if any(_likeness(_bare(name), _bare(known)) >= NEAR for known in gymnasium.registry):
        return _no_such_task(name)
    maker = max([key for key in there if _likeness(_bare(name), _bare(key)) >= NEAR], default="NAME")
    return MerlinError(
        f"An id must be registered, but {module} was imported and registers no {name!r}: let it call "
        f"gymnasium.register, or name a class or a function of it, as in {module}:{maker}."
    )


def _no_such_task(task_id: str) -> MerlinError:
    """Return what to do about an id that nobody registered: ids are alike if they are but for case and version."""
    if Path(task_id, "config.json").is_file():
        return MerlinError(f"{quote(task_id)} is a run directory and no task: {resuming(task_id)} goes on with it.")

    def likeness(known: str) -> tuple[float, float, int]:
        version = gymnasium.registry[known].version or 0
        return _likeness(_bare(task_id), _bare(known)), _likeness(task_id.lower(), known.lower()), version

    best = max(gymnasium.registry, key=likeness)
    namespace, slash, _ = task_id.rpartition("/")
    is_known = not slash or any(known.lower().startswith(f"{namespace.lower()}/") for known in gymnasium.registry)
    if not is_known and likeness(best)[0] < NEAR:
        return MerlinError(
            f"There is no task {quote(task_id)}, as nobody registered ids that begin with {quote(namespace)}: install "
            f"the package that registers it, and name it as module:{task_id}, with the module that this is imported by."
        )
    nearest = f", the nearest of which is {best!r}" if likeness(best)[0] >= NEAR else ""
    return MerlinError(
        f"There is no task {quote(task_id)}: use a registered id{nearest}, or module:Id, or a function of a module "
        "that makes environments, module:function."
    )


def _bare(task_id: str) -> str:
    """Return an id without its namespace and version, and without what tells words in it apart."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-v\d+$", "", task_id.rpartition("/")[2].lower()))


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def load_wrapper(name: str) -> Wrapper:
    """Return the wrapper that is named `module:Wrapper`, importing the module.

    Raises:
        MerlinError: There is none of that name.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        raise MerlinError(f"A wrapper is written module:Wrapper, but {name!r} came: write the module in front of it.")
    found: Any = load_module(module_name, name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        came = "nothing of that name" if found is None else with_article(type(found).__name__)
        raise MerlinError(
            f"A wrapper is called with an environment, but {module_name} has {came} for {name!r}: correct the name."
        )
    return found


def make_vector_env(
    spec: EnvSpec,
    num_envs: int,
    *,
    device: str | torch.device,
    env_kwargs: dict[str, Any],
    vectorization: str,
    render_mode: str | None,
    config: EnvironmentConfig,
) -> VectorEnv:
    """Return a batch of one task: of tensors where the task has such a batch, otherwise of `AgentView`s.

    Wrappers are put around single environments, so that a task with any is never a batch of its own.

    Raises:
        MerlinError: The task does not take `env_kwargs`, or its construction fails.
    """
    try:
        wrappers = {name: load_wrapper(name) for name in config.wrappers}
        if not wrappers and (instance := find_instance(spec)) is not None:
            return instance(num_envs)
        drawing = {"render_mode": render_mode} if render_mode is not None and render_mode in _render_modes(spec) else {}
        if wrappers and spec.entry_point is None:
            raise MerlinError(
                f"Wrappers are put around single environments, but there are only batches of {spec.id}: leave them out."
            )
        if _is_batch(spec, config):
            is_native = _is_native(spec)
            given = {"num_envs": num_envs, "vectorization_mode": "vector_entry_point", **drawing}
            given |= {"device": device} if is_native else {}
            _check_free(env_kwargs, {*given, "vector_kwargs", "wrappers"})
            return gymnasium.make_vec(spec, **given, **env_kwargs)
        _check_free(env_kwargs, {*drawing, "num_envs", "vectorization_mode", "vector_kwargs", "wrappers"})
        make = partial(_make_view, spec, {**drawing, **env_kwargs}, wrappers)
        if vectorization == "sync":
            batch = _in_this_process(make, num_envs)
            batch.spec = spec
            return batch
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork beside threads. Workers run no code of ours but their environment's.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            batch = Workers(make, num_envs, config.step_seconds)
            batch.spec = spec
            return batch
    except (MerlinError, KeyboardInterrupt):
        raise
    except _TooMany as error:
        told = str(_cannot_be_built(spec, env_kwargs, error.reason)).rstrip(".")
        raise MerlinError(
            f"{told}; {error.built} of {num_envs} could be built: if a process holds no more, give each its own "
            f"({option('vectorization', 'async')}), or make no more ({option('num-envs')} {error.built})."
        ) from error.reason
    except BaseException as error:  # sys.exit() too
        raise _cannot_be_built(spec, env_kwargs, error) from error


class _TooMany(Exception):
    """Some environments were built in this process, and then one was not."""

    def __init__(self, built: int, reason: BaseException) -> None:
        super().__init__(built, reason)
        self.built, self.reason = built, reason


def _in_this_process(make: Callable[[], AgentView], num_envs: int) -> SyncVectorEnv:
    """Return a batch of environments in this process; where one cannot be built, the others are closed."""
    built: list[AgentView] = []

    def build() -> AgentView:
        built.append(make())
        return built[-1]

    try:
        return SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP, copy=False)
    except BaseException as error:
        for view in built:
            view.close()
        if isinstance(error, MerlinError | KeyboardInterrupt) or not 0 < len(built) < num_envs:
            raise
        raise _TooMany(len(built), error) from error


def rows_per_game(spec: EnvSpec, env_kwargs: dict[str, Any], config: EnvironmentConfig) -> int:
    """Return how many rows of a batch are players of one game, as its class says in `rows_per_game`; else 1.

    Raises:
        MerlinError: The task does not take `env_kwargs`.
    """
    try:
        ask = getattr(_load(spec.vector_entry_point), "rows_per_game", None) if _is_batch(spec, config) else None
        return 1 if ask is None else ask(**spec.kwargs | env_kwargs)
    except (MerlinError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() too
        raise _cannot_be_built(spec, env_kwargs, error) from error


def make_env(
    spec: EnvSpec, env_kwargs: dict[str, Any], render_mode: str | None, wrappers: Sequence[str] = ()
) -> AgentView:
    """Return one environment, which draws itself if it can.

    Raises:
        MerlinError: The task does not take `env_kwargs`, its construction fails, or there are only batches of it.
    """
    try:
        drawing = {"render_mode": render_mode} if render_mode in _render_modes(spec) else {}
        return _make_view(spec, {**drawing, **env_kwargs}, {name: load_wrapper(name) for name in wrappers})
    except (MerlinError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _cannot_be_built(spec, env_kwargs, error) from error


def _make_view(spec: EnvSpec, env_kwargs: dict[str, Any], wrappers: dict[str, Wrapper]) -> AgentView:
    """Return one environment in its wrappers, the first innermost."""
    # gymnasium's checker looks at every step, for as much time as a small task takes
    env = gymnasium.make(spec, disable_env_checker=True, **env_kwargs)
    for name, wrapper in wrappers.items():
        try:
            wrapped = wrapper(env)
        except Exception as error:
            raise MerlinError(
                f"A wrapper is called with one environment and nothing else, but {name} failed around {spec.id}: "
                f"{describe_with_place(error)}."
            ) from error
        if not isinstance(wrapped, gymnasium.Env):
            raise MerlinError(
                f"A wrapper returns a gymnasium environment, but {name} returned {what_came(wrapped)}: correct it."
            )
        env = wrapped
    return AgentView(env)


def _check_free(env_kwargs: dict[str, Any], taken: set[str]) -> None:
    if both := sorted(taken & env_kwargs.keys()):
        raise MerlinError(f"The settings of a task cannot include {', '.join(both)}: these are set elsewhere.")


def _cannot_be_built(spec: EnvSpec, env_kwargs: dict[str, Any], error: BaseException) -> MerlinError:
    if (told := _no_environment(spec, error)) is not None:
        return MerlinError(f"{told}.")
    settings = f" with {env_kwargs}" if env_kwargs else ""
    reason = str(error) if isinstance(error, WorkerFailure) else describe_with_place(error)
    reason = re.sub(r" was raised from the environment creator for .*", "", reason)  # gymnasium's, of a TypeError
    if (told := unknown_argument(spec, reason) or wrong_argument(spec, env_kwargs)) is not None:
        return MerlinError(f"{told}.")
    return MerlinError(f"{spec.id} cannot be built{settings}: {reason}.")


def _no_environment(spec: EnvSpec, error: BaseException) -> str | None:
    """Return that a task's class or function made no environment, where gymnasium refused what it made."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_refused = isinstance(error, TypeError) and frames and frames[-1].f_code is gymnasium.make.__code__
    local = frames[-1].f_locals if is_refused else {}
    if "env" not in local or isinstance(local["env"], gymnasium.Env):
        return None
    made, creator = local["env"], _load(spec.entry_point)
    kind = type(made)
    is_old = any(base.__module__.partition(".")[0] == "gym" for base in kind.__mro__)
    extend = f"write `class {kind.__name__}(gymnasium.Env)`{', or wrap it with shimmy' * is_old}"
    if isinstance(creator, type):
        return f"An environment must extend gymnasium.Env, but {kind.__name__}{place_of(kind)} does not: {extend}"
    if isinstance(made, VectorEnv):
        hint = "pass the batch itself"
    elif isinstance(made, type):
        hint = f"return {made.__name__}()"
    else:
        hint = "return the environment" if kind.__module__ == "builtins" else extend
    name = getattr(creator, "__name__", "it").replace("<lambda>", "the lambda")
    return (
        "The function that makes environments must return one that extends gymnasium.Env, but "
        f"{name}{place_of(creator)} returned {what_came(made)}: {hint}"
    )


def _import_quietly(modules: Any) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            pass  # not installed: its ids are unknown, which the caller tells


def _is_batch(spec: EnvSpec, config: EnvironmentConfig) -> bool:
    """Return whether a task is built as a batch of its own, rather than as many single environments."""
    return not config.wrappers and (spec.entry_point is None or _is_native(spec))


def _is_native(spec: EnvSpec) -> bool:
    return bool(getattr(_load(spec.vector_entry_point), "metadata", {}).get("tensors"))


def _load(entry_point: str | Callable | None) -> Any:
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _render_modes(spec: EnvSpec) -> list[str]:
    """Return what a task says that it can draw, if it can be asked; of a function, which says nothing, a picture."""
    creator = _load(spec.entry_point if spec.entry_point is not None else spec.vector_entry_point)
    if not may_take(creator, "render_mode"):
        return []
    return getattr(creator, "metadata", {}).get("render_modes", ["rgb_array"])
