"""What environments return, held to what they declare. Whatever does not fit ends in one sentence that names it."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from numbers import Integral
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from merlin.errors import EnvironmentFailure, MerlinError, describe_with_place, place_of, tell, with_article
from merlin.networks.spaces import ROOT, shape_of

STEP = ("observation", "reward", "terminated", "truncated", "info")
CALLS = {
    "reset": ("def reset(self, *, seed=None, options=None)", (), {"seed": 0, "options": None}),
    "step": ("def step(self, action)", (0,), {}),
}
"""How the methods of an environment are written, and what they are called with."""

Reader = Callable[[Any], Any]
Ranges = dict[str, tuple[np.ndarray, np.ndarray]]


def reader_of(space: gymnasium.Space, task: str, lead: tuple[int, ...] = (), path: str = "") -> Reader:
    """Return the function from an observation to the same with arrays of the space's own shapes and types.

    What the space does not have is left out. A value of another type is converted where nothing of it is lost.

    Args:
        lead: Dimensions in front of the space's own, as of a batch.
        path: Name of the entry, dotted, within the whole observation.

    Raises:
        EnvironmentFailure: From the function, for an observation of another structure, shape or kind.
    """
    if isinstance(space, spaces.Dict):
        readers = {key: reader_of(x, task, lead, join(path, key)) for key, x in space.items()}
        return dict_reader(readers, task, path)
    if isinstance(space, spaces.Tuple):
        return tuple_reader([reader_of(x, task, lead, join(path, i)) for i, x in enumerate(space)], task, path)
    shape, dtype, must = (*lead, *shape_of(space)), space.dtype, name_of(space)
    is_float = np.issubdtype(dtype, np.floating)

    def read(value: Any) -> np.ndarray:
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return value
        if type(value) is int and not shape:
            with suppress(OverflowError):  # the sentence below is about what the type cannot hold
                return np.array(value, dtype)
        if isinstance(value, Tensor):
            if lead:
                raise EnvironmentFailure(
                    f"A batch whose arrays are tensors says so, but {task} returned {what_came(value)} and does not: "
                    "put tensors=True into its metadata."
                )
        array = _numbers(value)
        if array is not None and array.shape == shape:
            with np.errstate(invalid="ignore", over="ignore"):
                converted = array.astype(dtype)
            if is_float or np.array_equal(converted, array):
                return converted
        of_batch = f" for each of {lead[0]} environments" if lead else ""
        raise _wrong(task, path, f"a value of {must}{of_batch}", value)

    return read


def dict_reader(
    readers: Mapping[str, Reader],
    task: str,
    path: str,
    left_out: Collection[str] = (),
    note: Callable[[str], object] = tell,
) -> Reader:
    """Return the reader of a Dict, given those of its entries.

    Args:
        left_out: Keys that the space has and the reader leaves out.
        note: Is given the sentence about keys that the space does not have.
    """
    items, declared = tuple(readers.items()), {*readers, *left_out}

    def read(observation: Any) -> dict[str, Any]:
        if type(observation) is not dict and not isinstance(observation, Mapping):
            raise _wrong(task, path, f"a dict with {', '.join(map(repr, readers))}", observation)
        for key in readers:
            if key not in observation:
                raise _wrong(task, path, f"a dict with {', '.join(map(repr, readers))}", observation)
        if len(observation) > len(declared):
            others = ", ".join(repr(join(path, key)) for key in observation if key not in declared)
            note(
                f"Agents see only what the observation space declares, but {task} returned {others} besides: "
                "declare that in the space, or leave it out."
            )
        return {key: read(observation[key]) for key, read in items}

    return read


def tuple_reader(readers: list[Reader], task: str, path: str) -> Reader:
    """Return the reader of a Tuple, given those of its entries."""

    def read(observation: Any) -> tuple[Any, ...]:
        if not isinstance(observation, tuple | list) or len(observation) != len(readers):
            raise _wrong(task, path, f"a tuple of {len(readers)}", observation)
        return tuple(read(x) for read, x in zip(readers, observation, strict=True))

    return read


def text_reader(task: str, path: str, read: Callable[[str], np.ndarray]) -> Reader:
    """Return the reader of a text, which must be one before `read` sees it."""

    def read_text(text: Any) -> np.ndarray:
        if not isinstance(text, str):
            raise _wrong(task, path, "a text", text)
        return read(text)

    return read_text


def check_batch(vector_env: VectorEnv) -> None:
    """Raise a MerlinError unless a vector environment says how many environments it has, and of which spaces."""
    kinds = {"num_envs": Integral, "single_observation_space": spaces.Space, "single_action_space": spaces.Space}
    for name, kind in kinds.items():
        if not isinstance(value := getattr(vector_env, name, None), kind):
            raise MerlinError(
                f"A vector environment must have {', '.join(kinds)}, but {name} of "
                f"{type(vector_env.unwrapped).__name__} is {what_came(value)}: set it in its constructor."
            )


def failed(task: str, what: str, error: BaseException, env: gymnasium.Env | VectorEnv) -> EnvironmentFailure:
    """Return the sentence about what an environment raised, or about the method that cannot be called."""
    if what in CALLS and isinstance(error, TypeError | NotImplementedError):
        for layer in _layers(env):
            if (told := _wrong_method(layer, what)) is not None:
                return EnvironmentFailure(told)
    return EnvironmentFailure(f"{task} failed in {what}: {describe_with_place(error)}.")


def _layers(env: gymnasium.Env | VectorEnv) -> Iterator[gymnasium.Env | VectorEnv]:
    """Return an environment's wrappers, the outermost first, and itself."""
    yield env
    if isinstance(env, gymnasium.Wrapper | VectorWrapper):
        yield from _layers(env.env)


