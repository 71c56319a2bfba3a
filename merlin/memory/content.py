"""Content-addressed memory with least-used writes and a retroactive half, usable on its own.

Nothing here knows of agents, rewards or episodes. State is a value: functions take a `MemoryState` and return another.
One step of an agent that reads and then writes (Wayne et al. 2018, arXiv:1803.10760, Algorithm 1):

    state = reset(state, is_first)                                  zero the rows of the batch whose episode begins
    keys, strengths = reader(hidden)                                K keys
    words, weights = read(state.memory, keys, strengths, written(state))
    state = write(state, latent, weights, retroactive_discount)     one slot, plus the decayed trace of earlier ones

A slot holds `[word, trace]`: the word as written, and the discounted sum of the words that were written after it.

Axes: B batch, K read keys, N slots, W width of a slot, Z width of what is written (W = 2Z with the retroactive half).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from merlin.errors import MerlinError
from merlin.precision import as_type, is_transformed

EPSILON = 1e-6


class MemoryState(NamedTuple):
    """The memory and what the next write must know.

    `write_weights` are those of the last write; `num_written` counts writes since the reset and may exceed N.
    """

    memory: Float[Tensor, "B N W"]
    usage: Float[Tensor, "B N"]
    write_weights: Float[Tensor, "B N"]
    retroactive_weights: Float[Tensor, "B N"]
    num_written: Int[Tensor, "B"]


class Read(NamedTuple):
    """What came back for each key, and how much of it from which slot."""

    words: Float[Tensor, "B K W"]
    weights: Float[Tensor, "B K N"]


def initial_state(
    batch_size: int,
    memory_size: int,
    word_size: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> MemoryState:
    """Return an empty memory of `memory_size` slots, each `word_size` wide.

    Args:
        dtype: Of all but usage, which is counted in float32 at least.

    Raises:
        MerlinError: A size is below 1, or the batch's below 0.
    """
    _check(
        batch_size >= 0 and memory_size > 0 and word_size > 0,
        "A memory has at least one slot, at least one number wide, for a batch of any size",
        f"batch_size is {batch_size}, memory_size {memory_size} and word_size {word_size}",
    )
    slots = torch.zeros(batch_size, memory_size, device=device, dtype=dtype)
    return MemoryState(
        memory=torch.zeros(batch_size, memory_size, word_size, device=device, dtype=dtype),
        usage=slots.to(torch.promote_types(dtype, torch.float32)),
        write_weights=slots,
        retroactive_weights=slots,
        num_written=torch.zeros(batch_size, device=device, dtype=torch.int64),
    )


def reset(state: MemoryState, is_first: Shaped[Tensor, "B"]) -> MemoryState:
    """Return the state with the batch rows that start an episode emptied, and no other touched.

    Args:
        is_first: Bools, or numbers that are not 0.

    Raises:
        MerlinError: There is not one flag for each row of the batch.
    """
    _check_shape("is_first", is_first, (len(state.memory),))
    is_first = is_first if is_first.dtype == torch.bool else is_first != 0
    return MemoryState(*(x.masked_fill(is_first.view(-1, *[1] * (x.ndim - 1)), 0) for x in state))


def written(state: MemoryState) -> Bool[Tensor, "B N"]:
    """Return which slots have been written since the reset. Slots are filled in order before any is used again."""
    slots = torch.arange(state.usage.shape[1], device=state.usage.device)
    return slots < state.num_written.unsqueeze(1)


def unit(x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch W"]:
    """Return x / |x|, and zero with a finite gradient at zero: the epsilon, 1e-6, lies inside the root.

    So what is about 1e-3 long or less counts as shorter than 1, and is similar to little.
    """
    wide = as_type(x, torch.promote_types(x.dtype, torch.float32))
    return as_type(wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON), x.dtype)


def square_lengths(x: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch"]:
    """Return |x|², in float32 at least: in float16 it would be infinite from a length of 256 on."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.requires_grad or is_transformed():  # the second derivative of a norm is NaN at an empty slot
        return as_type(x, dtype).square().sum(-1)
    return torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square()  # which makes no copy of a memory


