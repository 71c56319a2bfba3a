"""A replay of windows: what was experienced, and the agent's state that each window began with, in a ring."""

from typing import Any

import torch
from torch import Tensor

from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.states import map_state

STORED = ("is_first", "previous_reward", "action", "reward", "discount", "is_end", "is_valid")
"""Columns of an `Unroll` that are kept, beside the observation. What acting thought of it is not."""


class Replay:
    """Windows of T rows of one environment each, newest in place of oldest.

    Integers are kept in as few bytes as what was seen needs. All that is in it is in `state_dict`.

    Args:
        capacity: Windows that it holds.
        length: T.
    """

    def __init__(self, capacity: int, length: int) -> None:
        self.capacity, self.length = capacity, length
        self.added = 0
        self._columns: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._state: Any = None

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, unroll: Unroll, state: Any) -> None:
        """Keep the windows of all environments of a batch, and the states that they began with."""
        columns = {f"observation.{name}": x for name, x in unroll.observation.items()}
        columns |= {name: getattr(unroll, name) for name in STORED}
        count = unroll.is_first.shape[1]
        device = unroll.is_first.device
        at = (self.added + torch.arange(count, device=device)) % self.capacity
        if count > self.capacity:  # the last ones alone
            at, columns = at[-self.capacity :], {name: x[:, -self.capacity :] for name, x in columns.items()}
            state = map_state(lambda x: x[-self.capacity :], state)
        if self._state is None:
            self._state = map_state(lambda x: x.new_zeros(self.capacity, *x.shape[1:]), state)
            self._dtypes = {name: x.dtype for name, x in columns.items()}
        for name, x in columns.items():
            held = self._fitting(name, x)
            held[at] = x.transpose(0, 1).to(held.dtype)
        map_state(lambda held, x: held.index_copy_(0, at, x.detach()), self._state, state)
        self.added += count

    def sample(self, count: int, generator: torch.Generator) -> tuple[Unroll, Any]:
        """Return windows drawn uniformly, side by side, and the states that they began with.

        Columns that are not kept are zeros; `extras` are None.
        """
        device = self._columns["is_first"].device
        at = torch.randint(len(self), (count,), generator=generator, device=device)
        columns = {name: x[at].transpose(0, 1).to(self._dtypes[name]) for name, x in self._columns.items()}
        observation = {
            name.removeprefix("observation."): x for name, x in columns.items() if name.startswith("observation.")
        }
        zeros = torch.zeros_like(columns["reward"])
        rest = {name: columns[name] for name in STORED}
        unroll = Unroll(observation=observation, log_prob=zeros, value=zeros, next_value=zeros, **rest)
        return unroll, map_state(lambda x: x[at], self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return all that it holds, as far as it is filled."""
        used, states = slice(0, len(self)), []
        if self._state is not None:
            map_state(lambda x: states.append(x[used].clone()) or x, self._state)
        return {
            "added": self.added,
            "columns": {name: x[used].clone() for name, x in self._columns.items()},
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self._dtypes.items()},
            "state": states,
        }

    def load_state_dict(self, state: dict[str, Any], like: Any, device: torch.device) -> None:
        """Go on from a `state_dict`.

        Args:
            like: A state of the agent, whose form the states get.

        Raises:
            MerlinError: It holds more than there is room for.
        """
        count = min(state["added"], self.capacity)
        columns = state["columns"]
        if columns and len(next(iter(columns.values()))) != count:
            raise MerlinError(
                f"A replay goes on with the room that it had, but it held "
                f"{len(next(iter(columns.values())))} windows, and there is room for {self.capacity}."
            )
        self.added = state["added"]
        self._dtypes = {name: getattr(torch, dtype) for name, dtype in state["dtypes"].items()}

        def filled(x: Tensor) -> Tensor:
            held = torch.zeros(self.capacity, *x.shape[1:], dtype=x.dtype, device=device)
            held[:count] = x.to(device)
            return held

        self._columns = {name: filled(x) for name, x in columns.items()}
        rows = iter(state["state"])
        self._state = map_state(lambda _: filled(next(rows)), like) if state["state"] else None

    def _fitting(self, name: str, x: Tensor) -> Tensor:
        """Return the tensor that a column is kept in, made wider where what comes does not fit."""
        held = self._columns.get(name)
        kept = x.dtype
        if x.dtype == torch.int64:
            lowest, highest = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
            of = (torch.uint8, torch.int16, torch.int32)
            kept = next((t for t in of if torch.iinfo(t).min <= lowest and highest <= torch.iinfo(t).max), x.dtype)
        if held is None:
            held = torch.zeros(self.capacity, x.shape[0], *x.shape[2:], dtype=kept, device=x.device)
        elif kept != held.dtype and torch.promote_types(kept, held.dtype) != held.dtype:
            held = held.to(torch.promote_types(kept, held.dtype))
        self._columns[name] = held
        return held