def _wrong_method(env: gymnasium.Env | VectorEnv, name: str) -> str | None:
    """Return that an environment does not define a method, or that this does not take what it is called with."""
    written, arguments, named = CALLS[name]
    method, owner = getattr(env, name), type(env)
    function = getattr(method, "__func__", method)
    if function in (getattr(gymnasium.Env, name), getattr(VectorEnv, name)):
        return (
            f"An environment must define `{name}`, but {owner.__name__}{place_of(owner)} does not: "
            f"write `{written}` in it."
        )
    try:
        inspect.signature(method).bind(*arguments, **named)
        return None
    except ValueError:  # built in
        return None
    except TypeError:
        return (
            f"`{name}` must take what it is called with, but that of {owner.__name__} is "
            f"`def {name}{inspect.signature(function)}`{place_of(function)}: write `{written}`."
        )


def parts_of(answer: Any, names: tuple[str, ...], task: str, method: str) -> tuple[Any, ...]:
    """Return what `reset` or `step` returned, which must be as many things as there are names, the last an info."""
    if type(answer) is tuple and len(answer) == len(names) and type(answer[-1]) is dict:
        return answer
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        old = ": this is gym's old form, so wrap it with shimmy's GymV21CompatibilityV0" * (method == "step")
        raise EnvironmentFailure(
            f"`{method}` must return {', '.join(names)}, but that of {task} returned {what_came(answer)}"
            f"{old if isinstance(answer, tuple) and len(answer) == 4 else ': correct the environment'}."
        )
    if not isinstance(answer[-1], Mapping):
        raise EnvironmentFailure(
            f"The info that `{method}` returns must be a dict, but that of {task} is {what_came(answer[-1])}: "
            "correct the environment."
        )
    return tuple(answer)


def number_of(value: Any, what: str, task: str) -> float:
    """Return a reward or a flag as a number; arrays of one number are taken for it."""
    array = _numbers(value)
    if array is None or array.size != 1:
        raise _not_a_number(what, task, value)
    return float(array.reshape(()))


def row_of(value: Any, what: str, task: str, num_envs: int) -> np.ndarray:
    """Return the rewards or flags of a batch, one number for each environment."""
    if type(value) is np.ndarray and value.shape == (num_envs,) and value.dtype.kind in "fb":
        return value
    array = _numbers(value)
    if array is not None and array.shape in ((num_envs,), (num_envs, 1)):
        return array.reshape(num_envs)
    raise _not_a_number(what, task, value, f" for each of {num_envs} environments")