def read(
    memory: Float[Tensor, "B N W"],
    keys: Float[Tensor, "B K W"],
    strengths: Float[Tensor, "B K"],
    readable: Bool[Tensor, "B N"] | None = None,
    top_k: int | None = None,
) -> Read:
    """Return, for each key, the slots most similar to it.

        similarity[k, n] = cos(keys[k], memory[n])
        weights[k, :]    = softmax(strengths[k] · similarity[k, :])
        words[k]         = Σₙ weights[k, n] · memory[n]

    Content-based addressing of Graves et al. 2016 (DNC), as used by MERLIN, Wayne et al. 2018, arXiv:1803.10760.
    In float16 a slot must be shorter than 65,504.

    Args:
        strengths: Sharpness, at least 0. At 0 all slots weigh the same; as it grows, the nearest slot wins.
        readable: Slots that may be read; the others weigh exactly 0. Where none may, words and weights are 0.
        top_k: Read only the `top_k` most similar slots of each key, at least 1; None reads all.

    Raises:
        MerlinError: Shapes do not fit those of the memory.
    """
    _check_reads(memory, keys, strengths, readable, top_k)
    keys, strengths = as_type(keys, memory.dtype), as_type(strengths, memory.dtype)
    # The length of a slot scales its dot products, which is cheaper than a normalised copy of the whole memory.
    inverse_lengths = torch.rsqrt(square_lengths(memory) + EPSILON)
    similarity = unit(keys) @ memory.mT * as_type(inverse_lengths, memory.dtype).unsqueeze(1)
    readable = None if readable is None else readable.unsqueeze(1)
    weights = attend(strengths.unsqueeze(-1) * similarity, readable, top_k)
    return Read(as_type(weights @ memory, memory.dtype), as_type(weights, memory.dtype))  # if autocast chose another


def attend(
    logits: Float[Tensor, "B K N"], readable: Bool[Tensor, "B #K N"] | None = None, top_k: int | None = None
) -> Float[Tensor, "B K N"]:
    """Return the softmax over the slots that are readable and, for each key, among its `top_k` best. See `read`."""
    if readable is not None:
        unreadable = ~readable
        logits = logits.masked_fill(unreadable, torch.finfo(logits.dtype).min)
    if top_k is not None and top_k < logits.shape[2]:
        best, slots = logits.topk(top_k, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, slots, torch.softmax(best, dim=-1))
    else:
        weights = torch.softmax(logits, dim=-1)
    if readable is not None:
        weights = weights.masked_fill(unreadable, 0)  # a softmax over nothing is uniform
    return weights


def write(
    state: MemoryState,
    word: Float[Tensor, "B Z"],
    read_weights: Float[Tensor, "B K N"],
    retroactive_discount: float | None = None,
) -> MemoryState:
    """Return the memory with `word` in the next free slot, or in the least used one when all are taken.

        usage               += Σₖ read_weights[k]
        slot                 = num_written if num_written < N else argmin(usage), the last slot written excepted
        retroactive_weights  = g · retroactive_weights + (1 − g) · write_weights       (write_weights of the last write)
        write_weights        = onehot(slot)
        memory               = memory + write_weights ⊗ [word, 0] + retroactive_weights ⊗ [0, word]

    so that while no slot is used twice the trace of slot i is (1 − g) Σ_{t>i} g^(t−i−1) word_t.
    Wayne et al. 2018, arXiv:1803.10760, Eq 5 and Algorithm 1. Ours, where the paper is silent: a slot that is used
    again is erased first, with its trace, and its usage becomes one read more than the average slot's.

    Args:
        retroactive_discount: g, in [0, 1). None leaves the retroactive half out; a slot is then as wide as a word.

    Raises:
        MerlinError: Shapes do not fit those of the memory, or g is out of range.
    """
    return write_to(state, word, read_weights, retroactive_discount)[0]


