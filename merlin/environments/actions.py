"""Actions on their way to an environment, and masks of them on theirs to the agent."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Shaped
from torch import Tensor

from merlin.errors import MerlinError
from merlin.networks.action_spaces import SimpleSpace, open_action_space
from merlin.networks.actions import make_action_distribution
from merlin.networks.categories import sizes_and_starts
from merlin.networks.spaces import ACTION_MASK, shape_of


class EnvironmentActions:
    """The actions of a batch of environments, made of those of `ActionDistribution`, in the space's own form and types.

    That form is what `gymnasium.vector.utils.batch_space` says: an array [B, ...] for each simple space, in dicts and
    tuples. A Box's numbers are rounded where it holds integers, and clipped. All are copies: an environment may change
    what it is given, and the agent learns from what it did.

    Args:
        is_native: The environments take tensors.

    Raises:
        MerlinError: The space is not supported.
    """

    def __init__(self, space: gymnasium.Space, num_envs: int, device: torch.device, is_native: bool, task: str) -> None:
        self.space, self.num_envs, self.is_native, self.task = space, num_envs, is_native, task
        self._parts = [_Part(part, device) for _, part in open_action_space(space, task)]
        is_choice = isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and space.dtype == np.int64
        self._is_taken_as_is = is_native and is_choice
        self._is_nested = isinstance(space, spaces.Dict | spaces.Tuple)

    def __call__(self, action: Shaped[Tensor, "B ..."]) -> Any:
        """Return what the environments take.

        Raises:
            MerlinError: A choice lies outside its space. Tensors are not asked: a GPU's host would have to wait.
        """
        if self._is_taken_as_is:
            return action.clone()
        form = self._tensor if self.is_native else self._array
        if not self._is_nested:
            return form(self._parts[0], action)
        numbers = action.reshape(self.num_envs, -1).split([part.size for part in self._parts], -1)
        values = (form(part, x.reshape(-1, *part.shape)) for part, x in zip(self._parts, numbers, strict=True))
        return _nested(self.space, values)

    def _tensor(self, part: "_Part", value: Tensor) -> Tensor:
        return part.clip(value).to(part.dtype, copy=True)

    def _array(self, part: "_Part", value: Tensor) -> np.ndarray:
        array = part.clip(value).cpu().numpy()
        if part.bounds is None and not (lies := (array >= part.lowest) & (array <= part.highest)).all():
            index = int(np.argmin(lies.reshape(len(array), -1).all(1)))
            raise MerlinError(
                f"Actions must lie in {part.space}, but that of environment {index} of {self.task} is "
                f"{array[index].tolist()}: correct the agent."
            )
        return array.astype(part.numpy_dtype)


class _Part:
    """A simple space of an action space, and within which bounds its numbers lie."""

    def __init__(self, space: SimpleSpace, device: torch.device) -> None:
        self.space, self.shape, self.bounds, self.is_whole = space, shape_of(space), None, True
        self.size, self.numpy_dtype = math.prod(self.shape), np.dtype(space.dtype)
        self.dtype = torch.from_numpy(np.zeros(1, self.numpy_dtype)).dtype
        if isinstance(space, spaces.Box):
            # float64 holds the bounds of every type exactly, but for integers that no action reaches. What an unbounded
            # number may be is what its type can hold, and does not become infinite.
            self.is_whole = not np.issubdtype(space.dtype, np.floating)
            largest = 2.0**62 if self.is_whole else float(np.finfo(str(space.dtype)).max)
            bounds = np.stack([space.low, space.high]).astype(np.float64).clip(-largest, largest)
            self.bounds = torch.as_tensor(bounds, device=device)
        else:
            sizes, starts = (np.reshape(x, self.shape) for x in sizes_and_starts(space))
            ends = starts + sizes - 1
            self.lowest, self.highest = (
                (starts, ends) if self.shape else (int(starts), int(ends))
            )  # ints compare faster

    def clip(self, value: Tensor) -> Tensor:
        """Return the numbers inside a Box; choices as they are."""
        if self.bounds is None:
            return value
        value = value.double()
        return (value.round() if self.is_whole else value).clamp(*self.bounds)


def _nested(space: gymnasium.Space, values: Iterator[Any]) -> Any:
    """Return the values of a space's simple ones in its dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(child, values) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(child, values) for child in space.spaces)
    return next(values)


def row_view(space: gymnasium.Space) -> Callable[[Any], Any] | None:
    """Return the function from one row of a batch's actions to an action of the space; None: it is one as it is.

    What numpy makes a number of its own is an int in a Discrete, and an array in a Box of shape ().
    """
    if isinstance(space, spaces.Discrete):
        return int
    if isinstance(space, spaces.Box) and space.shape == ():
        return partial(np.asarray, dtype=space.dtype)
    if isinstance(space, spaces.Dict):
        views = {key: row_view(child) or _same for key, child in space.spaces.items()}
        return lambda action: {key: view(action[key]) for key, view in views.items()}
    if isinstance(space, spaces.Tuple):
        parts = [row_view(child) or _same for child in space.spaces]
        return lambda action: tuple(view(x) for view, x in zip(parts, action, strict=True))
    return None