def in_float32(entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all floating numbers in float32, in which agents take them: what is beyond becomes infinite."""
    with np.errstate(over="ignore"):
        return {name: x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x for name, x in entries.items()}


def success_of(value: Any, task: str) -> float:
    """Return `is_success` of an episode as a number from 0 to 1; NaN where the task says nothing, as by None."""
    if value is None:
        return np.nan
    array = _numbers(value)
    if array is None or array.size != 1 or (array < 0).any() or (array > 1).any():
        raise EnvironmentFailure(
            f"An info's is_success must be true, false or None, but that of {task} is {what_came(value)}: "
            "correct the environment."
        )
    return float(array.reshape(()))


def successes_of(info: Mapping, task: str, num_envs: int) -> np.ndarray | None:
    """Return `is_success` of each environment of a batch, NaN where it is not said; None where nothing is said.

    `final_info`, which is about the episodes that ended, comes before the rest. It is a dict of arrays, or, as
    gymnasium wrote it before 1.0, an array of dicts.
    """
    final = info.get("final_info")
    final = info if final is None else final
    if isinstance(final, Mapping):
        values: Any = final.get("is_success")
        known = final.get("_is_success", True)
    else:
        values, known = [x.get("is_success") if isinstance(x, Mapping) else None for x in final], True
    if values is None:
        return None
    array = _numbers(values)
    if array is None and isinstance(values, list | np.ndarray):
        array = np.array([success_of(x, task) for x in values])
    if array is None or array.shape not in ((num_envs,), (num_envs, 1)):
        raise _not_a_number("is_success", task, values, f" for each of {num_envs} environments")
    found = np.where(known, array.reshape(num_envs), np.nan)
    for value in found[(found < 0) | (found > 1)]:
        success_of(value, task)  # which says what is wrong with it
    return found


def ranges_of(entries: Mapping[str, gymnasium.Space]) -> Ranges:
    """Return the least and the largest value of each entry of categories."""
    return {name: bounds for name, space in entries.items() if (bounds := categories_of(space)) is not None}


def categories_of(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the least and the largest value of a space of categories; None of any other."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start), space.start + space.nvec.astype(np.int64) - 1
    return (np.asarray(0), np.asarray(1)) if isinstance(space, spaces.MultiBinary) else None


def check_values(
    entries: Mapping[str, np.ndarray],
    ranges: Ranges,
    described: Mapping[str, gymnasium.Space],
    task: str,
    indices: np.ndarray | None = None,
) -> None:
    """Raise an EnvironmentFailure unless all categories lie in their spaces and all other numbers are finite.

    Args:
        entries: A batch [B, ...] of arrays.
        indices: Of the environments that the rows belong to, where these are not all.
    """
    for name, x in entries.items():
        if name in ranges:
            low, high = ranges[name]
            wrong = (x < low) | (x > high)
        elif x.dtype.kind == "f":
            wrong = ~np.isfinite(x)
        else:
            continue
        if wrong.any():
            row, *rest = (int(i) for i in np.argwhere(wrong)[0])
            index = row if indices is None else int(indices[row])
            raise outside(name, described[name], x[(row, *rest)], index, task, tuple(rest))


def outside(
    name: str, space: gymnasium.Space, value: Any, index: int, task: str, position: tuple[int, ...] = ()
) -> EnvironmentFailure:
    """Return the sentence about a value that its space does not have."""
    at = f" at {position}" if position else ""
    where = f"environment {index} of {task} returned {value}{at} in entry {name!r}"
    if (bounds := categories_of(space)) is None:
        return EnvironmentFailure(f"Observations must be finite, but {where}: correct the environment.")
    low, high = (int(np.broadcast_to(x, shape_of(space))[position]) for x in bounds)
    return EnvironmentFailure(
        f"Observations must lie in their space, but {where}, {name_of(space)}, which takes {low} to {high}"
        f"{' there' * bool(position)}: correct the environment or its space."
    )


def name_of(space: gymnasium.Space) -> str:
    """Return a space in a few words, however many numbers its bounds are."""
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n}{f', start={space.start}' * bool(space.start)})"
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.size <= 6:
        return f"MultiDiscrete({space.nvec.tolist()})"
    return f"{type(space).__name__} of shape {space.shape} and type {space.dtype}"


def what_came(value: Any) -> str:
    """Return a value in a few words, for messages."""
    if isinstance(value, np.ndarray | Tensor):
        kind = "an array" if isinstance(value, np.ndarray) else "a tensor"
        return f"{kind} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value))}"[:200] if value else "an empty dict"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = with_article(type(value).__name__)
    if isinstance(value, tuple | list):
        return f"{kind} of {len(value)}"
    if value is None:
        return "None"
    shown = repr(value) if isinstance(value, str | int | float) else ""
    return f"{kind}{f', {shown[:60]}' * bool(shown)}"


def join(path: str, key: object) -> str:
    """Return the dotted name of an entry within another."""
    return f"{path}.{key}" if path else str(key)


def _numbers(value: Any) -> np.ndarray | None:
    """Return a value as an array of numbers; None where it is not one."""
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(value)
        if array.dtype == object and array.size and all(isinstance(x, int | float | np.number) for x in array.flat):
            array = array.astype(np.float64)  # numbers that were put into an array of objects
    except Exception:  # rows of different lengths, or whatever an object does when asked for its numbers
        return None
    return array if array.dtype.kind in "biuf" else None


def _wrong(task: str, path: str, must: str, value: Any) -> EnvironmentFailure:
    entry = f" in entry {path!r}" if path and path != ROOT else ""
    return EnvironmentFailure(
        f"Observations must be those of the declared space, {must}{entry}, but {task} returned {what_came(value)}: "
        "correct the environment or its space."
    )


def _not_a_number(what: str, task: str, value: Any, of_batch: str = "") -> EnvironmentFailure:
    return EnvironmentFailure(
        f"The {what} must be a number{of_batch}, but {task} returned {what_came(value)}: correct the environment."
    )
