"""Environments that users pass as objects, and the ids by which they are then known.

A function or a class of a module is known by its name, `module:Name`, in every process. Anything else, such as an
environment that is there already, is known to this process alone, as `object/Name-PROCESS`, and the next of that name
as `object/Name-PROCESS-2`: two lambdas are two tasks, and none is taken for one that another program had.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from itertools import count
from types import FunctionType, MethodType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from merlin.environments.adapters import AgentView
from merlin.environments.validation import check_batch
from merlin.errors import MerlinError, option, quote

PREFIX = "object/"
"""Of ids that this process alone knows."""
PROCESS = os.urandom(3).hex()
_SPECS: dict[str, EnvSpec] = {}
_THINGS: dict[str, Any] = {}

Passed = gymnasium.Env | VectorEnv | Callable[..., Any]
"""An environment, a batch of them, or what makes one when it is called."""


class Instance:
    """An environment, or a batch of them, that is there already and stays when what plays it is closed.

    It has the place of a task's class: it says how many rows there are, and calling it returns them as a batch.
    """

    def __init__(self, env: gymnasium.Env | VectorEnv) -> None:
        if isinstance(env, VectorEnv):
            check_batch(env)
        self.env, self.metadata = env, env.metadata
        self.num_envs = env.num_envs if isinstance(env, VectorEnv) else 1

    def rows_per_game(self, **_: Any) -> int:
        """Return how many rows there are, which are played together or not at all."""
        return self.num_envs

    def __call__(self, num_envs: int) -> VectorEnv:
        """Return the environments as a batch.

        Raises:
            MerlinError: There are more or fewer.
        """
        if num_envs != self.num_envs:
            raise MerlinError(
                f"An environment that is passed itself is played as it is, so {option('num-envs')} must be "
                f"{self.num_envs}, but is {num_envs}: leave that out, or pass a function that makes environments."
            )
        if isinstance(self.env, VectorEnv):
            return _OpenVector(self.env)
        kept = _Open(self.env)
        return SyncVectorEnv([lambda: AgentView(kept)], autoreset_mode=AutoresetMode.SAME_STEP, copy=False)


class _Open(gymnasium.Wrapper):
    """An environment that stays open."""

    def close(self) -> None:
        """Leave it to its owner."""


class _OpenVector(VectorWrapper):
    """A batch of environments that stays open."""

    def close(self, **_: Any) -> None:
        """Leave it to its owner."""


def name_of(thing: str | Passed) -> str:
    """Return the id of a task, of whatever it was passed as.

    Raises:
        MerlinError: It is neither an id, nor an environment, nor can it be called.
    """
    if isinstance(thing, str):
        return thing
    if not isinstance(thing, gymnasium.Env | VectorEnv):
        if not callable(thing):
            raise no_task(thing)
        if (name := module_name(thing)) is not None:
            return name
    short = f"{PREFIX}{_short_name(thing)}-{PROCESS}"
    numbered = (f"{short}-{number}" if number > 1 else short for number in count(1))
    task = next(name for name in numbered if _is_same(_THINGS.get(name, thing), thing))
    keep(task, thing)
    return task


def no_task(thing: Any) -> MerlinError:
    """Return the sentence about what is neither an id, nor an environment, nor makes one."""
    forgot = ", as from a function that forgets to return" * (thing is None)
    return MerlinError(
        "A task is an id, an environment of gymnasium, or a function that makes one, but "
        f"{quote(thing)} came{forgot}: pass one of these."
    )


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two things are one; a method of an object is another object whenever it is asked for."""
    return one is other or (isinstance(one, MethodType) and isinstance(other, MethodType) and one == other)


def keep(task: str, thing: Passed) -> None:
    """Let a task that this process alone knows be what was passed."""
    is_there = isinstance(thing, gymnasium.Env | VectorEnv)
    _SPECS[task], _THINGS[task] = spec_of(task, Instance(thing) if is_there else thing), thing


@contextmanager
def known(thing: str | Passed) -> Iterator[str]:
    """Let what was passed be known as a task, as long as the context lasts if it was not before."""
    before, task = set(_SPECS), name_of(thing)
    try:
        yield task
    finally:
        if task not in before:
            _SPECS.pop(task, None)
            _THINGS.pop(task, None)


def find_passed(task: str) -> EnvSpec | None:
    """Return the specification of what was passed; None for other ids.

    Raises:
        MerlinError: It was passed to another process.
    """
    if task.startswith(PREFIX) and task not in _SPECS:
        raise MerlinError(
            f"{quote(task)} is an environment that was passed from Python, which only that program has: pass it "
            "again, or pass a function of a module, which is found by its name."
        )
    return _SPECS.get(task)


def find_instance(spec: EnvSpec) -> Instance | None:
    """Return the environment of a specification that is there already, if it is."""
    return spec.vector_entry_point if isinstance(spec.vector_entry_point, Instance) else None


def is_of_this_process(task: str) -> bool:
    """Return whether an id may stand for something else in the next moment or process: what was passed, or typed."""
    return task.startswith((PREFIX, "__main__:"))


def spec_of(name: str, creator: Callable[..., Any]) -> EnvSpec:
    """Return the specification of a task that a class or a function makes."""
    is_batch = isinstance(creator, Instance) or (isinstance(creator, type) and issubclass(creator, VectorEnv))
    if is_batch:
        return EnvSpec(name, vector_entry_point=creator)  # pyright: ignore[reportArgumentType]
    if not isinstance(creator, type | FunctionType):
        creator = _as_function(creator)
    return EnvSpec(name, entry_point=creator)  # pyright: ignore[reportArgumentType]


def _as_function(creator: Callable[..., Any]) -> Callable[..., Any]:
    """Return what is called as a function, of which gymnasium's copies of a specification do not copy what it holds."""

    @wraps(creator, updated=())
    def make(**settings: Any) -> Any:
        return creator(**settings)

    return make


def module_name(thing: Any) -> str | None:
    """Return `module:Name` of a class or function that its module has under its name; None of anything else."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module is None or name is None or isinstance(thing, MethodType):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is thing else None


def _short_name(thing: Any) -> str:
    while isinstance(thing, partial):
        thing = thing.func
    unwrapped = thing.unwrapped if isinstance(thing, gymnasium.Env | VectorEnv) else thing
    name = getattr(unwrapped, "__name__", type(unwrapped).__name__)
    return re.sub(r"[^\w.-]", "", name) or "environment"