def _same(action: Any) -> Any:
    return action


class ActionMasks:
    """Masks of a batch's actions, from its observations or its infos, as the entry `action_mask` of observations.

    A mask has a row of C numbers 0 or 1 for each environment, one for each choice; those of the variables of a
    MultiDiscrete, MultiBinary, Dict or Tuple lie side by side. Where the first observations have one, all must.

    Args:
        is_native: The masks are tensors, of whose values only the first are looked at: a GPU's host would have to wait.

    Raises:
        MerlinError: The observations have an entry `action_mask` that cannot be one.
    """

    def __init__(
        self, observation_space: gymnasium.Space, action_space: gymnasium.Space, is_native: bool, task: str
    ) -> None:
        self.actions, self.is_native, self.task = make_action_distribution(action_space), is_native, task
        self.are_given: bool | None = None  # which the first reset tells
        self.space: gymnasium.Space | None = None
        if isinstance(observation_space, spaces.Dict):
            self.space = observation_space.spaces.get(ACTION_MASK)
        if self.space is not None and (
            not isinstance(self.space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
            or np.prod(self.space.shape) != self.actions.num_choices
        ):
            raise self._mistake(f"has an entry 'action_mask' that is a {self.space}")

    @property
    def source(self) -> str | None:
        """Where the masks are, in words; None where there are none, which of infos the first reset tells."""
        if self.space is not None:
            return f"the entry {ACTION_MASK}"
        return f"the info's {ACTION_MASK}" if self.are_given else None

    def begin(self, observation: dict[str, Tensor], info: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the observation of a reset with the mask, if there is one."""
        self.are_given = ACTION_MASK in observation or ACTION_MASK in info
        return self.read(observation, info, None, looks=True)

    def read(
        self,
        observation: dict[str, Tensor],
        info: Mapping[str, Any],
        is_over: Bool[Tensor, " B"] | None,
        looks: bool = False,
    ) -> dict[str, Tensor]:
        """Return the observation with the mask as bool [B, C]; as it is where there are none.

        Args:
            is_over: Rows on which no action follows. They may have no mask, or one that allows nothing.
            looks: Look at the values of tensors too.

        Raises:
            MerlinError: A mask is missing, of another size, not of 0 and 1, or allows nothing.
        """
        mask = observation.get(ACTION_MASK, info.get(ACTION_MASK))
        if mask is None and not self.are_given:
            return observation
        if not self.are_given:
            raise self._mistake("gives one with a step and gave none with the reset")
        like = next(iter(observation.values()))
        count = len(like)
        is_over = torch.zeros(count, dtype=torch.bool, device=like.device) if is_over is None else is_over
        is_given = torch.ones_like(is_over)
        if mask is None:
            mask = torch.ones(count, self.actions.num_choices, device=like.device)
            is_given = ~is_given
        elif ACTION_MASK not in observation and f"_{ACTION_MASK}" in info:
            is_given = torch.as_tensor(info[f"_{ACTION_MASK}"], device=like.device)
        if not isinstance(mask, Tensor):
            mask = np.asarray(mask)
            if mask.dtype.kind not in "biuf":
                raise self._mistake(f"gives an array of {mask.dtype}")
            mask = torch.as_tensor(mask)
        mask = mask.to(like.device).reshape(count, -1) if mask.numel() % count == 0 else mask
        if mask.shape != (count, self.actions.num_choices):
            raise self._mistake(f"gives one of shape {tuple(mask.shape)}")
        allowed = mask.bool()
        if not self.is_native or looks:
            self._look(mask, allowed, is_given, is_over)
        allowed = allowed | ~is_given.unsqueeze(-1)
        return observation | {ACTION_MASK: allowed}

    def merge(
        self, before: dict[str, Tensor], after: dict[str, Tensor], is_first: Bool[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the observation after a reset of some rows, with the masks of the others from before."""
        if ACTION_MASK not in after:
            return after
        return after | {ACTION_MASK: torch.where(is_first.unsqueeze(-1), after[ACTION_MASK], before[ACTION_MASK])}

    def _look(self, mask: Tensor, allowed: Tensor, is_given: Tensor, is_over: Tensor) -> None:
        if mask.dtype != torch.bool and not (is_whole := ((mask == 0) | (mask == 1)).all(-1) | ~is_given).all():
            index = int(is_whole.int().argmin())
            raise self._mistake(f"gives environment {index} {mask[index].tolist()}")
        if not (is_known := is_given | is_over).all():
            raise self._mistake(f"gives environment {int(is_known.int().argmin())} none, having begun with one")
        if not (is_possible := self.actions.is_possible(allowed) | ~is_given | is_over).all():
            raise MerlinError(
                f"An action mask must allow an action, but {self.task} allows environment "
                f"{int(is_possible.int().argmin())} nothing to choose: correct the task."
            )

    def _mistake(self, what: str) -> MerlinError:
        if not self.actions.num_choices:
            return MerlinError(
                f"An action mask is of choices, but {self.task} has one and its actions are a Box: leave it out."
            )
        return MerlinError(
            f"An action mask must be {self.actions.num_choices} numbers 0 or 1, one for each choice, with every "
            f"observation; {self.task} {what}: correct the task."
        )
