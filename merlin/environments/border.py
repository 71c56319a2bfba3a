"""The border of a batch of environments: what it returns, flat and held to what it declares."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from merlin.environments.adapters import UNDECLARED
from merlin.environments.validation import (
    STEP,
    check_values,
    in_float32,
    parts_of,
    ranges_of,
    reader_of,
    row_of,
    successes_of,
    what_came,
)
from merlin.errors import EnvironmentFailure, MerlinError, quote, tell
from merlin.networks.spaces import flatten_observation, leaves, shape_of

LOOKS = 500
"""Observations of a batch whose float64 numbers are looked at, for whether float32 tells them apart."""
ALIKE = 2e-6
"""Of a number's size: what varies by less is nearly or altogether rounded away in float32."""

FINAL_KEYS = ("final_obs", "final_observation")  # gymnasium's, and that of versions before 1.0
LARGEST = np.finfo(np.float32).max

Entries = dict[str, Any]


class Border:
    """Takes in what `reset` and `step` of a batch return.

    Arrays are checked at every step. Tensors are checked at resets, and for their shapes: the trainer looks at whole
    windows of them, so that no step waits for the device.

    Args:
        task: Its name, for messages.
        is_native: The batch's arrays are tensors.
    """

    def __init__(self, vector_env: VectorEnv, task: str, is_native: bool) -> None:
        self.task, self.is_native, self.num_envs = task, is_native, vector_env.num_envs
        space = vector_env.single_observation_space
        self.spaces = dict(leaves(space))
        self._read_batch, self._read_one = reader_of(space, task, (self.num_envs,)), reader_of(space, task)
        self._ranges = ranges_of(self.spaces)
        self._rounding = Rounding(self.spaces, task)
        told = vector_env.metadata.get("autoreset_mode")
        mode = next((mode for mode in AutoresetMode if told in (mode, mode.name, mode.value)), None)
        if mode is None:
            raise MerlinError(
                f"A vector environment must declare when it resets, but in the metadata of {task} 'autoreset_mode' is "
                f"{quote(told)}: put an AutoresetMode there."
            )
        self.autoreset = mode

    def reset(self, answer: Any) -> tuple[Entries, Mapping[str, Any]]:
        """Return the observation and the info that a reset returned."""
        observation, info = parts_of(answer, ("observation", "info"), self.task, "reset")
        if self.is_native:
            self._check_tensors(flatten_observation(observation))
        _tell_undeclared(info)
        return self.observation(observation), info

    def step(self, answer: Any) -> tuple[Entries, Any, Any, Any, Mapping[str, Any]]:
        """Return observation, reward, terminated, truncated and info of a step."""
        observation, *rows, info = parts_of(answer, STEP, self.task, "step")
        _tell_undeclared(info)
        reward, terminated, truncated = map(self.row, STEP[1:4], rows)
        if not self.is_native and not (np.abs(reward) <= LARGEST).all():
            index = int(np.argmin(np.abs(reward) <= LARGEST))
            raise EnvironmentFailure(
                f"Rewards must be finite, but {self.task} returned {reward[index]} in environment {index}: "
                "correct the task."
            )
        return self.observation(observation), reward, terminated, truncated, info

    def observation(self, observation: Any) -> Entries:
        """Return the entries of an observation of the batch."""
        if self.is_native:
            return flatten_observation(observation)
        entries = flatten_observation(self._read_batch(observation))
        self._rounding.look(entries)
        entries = in_float32(entries)
        check_values(entries, self._ranges, self.spaces, self.task)
        return entries

    def row(self, what: str, value: Any) -> Any:
        """Return rewards or flags, one for each environment."""
        if not self.is_native:
            return row_of(value, what, self.task, self.num_envs)
        if isinstance(value, Tensor) and value.shape == (self.num_envs,):
            return value
        raise EnvironmentFailure(
            f"The {what} of a batch of tensors must be a tensor [{self.num_envs}], but {self.task} returned "
            f"{what_came(value)}: correct it, or leave 'tensors' out of its metadata."
        )

    def final_observation(self, info: Mapping[str, Any], truncated: Tensor) -> Entries | None:
        """Return the entries of the observations that ended episodes, valid where `truncated`; None if there are none.

        `info["final_obs"]` (or "final_observation") is one observation of the batch, or an array or list of one for
        each environment, None where no episode ended; `info["_final_obs"]` says where there is one.

        Raises:
            EnvironmentFailure: A truncated episode has none.
        """
        key = next((key for key in FINAL_KEYS if info.get(key) is not None), None)
        if key is None:
            if (self.is_native and truncated.device.type != "cpu") or not bool(truncated.any()):
                return None  # elsewhere the host would have to wait
            raise EnvironmentFailure(
                "A batch that resets in the same step must hand on what ended its truncated episodes as "
                f"info['final_obs'], but {self.task} gave {what_came(info)}: add it, or declare the autoreset_mode "
                "that the batch has."
            )
        final, mask = info[key], info.get(f"_{key}")
        if self.is_native:
            if mask is not None and truncated.device.type == "cpu":
                self._check_given(key, truncated.numpy(), self.row(f"_{key}", mask).numpy())
            return flatten_observation(final)
        ended = truncated.cpu().numpy()
        is_each = isinstance(final, list) or (isinstance(final, np.ndarray) and final.dtype == object)
        given = np.ones(self.num_envs, bool) if mask is None else self.row(f"_{key}", mask).astype(bool)
        if is_each:
            given = given & [x is not None for x in final]
        self._check_given(key, ended, given)
        rows = ended.nonzero()[0]
        if is_each:
            read = [flatten_observation(self._read_one(final[row])) for row in rows]
            entries = {name: np.zeros((self.num_envs, *shape_of(x)), x.dtype) for name, x in self.spaces.items()}
            for name, x in entries.items():
                x[rows] = [entry[name] for entry in read]
        else:
            entries = flatten_observation(self._read_batch(final))
        entries = in_float32(entries)
        check_values({name: x[rows] for name, x in entries.items()}, self._ranges, self.spaces, self.task, rows)
        return entries

    def success(self, info: Mapping[str, Any]) -> Any | None:
        """Return `is_success` of each environment, NaN where it is not told; None where no one tells."""
        if not self.is_native:
            return successes_of(info, self.task, self.num_envs)
        success = info.get("final_info", info).get("is_success")
        return None if success is None else self.row("is_success", success)

    def _check_given(self, key: str, ended: np.ndarray, given: np.ndarray) -> None:
        if (lacking := ended & ~given).any():
            raise EnvironmentFailure(
                f"Each truncated episode must hand on the observation that ended it, but in info[{key!r}] of "
                f"{self.task} there is none of environment {int(lacking.argmax())}: add it."
            )

    def _check_tensors(self, entries: Entries) -> None:
        """Raise an EnvironmentFailure unless the entries are tensors of the space's shapes, with values in it."""
        for name, space in self.spaces.items():
            x, shape = entries.get(name), (self.num_envs, *shape_of(space))
            if not isinstance(x, Tensor) or x.shape != shape:
                raise EnvironmentFailure(
                    f"An entry of a batch of tensors must be a tensor of its declared shape, {list(shape)} of entry "
                    f"{name!r}, but {self.task} returned {what_came(x)}: correct it, or leave 'tensors' out of its "
                    "metadata."
                )
        check_values({name: entries[name].cpu().numpy() for name in self.spaces}, self._ranges, self.spaces, self.task)


