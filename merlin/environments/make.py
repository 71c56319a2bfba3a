"""From a gymnasium id to a batch of environments."""

import difflib
import importlib
import inspect
import os
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from types import FunctionType
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from merlin.environments.adapters import AgentView, run_worker
from merlin.errors import MerlinError, describe, quote
from merlin.plugins import load_module

# The module that registers the ids with a prefix, imported by its name where no plugin of gymnasium registered them.
REGISTERED_BY = {"merlin/": "merlin", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}


def find_spec(task: str) -> EnvSpec:
    """Return the specification of a gymnasium id, or of "module:Id" after importing the module.

    Raises:
        MerlinError: There is no such module or id; the sentence names the nearest id.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid's pygame greets on standard output
    module, _, task_id = task.rpartition(":")
    if module:
        load_module(module, task)
    if task_id not in gymnasium.registry:
        _import_quietly([name for prefix, name in REGISTERED_BY.items() if task_id.startswith(prefix)])
    if task_id not in gymnasium.registry:
        _import_quietly(REGISTERED_BY.values())  # for their ids to be suggested
        nearest = difflib.get_close_matches(task_id, gymnasium.registry, n=1, cutoff=0.0)
        raise MerlinError(
            f"There is no task {quote(task_id)}: use a registered id, the nearest of which is {nearest[0]!r}, "
            f"or module:Id."
        )
    return gymnasium.registry[task_id]


def make_vector_env(
    spec: EnvSpec,
    num_envs: int,
    *,
    device: str | torch.device,
    env_kwargs: dict[str, Any],
    vectorization: str,
    render_mode: str | None,
    failures: Any,
) -> VectorEnv:
    """Return a batch of one task: of tensors where the task has such a batch, otherwise of `AgentView`s.

    Raises:
        MerlinError: The task does not take `env_kwargs`, or its construction fails.
    """
    others = set(active_children())
    try:
        make = partial(gymnasium.make_vec, spec, num_envs=num_envs)
        if spec.vector_entry_point is not None and _metadata(spec.vector_entry_point).get("tensors"):
            make = partial(make, vectorization_mode="vector_entry_point", device=device)
        elif spec.entry_point is None:
            make = partial(make, vectorization_mode="vector_entry_point")
        else:
            vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}  # Environment copies, once
            if vectorization == "async":
                vector_kwargs["worker"] = partial(run_worker, failures)
            make = partial(
                make,
                vectorization_mode=vectorization,
                vector_kwargs=vector_kwargs,
                wrappers=[AgentView],
                disable_env_checker=True,  # it checks every step, for as much time as a small task takes
            )
        if render_mode is not None and render_mode in _render_modes(spec):
            make = partial(make, render_mode=render_mode)
        if taken := sorted(make.keywords.keys() & env_kwargs.keys()):
            raise MerlinError(f"The settings of a task cannot include {', '.join(taken)}: these are set elsewhere.")
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork beside threads. Workers run no code of ours but their environment's.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            return make(**env_kwargs)
    except BaseException as error:
        for worker in set(active_children()) - others:
            worker.terminate()
            worker.join()
        if isinstance(error, MerlinError) or not isinstance(error, Exception):
            raise
        settings = f" with {env_kwargs}" if env_kwargs else ""
        reason = describe(error)
        if failures is not None and not failures.empty():
            reason = failures.get()[1]
        elif failures is not None and isinstance(error, EOFError | OSError):
            reason = "a worker process died"
        raise MerlinError(f"{spec.id} cannot be built{settings}: {reason}.") from error


def make_env(spec: EnvSpec, env_kwargs: dict[str, Any], render_mode: str | None) -> gymnasium.Env:
    """Return one environment, which draws itself if it can.

    Raises:
        MerlinError: The task does not take `env_kwargs`, its construction fails, or there are only batches of it.
    """
    try:
        drawing = {"render_mode": render_mode} if render_mode in _render_modes(spec) else {}
        return gymnasium.make(spec, disable_env_checker=True, **drawing, **env_kwargs)
    except Exception as error:
        settings = f" with {env_kwargs}" if env_kwargs else ""
        raise MerlinError(f"{spec.id} cannot be built{settings}: {describe(error)}.") from error


def _import_quietly(modules: Any) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            pass  # not installed: its ids are unknown, which the caller tells


def _metadata(entry_point: str | Callable | None) -> dict[str, Any]:
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return getattr(creator, "metadata", {})


def _render_modes(spec: EnvSpec) -> list[str]:
    """Return what a task says that it can draw; of a function, which says nothing, what it can be asked for."""
    entry_point = spec.entry_point if spec.entry_point is not None else spec.vector_entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if isinstance(creator, FunctionType) and not hasattr(creator, "metadata"):
        parameters = inspect.signature(creator).parameters.values()
        takes = any(x.name == "render_mode" or x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters)
        return ["rgb_array"] if takes else []
    return getattr(creator, "metadata", {}).get("render_modes", ["rgb_array"])
