"""The border of an agent's step: what users pass, made the tensors that its networks read."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.errors import MerlinError, describe
from merlin.networks.actions import ActionDistribution
from merlin.networks.spaces import ACTION_MASK, ROOT, shape_of
from merlin.precision import as_type


class Seen(NamedTuple):
    """What an agent is shown in a step, batch first; `is_single` if it came without the batch's axis."""

    observation: dict[str, Tensor]
    is_first: Bool[Tensor, "B"]
    reward: Float[Tensor, "B"]
    is_single: bool


def convert(
    spaces: dict[str, gymnasium.Space],
    observation: Any,
    is_first: Any,
    reward: Any,
    like: Float[Tensor, "B _"],
    actions: ActionDistribution | None = None,
    gives_masks: bool | None = None,
) -> Seen:
    """Return the arguments of a step as tensors, which may come as arrays, lists or numbers, nested or flat.

    Args:
        spaces: Of the observation's entries, flat.
        is_first: One flag for all rows or one for each: bools, or numbers that are not 0.
        reward: One number for all rows or one for each; None stands for zeros.
        like: A tensor of the agent's state, of whose device, type and batch size the result is.
        actions: Whose choices a mask is of, which an observation may have as its entry `action_mask`.
        gives_masks: Whether it must have one.

    Raises:
        MerlinError: An entry is missing, or not of its space's shape, numbers or categories, or of another batch size.
    """
    batch_size = len(like)
    found = dict(_entries(observation, "", spaces))
    entries, batch_sizes = {}, set()
    for name, space in spaces.items():
        if name not in found:
            raise MerlinError(
                f"An observation must have the entries {', '.join(spaces)}, but {name!r} is missing: "
                "pass what the environment gives."
            )
        what, shape = f"entry {name!r}", shape_of(space)
        value = _tensor(found[name], what, like, finite=f"{what} of an observation")
        if value.shape == shape:
            batch_sizes.add(None)
            value = value.unsqueeze(0)
        elif value.shape[1:] == shape and value.ndim == len(shape) + 1:
            batch_sizes.add(len(value))
        else:
            raise MerlinError(
                f"Entry {name!r} of an observation must have shape {_written(shape)}, or {_written(('B', *shape))} "
                f"for a batch, but has {_written(value.shape)}: pass what the environment gives."
            )
        if isinstance(space, Box):
            _check_whole(name, space, value)
        else:
            _check_categories(name, space, value)
            value = as_type(value, torch.int64)
        entries[name] = value
    if len(batch_sizes) > 1 or not batch_sizes <= {batch_size, None if batch_size == 1 else batch_size}:
        came = ", ".join("one without a batch axis" if size is None else str(size) for size in batch_sizes)
        raise MerlinError(
            f"An observation must be of as many environments as the state, {batch_size}, but is of {came}: "
            "take the state from initial_state(batch_size)."
        )
    if ACTION_MASK in found:
        entries[ACTION_MASK] = _mask(found[ACTION_MASK], actions, like, None in batch_sizes)
    elif gives_masks:
        beside = '{"observation": observation, ' if list(spaces) == [ROOT] else "observation | {"
        raise MerlinError(
            "Observations of a task that gives masks of actions must have the entry 'action_mask', but it is missing: "
            f'pass what the environment gives, such as {beside}"action_mask": info["action_mask"]}}.'
        )
    firsts = _rows(is_first, "is_first", like)
    rewards = _rows(0.0 if reward is None else reward, "reward", like, "reward of a step")
    return Seen(
        entries,
        firsts if firsts.dtype == torch.bool else firsts != 0,
        as_type(rewards, like.dtype),
        None in batch_sizes,
    )


def _entries(node: Any, path: str, spaces: dict[str, gymnasium.Space]) -> Iterator[tuple[str, Any]]:
    """Yield the values of the entries, by their names; an entry may be a list, which is not opened."""
    if path in spaces or path == ACTION_MASK:
        yield path, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _entries(child, f"{path}.{key}" if path else str(key), spaces)
    elif not path and list(spaces) == [ROOT]:
        yield ROOT, node
    elif isinstance(node, tuple | list):
        for index, child in enumerate(node):
            yield from _entries(child, f"{path}.{index}" if path else str(index), spaces)


