"""The memory of the differentiable neural computer: allocation, content and temporal links (Graves et al. 2016).

Nothing here knows of agents. State is a value, and a step, which writes and then reads, is on one page: `step`.

Graves et al. 2016, "Hybrid computing using a neural network with dynamic external memory", Nature 538, Methods.

Axes: B batch, K read keys, N slots, W width of a slot.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from merlin.memory import content
from merlin.memory.content import Read
from merlin.memory.interface import Memory, MemoryConfig


class DNCState(NamedTuple):
    """The memory, and what the next step must know; all zeros when empty.

    `links[i, j]` is how much slot i was written right after slot j; `precedence` how much each was written last.
    """

    memory: Float[Tensor, "B N W"]
    usage: Float[Tensor, "B N"]
    precedence: Float[Tensor, "B N"]
    links: Float[Tensor, "B N N"]
    write_weights: Float[Tensor, "B N"]
    read_weights: Float[Tensor, "B K N"]


class Interface(NamedTuple):
    """What a step asks of the memory: gates and modes in [0, 1], strengths of at least 1 as `interface_of` gives them.

    `read_modes` are the weights of going backward, by content and forward, which sum to 1.
    """

    read_keys: Float[Tensor, "B K W"]
    read_strengths: Float[Tensor, "B K"]
    write_key: Float[Tensor, "B W"]
    write_strength: Float[Tensor, "B"]
    erase: Float[Tensor, "B W"]
    word: Float[Tensor, "B W"]
    free_gates: Float[Tensor, "B K"]
    allocation_gate: Float[Tensor, "B"]
    write_gate: Float[Tensor, "B"]
    read_modes: Float[Tensor, "B K 3"]


def interface_size(word_size: int, num_read_keys: int) -> int:
    """Return how many numbers `interface_of` takes: W K + 3 W + 5 K + 3."""
    return word_size * num_read_keys + 3 * word_size + 5 * num_read_keys + 3


def interface_of(x: Float[Tensor, "B I"], word_size: int, num_read_keys: int) -> Interface:
    """Return the interface that unbounded numbers stand for."""
    w, k = word_size, num_read_keys
    parts = x.split_with_sizes([k * w, k, w, 1, w, w, k, 1, 1, 3 * k], dim=-1)
    keys, strengths, write_key, write_strength, erase, word, free, allocation, write, modes = parts
    return Interface(
        read_keys=keys.unflatten(-1, (k, w)),
        read_strengths=1 + F.softplus(strengths),
        write_key=write_key,
        write_strength=1 + F.softplus(write_strength).squeeze(-1),
        erase=erase.sigmoid(),
        word=word,
        free_gates=free.sigmoid(),
        allocation_gate=allocation.sigmoid().squeeze(-1),
        write_gate=write.sigmoid().squeeze(-1),
        read_modes=modes.unflatten(-1, (k, 3)).softmax(-1),
    )


def initial_state(
    batch_size: int,
    memory_size: int,
    word_size: int,
    num_read_keys: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> DNCState:
    """Return an empty memory."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch_size, *shape, device=device, dtype=dtype)

    n = memory_size
    return DNCState(zeros(n, word_size), zeros(n), zeros(n), zeros(n, n), zeros(n), zeros(num_read_keys, n))


