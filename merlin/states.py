"""States as values: nested NamedTuples of tensors, batch first, mapped over and reset without being changed."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from merlin.errors import MerlinError


def map_state(function: Callable[..., Tensor], *states: Any) -> Any:
    """Return the state with `function` applied to each of its tensors (to corresponding ones, if several are given)."""
    if isinstance(states[0], Tensor):
        return function(*states)
    if states[0] is None:
        return None
    return type(states[0])(*(map_state(function, *children) for children in zip(*states, strict=True)))


def flatten_state(state: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a state, or of a tuple of states, in their order; what is None has none."""
    if isinstance(state, Tensor):
        return (state,)
    return () if state is None else tuple(x for part in state for x in flatten_state(part))


def unflatten_state(template: Any, tensors: Iterable[Tensor]) -> Any:
    """Undo `flatten_state`, of a state of the template's form."""
    return _unflatten(template, iter(tensors))


def _unflatten(template: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(template, Tensor):
        return next(tensors)
    if template is None:
        return None
    parts = [_unflatten(part, tensors) for part in template]
    return tuple(parts) if type(template) is tuple else type(template)(*parts)


def reset_state(state: Any, is_first: Bool[Tensor, "B"]) -> Any:
    """Return the state with the batch rows that start an episode zeroed, and no other touched.

    Filling rather than multiplying stops gradients and NaNs at the episode's edge exactly.

    Raises:
        MerlinError: There is not one flag for each row.
    """
    return state if is_known_false(is_first) else _reset(state, is_first)


def is_known_false(flags: Bool[Tensor, "B"]) -> bool:
    """Return whether no flag is set, which spares a copy of the memory; false where it would cost more to know.

    A GPU's host would have to wait, and a program that is compiled, exported or traced has no branches.
    """
    is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    is_program = is_traced or torch.compiler.is_compiling()
    return flags.device.type == "cpu" and not is_program and not flags.any()


def _reset(state: Any, is_first: Bool[Tensor, "B"]) -> Any:
    if isinstance(state, Tensor):
        if is_first.numel() != state.shape[0]:  # a single flag would be broadcast
            raise MerlinError(
                f"is_first must have one flag for each of the state's {state.shape[0]} rows, but has "
                f"{is_first.numel()}: give it as many."
            )
        return state.masked_fill(is_first.view(-1, *[1] * (state.ndim - 1)), 0)
    if isinstance(state, tuple):
        return type(state)(*(_reset(child, is_first) for child in state))
    return None if state is None else state.reset(is_first)  # a memory inside a window


def choose_rows(condition: Bool[Tensor, "B"], chosen: Any, other: Any) -> Any:
    """Return the state with the batch rows of `chosen` where the condition holds, and those of `other` elsewhere."""
    return map_state(lambda x, y: torch.where(condition.view(-1, *[1] * (x.ndim - 1)), x, y), chosen, other)


def rows_of(state: Any, rows: Int[Tensor, "b"]) -> Any:
    """Return some batch rows of the state."""
    return map_state(lambda x: x.index_select(0, rows), state)


def put_rows(state: Any, part: Any, rows: Int[Tensor, "b"] | Bool[Tensor, "B"]) -> Any:
    """Return the state with some of its batch rows replaced.

    Args:
        part: A state of these rows alone; of all rows, where they are told by a condition.
    """
    if rows.dtype == torch.bool:
        return choose_rows(rows, part, state)
    return map_state(lambda x, y: x.index_copy(0, rows, y), state, part)


def detach_state(state: Any) -> Any:
    """Return the state cut from the graph; steps taken from it leave no trace in a window that it is inside of."""
    if isinstance(state, tuple):
        return type(state)(*map(detach_state, state))
    return state.detach() if hasattr(state, "detach") else state


def stack_states(states: list[Any]) -> Any:
    """Return states of the same form, one of each step, as one whose tensors begin with a time axis."""
    return map_state(lambda *rows: torch.stack(rows), *states)