class Rounding:
    """Looks at the first observations of a batch, and tells of numbers that agents, which take float32, cannot see.

    A time in seconds since 1970 is one: in float32 it moves by 128 at a time.
    """

    def __init__(self, spaces: Mapping[str, Space], task: str) -> None:
        self.task, self.looks = task, 0
        names = [name for name, space in spaces.items() if space.dtype == np.float64]
        self.lowest = {name: np.full(shape_of(spaces[name]), np.inf) for name in names}
        self.highest = {name: np.full(shape_of(spaces[name]), -np.inf) for name in names}

    def look(self, entries: Entries) -> None:
        """Take in an observation of the batch; after `LOOKS` of them, tell, and look no more."""
        if not self.lowest:
            return
        for name in self.lowest:
            self.lowest[name] = np.minimum(self.lowest[name], entries[name].min(0))
            self.highest[name] = np.maximum(self.highest[name], entries[name].max(0))
        self.looks += 1
        if self.looks == LOOKS:
            for name, low in self.lowest.items():
                self._tell(name, low, self.highest[name])
            self.lowest = {}

    def _tell(self, name: str, low: np.ndarray, high: np.ndarray) -> None:
        size = np.maximum(np.abs(low), np.abs(high))
        lost = (high > low + 1e-12 * size) & (high - low <= ALIKE * size)  # what differs by less is a constant, rounded
        if lost.any():
            at = tuple(int(i) for i in np.argwhere(lost)[0])
            place = f"the number{f' at {at}' * bool(at)} of entry {name!r} of {self.task}"
            tell(
                f"Agents see numbers in float32, which hardly tells {low[at]!s} from {high[at]!s}, between which "
                f"{place} was: if that matters, subtract with a wrapper what they have in common."
            )


def _tell_undeclared(info: Mapping[str, Any]) -> None:
    """Tell once what single environments, which may be in other processes, observed besides their space."""
    for sentences in info.get(UNDECLARED, ()):
        for sentence in (sentences or "").splitlines():
            tell(sentence)