def allocation(usage: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Return where a word goes that goes where there is room: with slots in order of usage, the freest first,

    a[i] = (1 − usage[i]) · Π usage[j] over the slots j before i
    """
    ordered, order = usage.sort(-1)
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1]], -1).cumprod(-1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ordered) * before)


def write(state: DNCState, asked: Interface) -> DNCState:
    """Return the state after the write.

    usage         = (usage + write_weights − usage ∘ write_weights) ∘ Πₖ (1 − free_gates[k] · read_weights[k])
    write_weights = write_gate · (allocation_gate · a + (1 − allocation_gate) · content(M, write_key, write_strength))
    M             = M ∘ (1 − write_weights ⊗ erase) + write_weights ⊗ word
    links[i, j]   = (1 − write_weights[i] − write_weights[j]) · links[i, j] + write_weights[i] · precedence[j],  i ≠ j
    precedence    = (1 − Σ write_weights) · precedence + write_weights

    On the right, weights of reads and of the write are those of the step before, but for the last three lines.
    """
    kept = (1 - asked.free_gates.unsqueeze(-1) * state.read_weights).prod(1)
    usage = (state.usage + state.write_weights - state.usage * state.write_weights) * kept
    key, strength = asked.write_key.unsqueeze(1), asked.write_strength.unsqueeze(1)
    alike = content.read(state.memory, key, strength).weights.squeeze(1)
    weights = asked.write_gate.unsqueeze(1) * alike.lerp(allocation(usage), asked.allocation_gate.unsqueeze(1))
    column = weights.unsqueeze(2)
    memory = state.memory * (1 - column * asked.erase.unsqueeze(1)) + column * asked.word.unsqueeze(1)
    links = (1 - column - weights.unsqueeze(1)) * state.links + column * state.precedence.unsqueeze(1)
    links = links * (1 - torch.eye(links.shape[1], device=links.device, dtype=links.dtype))
    precedence = (1 - weights.sum(1, keepdim=True)) * state.precedence + weights
    return DNCState(memory, usage, precedence, links, weights, state.read_weights)


def read(state: DNCState, asked: Interface) -> tuple[Read, DNCState]:
    """Return what the reads find, and the state that knows where they were.

    weights[k] = modes[k] · [linksᵀ · read_weights[k],  content(M, read_keys[k], read_strengths[k]),
                             links · read_weights[k]]
    words[k]   = Σₙ weights[k, n] · M[n]
    """
    alike = content.read(state.memory, asked.read_keys, asked.read_strengths).weights
    backward, forward = state.read_weights @ state.links, state.read_weights @ state.links.mT
    weights = (asked.read_modes.unsqueeze(2) * torch.stack([backward, alike, forward], -1)).sum(-1)
    return Read(weights @ state.memory, weights), state._replace(read_weights=weights)


def step(state: DNCState, asked: Interface) -> tuple[Read, DNCState]:
    """Return what a step reads after it wrote, and the state after it."""
    return read(write(state, asked), asked)


class DNCMemory(Memory):
    """This memory by the package's interface: a plain read is by content, a plain write goes where there is room.

    An agent that asks for more, gates and links, calls `step`.

    Args:
        num_read_keys: K.
    """

    def __init__(self, word_size: int, config: MemoryConfig, num_read_keys: int) -> None:
        super().__init__(word_size, config)
        self.num_read_keys = num_read_keys

    def initial_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> DNCState:
        sizes = self.config.memory_size, self.word_size, self.num_read_keys
        return initial_state(batch_size, *sizes, device=device, dtype=dtype)

    def read(self, state: DNCState, keys: Float[Tensor, "B K W"], strengths: Float[Tensor, "B K"]) -> Read:
        return content.read(state.memory, keys, strengths)

    def write(
        self,
        state: DNCState,
        word: Float[Tensor, "B Z"],
        read_weights: Float[Tensor, "B K _"],
        slot: Int[Tensor, "B"] | None = None,
    ) -> tuple[DNCState, None]:
        ones, zeros = torch.ones_like(word[:, 0]), torch.zeros_like(state.read_weights[..., 0])
        plain = Interface(
            read_keys=word.new_zeros(*zeros.shape, self.word_size),
            read_strengths=zeros,
            write_key=word,
            write_strength=ones,
            erase=torch.ones_like(word),
            word=word,
            free_gates=zeros,
            allocation_gate=ones,
            write_gate=ones,
            read_modes=zeros.unsqueeze(-1).expand(-1, -1, 3),
        )
        return write(state, plain), None
