"""A replay of windows: what was experienced, and the agent's state that each window began with, in a ring."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlin import distributed
from merlin.errors import MerlinError, tell
from merlin.experience import Unroll
from merlin.states import map_state
from merlin.training.storage import Damaged, changed, remove, replace_file, sha256_of

KEPT = 3
"""States that may still be gone on from: as many as a run keeps checkpoints."""
_NAME = "segment-{}-{}.pt"  # its number, and the process's

STORED = ("is_first", "previous_reward", "action", "reward", "discount", "is_end", "is_valid")
"""Columns of an `Unroll` that are kept, beside the observation. What acting thought of it is not."""


class Replay:
    """Windows of T rows of one environment each, newest in place of oldest.

    Integers are kept in as few bytes as what was seen needs. All that is in it is in `state_dict`, or in files that it
    names: windows number k·S to (k + 1)·S - 1 are segment k, a file that never changes.

    Args:
        capacity: Windows that it holds.
        length: T.
        segment: S; a 64th of the capacity unless told.
    """

    def __init__(self, capacity: int, length: int, segment: int | None = None) -> None:
        self.capacity, self.length = capacity, length
        self.segment = segment or max(1, capacity // 64)
        self.added = 0
        self._files: dict[int, str] = {}  # segments that are written, and their checksums
        self._named: list[int] = []  # the oldest segments that the last states named
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
            self._state = map_state(lambda x: _room(self.capacity, x.shape[1:], x.dtype, device), state)
            self._dtypes = {name: x.dtype for name, x in columns.items()}
        self._make_room(columns)
        for name, x in columns.items():
            held = self._columns[name]
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
        unroll = Unroll(observation, log_prob=zeros, value=zeros, next_value=zeros, reads=None, **rest)
        return unroll, map_state(lambda x: x[at], self._state)

    def state_dict(self, directory: Path | None = None) -> dict[str, Any]:
        """Return all that it holds.

        Args:
            directory: Where whole segments are written, each once; what is returned names them. Those that neither it
                nor the `KEPT` states before it name are removed.

        Raises:
            MerlinError: A file cannot be written.
        """
        oldest = self.added - len(self)
        if directory is not None:
            self._write_segments(directory, oldest)
        first = oldest // self.segment
        files = {} if directory is None else {k: digest for k, digest in self._files.items() if k >= first}
        loose = [number for number in range(oldest, self.added) if number // self.segment not in files]
        return {
            "added": self.added,
            "capacity": self.capacity,
            "files": list(files.items()),
            "loose": self._part(torch.tensor(loose, dtype=torch.int64)),
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self._dtypes.items()},
        }

    def load_state_dict(
        self,
        state: dict[str, Any],
        like: Any,
        device: torch.device,
        directory: Path | None = None,
        note: Callable[[str], object] = tell,
    ) -> None:
        """Go on from a `state_dict`.

        Args:
            like: A state of the agent, whose form the states get.
            directory: Where the files are that it names.
            note: Is told of files that are missing or damaged. Other windows take the place of those in them.

        Raises:
            MerlinError: It held another number of windows than there is room for.
        """
        if state["capacity"] != self.capacity:
            raise MerlinError(
                f"A replay goes on with the room that it had, which was {state['capacity']} windows, but there is room "
                f"for {self.capacity}."
            )
        self.added, self._columns, self._files = state["added"], {}, {}
        self._dtypes = {name: getattr(torch, dtype) for name, dtype in state["dtypes"].items()}
        parts, lost = [state["loose"]] if len(state["loose"]["numbers"]) else [], []
        for index, digest in state["files"]:
            path = _path(directory, index)
            try:
                if sha256_of(path) != digest:
                    raise Damaged(changed(path))
                parts.append(torch.load(path, map_location="cpu", weights_only=True))
                self._files[index] = digest
            except (OSError, Damaged):
                lost.append(path)
        if lost:
            note(
                f"{', '.join(map(str, lost))} must hold what was experienced, but is missing or damaged: the replay "
                f"goes on with other windows in its place, and so not exactly"
            )
        if not parts:
            self.added = 0
            return
        self._state = map_state(lambda x: _room(self.capacity, x.shape[1:], x.dtype, device), like)
        is_known = torch.zeros(self.capacity, dtype=torch.bool)
        for part in parts:
            is_live = part["numbers"] >= self.added - len(self)
            at = part["numbers"][is_live] % self.capacity
            is_known[at] = True
            self._make_room({name: x.transpose(0, 1).to(device) for name, x in part["columns"].items()})
            for name, x in part["columns"].items():
                held = self._columns[name]
                held[at] = x[is_live].to(device, held.dtype)
            for held, x in zip(_leaves(self._state), part["state"], strict=True):
                held[at] = x[is_live].to(device)
        missing, known = (~is_known[: len(self)]).nonzero().squeeze(1), is_known.nonzero().squeeze(1)
        for held in (*self._columns.values(), *_leaves(self._state)):
            held[missing] = held[known[torch.arange(len(missing)) % len(known)]]

    def _write_segments(self, directory: Path, oldest: int) -> None:
        """Write the segments of which all is there and that have no file, and remove the files that nobody names."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for index in range(-(-oldest // self.segment), self.added // self.segment):
                path = _path(directory, index)
                if index not in self._files or not path.exists():
                    part = self._part(torch.arange(index * self.segment, (index + 1) * self.segment))
                    replace_file(path, lambda file: torch.save(part, file))  # noqa: B023, it is called at once
                    self._files[index] = sha256_of(path)
        except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
            raise MerlinError(
                f"could not write the replay to {directory} ({str(error).splitlines()[0]}): mend that, and resume"
            ) from error
        if len(self._named) == KEPT:
            self._files = {index: digest for index, digest in self._files.items() if index >= self._named[0]}
            for path in directory.glob(_NAME.format("*", distributed.rank())):
                if int(path.name.split("-")[1]) < self._named[0]:
                    remove(path)
        self._named = [*self._named[1 - KEPT :], oldest // self.segment]

    def _part(self, numbers: Tensor) -> dict[str, Any]:
        """Return copies of the windows of these numbers, counted from the first that was ever added."""
        at = numbers % self.capacity
        return {
            "numbers": numbers,
            "columns": {name: x[at].cpu() for name, x in self._columns.items()},
            "state": [x[at].cpu() for x in _leaves(self._state)],
        }

    def _make_room(self, columns: dict[str, Tensor]) -> None:
        """Have each column a tensor that it is kept in, made wider where what comes does not fit."""
        for name, kept in _smallest_types(columns).items():
            held, x = self._columns.get(name), columns[name]
            if held is None:
                self._columns[name] = _room(self.capacity, (x.shape[0], *x.shape[2:]), kept, x.device)
            elif (wider := torch.promote_types(kept, held.dtype)) != held.dtype:
                self._columns[name] = held.to(wider)


def _smallest_types(columns: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the type that each column can be kept in: of integers the smallest that holds them."""
    types = {name: x.dtype for name, x in columns.items()}
    integers = {name: x for name, x in columns.items() if x.dtype == torch.int64 and x.numel()}
    if integers:
        spans = torch.stack([torch.stack(x.aminmax()) for x in integers.values()]).tolist()  # one wait for a device
        for name, (lowest, highest) in zip(integers, spans, strict=True):
            of = (torch.uint8, torch.int16, torch.int32)
            fits = (x for x in of if torch.iinfo(x).min <= lowest and highest <= torch.iinfo(x).max)
            types[name] = next(fits, torch.int64)
    return types


def _room(count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros to keep `count` of something in. On a CPU they take memory only when they are written to."""
    try:
        return torch.zeros(count, *shape, dtype=dtype, device=device)
    except RuntimeError as error:
        size = count * math.prod(shape) * dtype.itemsize / 2**30
        raise MerlinError(
            f"A replay must fit into memory, but one of its columns takes {size:.3g} GiB: lower model.replay_rows."
        ) from error


def _leaves(state: Any) -> list[Tensor]:
    """Return the tensors of a state, in order; none of None."""
    found: list[Tensor] = []
    if state is not None:
        map_state(lambda x: found.append(x) or x, state)
    return found


def _path(directory: Path | None, index: int) -> Path:
    return (directory or Path()) / _NAME.format(f"{index:08d}", distributed.rank())