def _tensor(value: Any, what: str, like: Tensor, finite: str = "") -> Tensor:
    """Return a tensor on the agent's device, numbers with a fraction in the agent's type.

    Args:
        finite: What must be finite, if it must: one NaN, and the agent remembers nothing else. Tensors on a GPU are
            not asked, where the host would have to wait.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.array(value, order="C")  # a copy: environments write the next observation into the same array
            if array.dtype.kind in "fui" and array.dtype not in (np.float32, np.uint8):
                array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
            if finite and array.dtype.kind == "f" and not (is_finite := np.isfinite(array)).all():
                raise _not_finite(finite, array[~is_finite][0])
            value = torch.from_numpy(array)
        except (TypeError, ValueError, OverflowError) as error:
            raise MerlinError(f"The {what} must be an array of numbers, but is none ({describe(error)}).") from error
    elif finite and value.is_floating_point() and value.device.type == "cpu" and not (ok := value.isfinite()).all():
        raise _not_finite(finite, value[~ok][0].item())
    dtype = like.dtype if value.is_floating_point() else value.dtype
    is_as_wanted = value.dtype == dtype and value.device == like.device  # a call that changes nothing is dear
    return value if is_as_wanted else value.to(like.device, dtype)


def _not_finite(what: str, came: object) -> MerlinError:
    return MerlinError(f"The {what} must be finite, but {came} came: pass numbers.")


def _mask(value: Any, actions: ActionDistribution | None, like: Tensor, is_single: bool = False) -> Bool[Tensor, "B C"]:
    """Return masks. That of one environment must allow something; rows of a batch may be of episodes that are over."""
    mask, num_choices = _tensor(value, "action mask", like), 0 if actions is None else actions.num_choices
    if mask.shape not in ((num_choices,), (len(like), num_choices)):
        raise MerlinError(
            f"An action mask must have shape {_written((len(like), num_choices))}, a number 0 or 1 for each choice, "
            f"but has {_written(mask.shape)}: pass what the environment gives."
        )
    mask = mask.bool().expand(len(like), num_choices)
    if is_single and actions is not None and mask.device.type == "cpu" and not actions.is_possible(mask).all():
        raise MerlinError(
            "An action mask must allow an action, but that of this observation allows nothing to choose: pass what the "
            "environment gives."
        )
    return mask


def _rows(value: Any, what: str, like: Tensor, finite: str = "") -> Tensor:
    rows = _tensor(value, what, like, finite)
    if rows.ndim == 0:
        return rows.expand(len(like))
    if rows.shape != (len(like),):
        raise MerlinError(
            f"The {what} of a step must have shape {_written((len(like),))}, one for each environment, "
            f"but has {_written(rows.shape)}: pass one for each row of the batch."
        )
    return rows


def _check_whole(name: str, space: Box, value: Tensor) -> None:
    """Raise a MerlinError if a Box of integers holds a fraction, as a picture does that was divided by 255."""
    if not value.is_floating_point() or value.device.type != "cpu" or np.issubdtype(space.dtype, np.floating):
        return
    if (is_wrong := value != value.trunc()).any():
        raise MerlinError(
            f"Entry {name!r} of an observation must hold integers, as its space is of {space.dtype}, but "
            f"{value[is_wrong][0].item():.6g} came: pass what the environment gives, not scaled."
        )


def _check_categories(name: str, space: gymnasium.Space, value: Tensor) -> None:
    """Raise a MerlinError if a category is none of the space's. Not on a GPU, where the host would have to wait."""
    if value.device.type != "cpu" or value.numel() == 0:
        return
    array = (
        value.detach().double().numpy() if value.is_floating_point() else value.numpy()
    )  # faster than tensors where so small
    lowest, highest = 0, 1  # of a MultiBinary
    if isinstance(space, MultiDiscrete):
        lowest, highest = space.start, space.start + space.nvec - 1
    elif isinstance(space, Discrete):
        lowest, highest = int(space.start), int(space.start + space.n - 1)
    is_wrong = (array < lowest) | (array > highest)
    if value.is_floating_point():
        is_wrong |= array != np.trunc(array)
    if is_wrong.any():
        first = tuple(np.argwhere(is_wrong)[0])
        bounds = [np.broadcast_to(bound, array.shape)[first].item() for bound in (lowest, highest)]
        raise MerlinError(
            f"Entry {name!r} of an observation must hold categories, integers from {bounds[0]} to {bounds[1]}, "
            f"but {array[first].item()} came: pass what the environment gives."
        )


def _written(shape: Any) -> str:
    return f"[{', '.join(map(str, shape))}]"