def write_to(
    state: MemoryState,
    word: Float[Tensor, "B Z"],
    read_weights: Float[Tensor, "B K N"],
    retroactive_discount: float | None = None,
    slot: Int[Tensor, "B"] | None = None,
) -> tuple[MemoryState, Int[Tensor, "B"]]:
    """Return the memory after `write`, and the slot written: the one given, or the one that usage says."""
    batch_size, memory_size, slot_size = state.memory.shape
    _check_write(state, word, read_weights, retroactive_discount)
    word, read_weights = as_type(word, state.memory.dtype), as_type(read_weights, state.usage.dtype)
    state, slot = allocate(state, read_weights, retroactive_discount, slot)
    index = slot.view(-1, 1, 1).expand(-1, 1, slot_size)
    if retroactive_discount is None:
        row, memory = word, state.memory
    else:
        row, trace = F.pad(word, (0, slot_size - word.shape[1])), state.retroactive_weights
        halves = torch.stack([torch.zeros_like(trace), trace], dim=-1)
        memory = torch.addcmul(
            state.memory.view(batch_size, memory_size, 2, slot_size // 2), halves.unsqueeze(-1), word[:, None, None]
        ).view(batch_size, memory_size, slot_size)
    # in place where the memory is new; a slot may be of a batch that `torch.func.vmap` maps over, and the memory not
    scatter = Tensor.scatter if memory is state.memory or is_transformed() else Tensor.scatter_
    return state._replace(memory=scatter(memory, 1, index, row.unsqueeze(1))), slot


def allocate(
    state: MemoryState,
    read_weights: Float[Tensor, "B K N"],
    retroactive_discount: float | None = None,
    slot: Int[Tensor, "B"] | None = None,
) -> tuple[MemoryState, Int[Tensor, "B"]]:
    """Return the state after a write, all but the memory itself, and the slot written. The equations are `write`'s.

    Args:
        slot: Write here, as when experience is replayed, rather than where usage says.
    """
    memory_size = state.usage.shape[1]
    usage = state.usage + read_weights.sum(1)
    is_full = state.num_written >= memory_size
    if slot is None:
        least_used = usage.masked_fill(state.write_weights > 0, torch.inf).argmin(-1)
        slot = torch.where(is_full, least_used, state.num_written)
    index = slot.unsqueeze(1)
    write_weights = torch.zeros_like(state.write_weights).scatter(1, index, 1.0)
    renewed = usage.mean(-1, keepdim=True) + 1
    usage = torch.where((write_weights > 0) & is_full.unsqueeze(1), renewed, usage)
    retroactive_weights = state.retroactive_weights
    if retroactive_discount is not None:
        retroactive_weights = retroactive_weights.lerp(state.write_weights, 1 - retroactive_discount)
        retroactive_weights = retroactive_weights.scatter(1, index, 0.0)
    return MemoryState(state.memory, usage, write_weights, retroactive_weights, state.num_written + 1), slot


class Reader(nn.Module):
    """Turns a hidden state into K read keys and their strengths.

    Args:
        strength: What the strengths start near, above 0. At ln N a perfect match weighs as much as all else together.

    Raises:
        MerlinError: A size is below 1, or the strength not above 0.
    """

    def __init__(self, input_size: int, word_size: int, num_read_keys: int, strength: float = math.log(2)) -> None:
        super().__init__()
        _check(
            min(input_size, word_size, num_read_keys) > 0 and strength > 0,
            "A reader's sizes must be at least 1 and its strength above 0",
            f"input_size is {input_size}, word_size {word_size}, num_read_keys {num_read_keys}, strength {strength}",
        )
        self.input_size = input_size
        self.num_read_keys = num_read_keys
        self.word_size = word_size
        self.project = nn.Linear(input_size, num_read_keys * (word_size + 1))
        with torch.no_grad():
            self.project.bias[-num_read_keys:] += strength + math.log(-math.expm1(-strength))  # softplus undone

    def forward(self, hidden: Float[Tensor, "B H"]) -> tuple[Float[Tensor, "B K W"], Float[Tensor, "B K"]]:
        """Return keys and strengths = softplus(·), which are positive.

        Raises:
            MerlinError: The hidden state has another width than `input_size`.
        """
        if hidden.shape[-1] != self.input_size:
            _check_shape("hidden", hidden, ("B", self.input_size))
        sizes = [self.num_read_keys * self.word_size, self.num_read_keys]
        keys, strengths = self.project(hidden).split_with_sizes(sizes, dim=-1)
        return keys.unflatten(-1, (self.num_read_keys, self.word_size)), F.softplus(strengths)


def _check_reads(memory: Tensor, keys: Tensor, strengths: Tensor, readable: Tensor | None, top_k: int | None) -> None:
    _check(memory.ndim == 3, "A memory has the axes [B, N, W]", f"it is {list(memory.shape)}")
    batch_size, memory_size, slot_size = memory.shape
    if keys.ndim != 3 or keys.shape[0] != batch_size or keys.shape[2] != slot_size:
        _check_shape("keys", keys, (batch_size, "K", slot_size))
    _check_shape("strengths", strengths, keys.shape[:2])
    if readable is not None:
        _check_shape("readable", readable, (batch_size, memory_size))
    _check(top_k is None or top_k > 0, "top_k must be at least 1, or None", f"it is {top_k}")


def _check_write(state: MemoryState, word: Tensor, read_weights: Tensor, discount: float | None) -> None:
    batch_size, memory_size, slot_size = state.memory.shape
    if discount is None:
        width = slot_size
    else:
        _check(0 <= discount < 1, "retroactive_discount must be in [0, 1), or None", f"it is {discount}")
        even = "A slot must be twice as wide as a word, for the trace (without, pass retroactive_discount=None)"
        _check(slot_size % 2 == 0, even, f"its width is {slot_size}")
        width = slot_size // 2
    _check_shape("word", word, (batch_size, width))
    if read_weights.ndim != 3 or read_weights.shape[0] != batch_size or read_weights.shape[2] != memory_size:
        _check_shape("read_weights", read_weights, (batch_size, "K", memory_size))


def _check_shape(name: str, x: Tensor, wanted: tuple) -> None:
    """Raise a MerlinError unless the tensor has this shape, a letter standing for any number."""
    if tuple(x.shape) != tuple(wanted):
        fits = x.ndim == len(wanted) and all(isinstance(w, str) or w == n for w, n in zip(wanted, x.shape, strict=True))
        shapes = (f"[{', '.join(map(str, shape))}]" for shape in (wanted, x.shape))
        _check(fits, f"{name} must have the shape {next(shapes)}", f"it has {next(shapes)}")


def _check(holds: bool, must: str, came: str) -> None:
    if not holds:
        raise MerlinError(f"{must}, but {came}: correct what is passed to the memory.")
