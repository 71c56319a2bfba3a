"""The memory with an LSTM in front of it, called as `torch.nn.LSTM` is: for agents of other libraries.

One tensor is the whole state, so that whatever keeps an LSTM's state keeps this one: a rollout buffer, a tensor
dictionary, a list. Zeros are the state at the start of an episode, so that multiplying by 0 resets it.
"""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.memory.content import MemoryState, Reader
from merlin.memory.interface import ContentMemory, MemoryConfig
from merlin.memory.window import WindowState
from merlin.precision import is_transformed
from merlin.states import map_state, reset_state

State = Tensor | tuple[Tensor, Tensor]


class MemoryLSTM(nn.Module):
    """An LSTM that writes each input to a memory and reads by what it holds, with the signature of `torch.nn.LSTM`.

        h, c = lstm([x, r], (h, c))
        r    = read(M, keys(h))              K words side by side
        M    = write(M, word(x), weights)
        y    = output([h, r])

    The core of RL-MEM, Wayne et al. 2018, arXiv:1803.10760, with a projection to the LSTM's width. Over several steps
    the memory is never copied: see `merlin.memory.window`. Gradients flow to the words that were written in the same
    call, and through h, c and r of the state; none flows into the memory that a call begins with. Over several steps
    `backward` has no second derivative; `torch.func` has, at the price of a memory a step. `torch.func.vmap` cannot
    map PyTorch's LSTM cells.

    Args:
        input_size: I, width of an input.
        hidden_size: H, width of the LSTM and of an output.
        memory_size: N, slots.
        word_size: Z, width of what is written.
        num_read_keys: K, reads of a step.
        retroactive_discount: Of the retroactive half of the memory, which doubles the width of a slot; none has none.
        top_k: Read only this many slots for each key; none reads all.
        batch_first: Inputs and outputs are [B, T, ...]; the state is [1, B, S] all the same, as an LSTM's is.

    Attributes:
        state_size: S, width of the state.

    Raises:
        MerlinError: A size is below 1.
    """

    num_layers = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        memory_size: int = 64,
        word_size: int = 32,
        num_read_keys: int = 3,
        retroactive_discount: float | None = None,
        top_k: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size, word_size) < 1:
            raise MerlinError(
                f"Sizes must be at least 1, but input_size is {input_size}, hidden_size {hidden_size} and word_size "
                f"{word_size}: correct them."
            )
        self.input_size, self.hidden_size, self.batch_first = input_size, hidden_size, batch_first
        config = MemoryConfig(memory_size=memory_size, retroactive_discount=retroactive_discount, top_k=top_k)
        self.memory = ContentMemory(word_size, config)
        read_size = num_read_keys * self.memory.slot_size
        self.lstm = nn.LSTMCell(input_size + read_size, hidden_size)
        self.reader = Reader(hidden_size, self.memory.slot_size, num_read_keys)
        self.word = nn.Linear(input_size, word_size)
        self.output = nn.Linear(hidden_size + read_size, hidden_size)
        nn.init.constant_(self.lstm.bias_ih[hidden_size : 2 * hidden_size], 1.0)  # it begins by not forgetting
        n, w = memory_size, self.memory.slot_size
        self._sizes = [hidden_size, hidden_size, read_size, n * w, n, n, n, 1]
        self._sizes.append(sum(self._sizes) % 2)  # so that it can be halved
        self.state_size = sum(self._sizes)

    def initial_state(self, batch_size: int) -> Float[Tensor, "1 B S"]:
        """Return the state at the start of an episode: zeros."""
        like = self.output.weight
        dtype = torch.promote_types(like.dtype, torch.float32)  # in which slots can be counted
        return like.new_zeros(1, batch_size, self.state_size, dtype=dtype)

    def forward(
        self, input: Float[Tensor, "..."], state: State | None = None, is_first: Shaped[Tensor, "..."] | None = None
    ) -> tuple[Float[Tensor, "..."], State]:
        """Return the outputs and the next state.

        Args:
            input: [T, B, I], or [B, T, I] if `batch_first`; or [T, I] of no batch.
            state: [1, B, S], or its halves as a pair (h, c), which is then what comes back; none is zeros.
            is_first: [T, B] (or [B, T], or [T]): the steps before which the state is zeroed, as an episode starts;
                bools, or numbers that are not 0. None zeroes nothing.

        Raises:
            MerlinError: A shape does not fit, or something is no tensor, as a `PackedSequence` is none.
        """
        _check_types(input, state, is_first)
        is_batch, swaps = input.ndim == 3, self.batch_first and input.ndim == 3

        def arrange(x: Tensor) -> Tensor:
            return x.transpose(0, 1) if swaps else x if is_batch else x.unsqueeze(1)

        x = arrange(input)
        first = None if is_first is None else arrange(is_first) != 0
        packed = torch.cat(state, -1) if isinstance(state, tuple) else state
        is_flat = not is_batch and (packed is None or packed.ndim == 2)  # [1, S], as an LSTM's state of no batch
        if packed is None:
            packed = self.initial_state(x.shape[1])
        elif is_flat:
            packed = packed.unsqueeze(1)
        self._check(x, packed, first)
        steps: Any = self._steps
        is_traced = torch.jit.is_tracing() or torch.compiler.is_exporting()  # pyright: ignore[reportPrivateImportUsage]
        if len(x) > 1 and is_traced:
            raise MerlinError(
                f"Of a MemoryLSTM a single step can be traced or exported, but the input has {len(x)}: give it one."
            )
        if len(x) > 1 and torch.compiler.is_compiling():
            steps = torch.compiler.disable(steps)  # a window is written in place, and is as large as what is in memory
        outputs, after = steps(x, packed, first)
        if not is_batch:
            outputs, after = outputs.squeeze(1), after.squeeze(1) if is_flat else after
        outputs = outputs.transpose(0, 1) if swaps else outputs
        if isinstance(state, tuple):
            h, c = after.chunk(2, -1)
            return outputs, (h, c)
        return outputs, after

    def _steps(
        self, x: Float[Tensor, "T B I"], packed: Float[Tensor, "1 B S"], is_first: Tensor | None
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "1 B S"]]:
        (h, c, r), before = self._unpack(packed)
        words, seen = self.word(x), []
        has_window = len(x) > 1 and not is_transformed()  # `torch.func` knows nothing of windows
        memory = self.memory.begin_window(before, len(x)) if has_window else before
        # One answer from the device for the whole window, and no resets where nothing starts. A single step asks for
        # none: traced, it must reset whatever comes.
        starts = [True] if is_first is None or len(x) == 1 else is_first.any(1).tolist()
        for t in range(len(x)):
            if is_first is not None and starts[t]:
                h, c, r, memory = (reset_state(y, is_first[t]) for y in (h, c, r, memory))
            h, c = self.lstm(torch.cat([x[t], r], -1), (h, c))
            read, weights = self.memory.read(memory, *self.reader(h))
            r = read.flatten(1)
            memory, _ = self.memory.write(memory, words[t], weights.detach())
            seen.append(torch.cat([h, r], -1))
        is_window = isinstance(memory, WindowState)
        after = self.memory.end_window(memory) if is_window else map_state(Tensor.detach, memory)
        return self.output(torch.stack(seen)), self._pack(h, c, r, after).unsqueeze(0)

    def _pack(self, h: Tensor, c: Tensor, r: Tensor, memory: MemoryState) -> Float[Tensor, "B S"]:
        parts = [h, c, r, *(y.flatten(1) for y in memory[:4]), memory.num_written.unsqueeze(1)]
        parts.append(h.new_zeros(h.shape[0], self._sizes[-1]))
        dtype = torch.promote_types(h.dtype, torch.float32)
        return torch.cat([y.to(dtype) for y in parts], -1)

    def _unpack(self, packed: Float[Tensor, "1 B S"]) -> tuple[list[Tensor], MemoryState]:
        parts = packed[0].split_with_sizes(self._sizes, -1)
        dtype = self.output.weight.dtype
        h, c, r = (y.to(dtype) for y in parts[:3])
        memory = parts[3].detach().to(dtype).unflatten(1, (-1, self.memory.slot_size))
        usage, write_weights, retroactive_weights = (y.detach() for y in parts[4:7])
        state = MemoryState(
            memory, usage, write_weights.to(dtype), retroactive_weights.to(dtype), parts[7][:, 0].detach().long()
        )
        return [h, c, r], state

    def _check(self, x: Tensor, packed: Tensor, is_first: Tensor | None) -> None:
        wanted = (1, x.shape[1] if x.ndim == 3 else 0, self.state_size)
        axes, must = "[B, T" if self.batch_first else "[T, B", None
        if x.ndim != 3 or x.shape[2] != self.input_size or not (len(x) and x.shape[1]):
            must, came = f"the input must be {axes}, {self.input_size}] of at least one step", self._order(x)
        elif tuple(packed.shape) != wanted:
            must, came = f"the state must be {list(wanted)}, or two halves of it", list(packed.shape)
        elif is_first is not None and is_first.shape != x.shape[:2]:
            must, came = f"is_first must be {axes}], which is {self._order(x)[:2]}", self._order(is_first)
        if must is not None:
            raise MerlinError(f"Of a MemoryLSTM {must}, but it is {came}: correct what is passed.")

    def _order(self, x: Tensor) -> list[int]:
        """Return the shape as the caller knows it."""
        return list(x.transpose(0, 1).shape if self.batch_first and x.ndim > 1 else x.shape)


def _check_types(input: Any, state: Any, is_first: Any) -> None:
    halves = () if state is None else state if isinstance(state, tuple) else (state,)
    given = [("input", input), *(("state", half) for half in halves), ("is_first", is_first)]
    for name, x in given:
        if not isinstance(x, Tensor) and not (name == "is_first" and x is None):
            raise MerlinError(
                f"Of a MemoryLSTM {name} must be a tensor, but it is a {type(x).__name__}: pad a packed sequence, and "
                "give a state as one tensor or as a pair of them."
            )
