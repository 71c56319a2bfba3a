"""What an agent asks of a memory, so that another one can take its place: `--set model.memory=module:Name`."""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from merlin import states
from merlin.errors import MerlinError
from merlin.memory import content
from merlin.memory.content import Read
from merlin.memory.window import MemoryWindow, WindowState
from merlin.plugins import load_class
from merlin.precision import as_type
from merlin.ranges import Range, SettingError, Settings
from merlin.states import map_state


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """The memory's kind, its size and how it is read."""

    memory: str = "content"
    """content, or `module:Name`, a class of your own that is a `merlin.memory.Memory`."""
    memory_size: Annotated[int, Range(1, 10_000_000)] = 1350
    """N, slots."""
    retroactive_discount: Annotated[float | None, Range(0, 0.9999)] = 0.96
    """g of the retroactive half of the memory; none leaves it out."""
    mask_unwritten: bool = True
    """Keep slots that were never written from being read."""
    top_k: Annotated[int | None, Range(1, 10_000_000)] = None
    """Read only this many slots for each key, at most memory_size; none reads all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k > self.memory_size:
            raise SettingError(
                f"top_k must be at most memory_size, which is {self.memory_size}, but is {self.top_k}: lower it, or "
                f"take none, which reads all slots."
            )


class Memory(ABC):
    """How a memory is read and written. Its state is a value: a NamedTuple of tensors, batch first, zeros when empty.

    Args:
        word_size: Z, width of what is written.
    """

    slot_size: int
    """W, width of keys and of what a read returns."""

    def __init__(self, word_size: int, config: MemoryConfig) -> None:
        self.word_size, self.config = word_size, config
        self.slot_size = word_size

    @abstractmethod
    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Any:
        """Return an empty memory.

        One that takes `dtype` besides says itself what is of an agent's type; of others all floats are.
        """

    def empty(self, batch_size: int, like: Tensor) -> Any:
        """Return an empty memory on the device of a tensor, and of its type."""
        if "dtype" in inspect.signature(self.initial_state).parameters:
            return self.initial_state(batch_size, like.device, dtype=like.dtype)  # pyright: ignore[reportCallIssue]
        state = self.initial_state(batch_size, like.device)
        return map_state(lambda x: as_type(x, like.dtype) if x.is_floating_point() else x, state)

    @abstractmethod
    def read(self, state: Any, keys: Float[Tensor, "B K W"], strengths: Float[Tensor, "B K"]) -> Read:
        """Return the words that the keys find, and the weights of the slots that they are made of."""

    @abstractmethod
    def write(
        self,
        state: Any,
        word: Float[Tensor, "B Z"],
        read_weights: Float[Tensor, "B K _"],
        slot: Int[Tensor, "B"] | None = None,
    ) -> tuple[Any, Int[Tensor, "B"] | None]:
        """Return the state with the word, and the slot that holds it, −1 in rows where none does.

        None stands for slots that are of no use to anybody.

        Args:
            read_weights: Those of the predictor's reads before the write.
            slot: Where the word went when this was experienced; given where experience is replayed.
        """

    def rows_of(self, state: Any, rows: Int[Tensor, "b"]) -> Any:
        """Return the state of some batch rows, to be read and written like that of all.

        Unless overridden, of a memory whose state is a value inside a window too.
        """
        return states.rows_of(state, rows)

    def put_rows(self, state: Any, part: Any, rows: Int[Tensor, "b"] | Bool[Tensor, "B"]) -> Any:
        """Return the state with some of its batch rows replaced, the others being as they were.

        Args:
            part: What became of the state of these rows, which nobody else has written to since; of all rows, where
                they are told by a condition.
        """
        return states.put_rows(state, part, rows)

    def weights_by_step(
        self, weights: list[Float[Tensor, "B K _"]], slots: Int[Tensor, "T B"] | None, is_first: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B K T"], Float[Tensor, "T B K"]]:
        """Return each step's read weights by the step whose word they weigh, and the largest on an earlier word.

        Unless overridden, of a memory that says by slots where each word went, and reads before it writes.

        Args:
            weights: Those of a read in each step of a window.
            slots: Where each step's word went.

        Raises:
            MerlinError: There are no slots.
        """
        if slots is None:
            raise MerlinError(
                f"Value is transported to the step that wrote a slot, but {type(self).__name__} does not say where "
                f"words go: return the slot from its write, or take model.value_transport=0."
            )
        length = len(weights)
        by_step = weights[0].new_zeros(length, *weights[0].shape[:2], length + 1)  # the last: words of before
        earlier = []
        holds = torch.full_like(slots[0], length).unsqueeze(1).repeat(1, weights[0].shape[2])  # by slot, which step's
        for t, (row, slot, begins) in enumerate(zip(weights, slots, is_first, strict=True)):
            holds = holds.masked_fill(begins.unsqueeze(1), length)
            by_step[t].scatter_add_(2, holds.unsqueeze(1).expand_as(row), row)
            earlier.append(row.masked_fill((holds < length).unsqueeze(1), 0).amax(-1))
            index = slot.clamp(min=0).unsqueeze(1)
            holds = holds.scatter(1, index, torch.where(slot.unsqueeze(1) >= 0, t, holds.gather(1, index)))
        return by_step[..., :length], torch.stack(earlier)

    def begin_window(self, state: Any, length: int) -> Any:
        """Return the state in a form whose backward pass over `length` steps is cheap; unless overridden, as it is."""
        return state

    def end_window(self, state: Any) -> Any:
        """Return the state that a window leaves, cut from the graph and in the usual form."""
        return map_state(Tensor.detach, state)

    def last_word(self, state: Any) -> Float[Tensor, "B Z"] | None:
        """Return what was written last; None where the memory cannot tell. For analyses."""
        return None


class ContentMemory(Memory):
    """The memory of `merlin.memory.content`: least-used writes, retroactive half; over a window, `MemoryWindow`."""

    def __init__(self, word_size: int, config: MemoryConfig) -> None:
        super().__init__(word_size, config)
        self.slot_size = word_size * (1 if config.retroactive_discount is None else 2)

    def initial_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> content.MemoryState:
        return content.initial_state(batch_size, self.config.memory_size, self.slot_size, device=device, dtype=dtype)

    def read(
        self,
        state: content.MemoryState | WindowState,
        keys: Float[Tensor, "B K W"],
        strengths: Float[Tensor, "B K"],
    ) -> Read:
        if isinstance(state, WindowState):
            return state.read(keys, strengths, self.config.top_k)
        readable = content.written(state) if self.config.mask_unwritten else None
        return content.read(state.memory, keys, strengths, readable, self.config.top_k)

    def write(
        self,
        state: content.MemoryState | WindowState,
        word: Float[Tensor, "B Z"],
        read_weights: Float[Tensor, "B K _"],
        slot: Int[Tensor, "B"] | None = None,
    ) -> tuple[content.MemoryState | WindowState, Int[Tensor, "B"]]:
        if isinstance(state, WindowState):
            return state.write_to(word, read_weights, slot)
        return content.write_to(state, word, read_weights, self.config.retroactive_discount, slot)

    def rows_of(
        self, state: content.MemoryState | WindowState, rows: Int[Tensor, "b"]
    ) -> content.MemoryState | WindowState:
        return state.rows_of(rows) if isinstance(state, WindowState) else super().rows_of(state, rows)

    def put_rows(
        self,
        state: content.MemoryState | WindowState,
        part: content.MemoryState | WindowState,
        rows: Int[Tensor, "b"] | Bool[Tensor, "B"],
    ) -> content.MemoryState | WindowState:
        if isinstance(state, WindowState) and isinstance(part, WindowState):
            return state.put_rows(part, rows)
        return super().put_rows(state, part, rows)

    def begin_window(self, state: content.MemoryState, length: int) -> WindowState:
        return MemoryWindow(state, length, self.config.retroactive_discount, self.config.mask_unwritten).begin(state)

    def weights_by_step(
        self, weights: list[Float[Tensor, "B K _"]], slots: Int[Tensor, "T B"] | None, is_first: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B K T"], Float[Tensor, "T B K"]]:
        length = len(weights)  # over a window the words of its steps are the last entries, one more at each step
        earlier = [row[..., : row.shape[2] - t].amax(-1) for t, row in enumerate(weights)]
        own = [F.pad(row[..., row.shape[2] - t :], (0, length - t)) for t, row in enumerate(weights)]
        return torch.stack(own), torch.stack(earlier)

    def end_window(self, state: WindowState) -> content.MemoryState:
        return state.memory_state()

    def last_word(self, state: content.MemoryState) -> Float[Tensor, "B Z"]:
        index = state.write_weights.argmax(-1).view(-1, 1, 1).expand(-1, 1, self.slot_size)
        return state.memory.gather(1, index).squeeze(1)[:, : self.word_size]


MEMORIES: dict[str, type[Memory]] = {"content": ContentMemory}


def make_memory(word_size: int, config: MemoryConfig) -> Memory:
    """Return the memory that a configuration names.

    Raises:
        MerlinError: There is no such memory.
    """
    return load_class(config.memory, MEMORIES, Memory, "memory")(word_size, config)
