"""The memory of `merlin.memory` over a window of steps, as a linear operator that is never rewritten.

Writing changes one slot and adds a decayed word to the traces of all others. Done slot by slot, a window of T steps
makes T memories of N · W numbers, and automatic differentiation keeps them all. But while slots are only added to,

    slot n at step t  =  [word_n, trace_n + c_n · s_t]           s_t = Σ_{τ<t} g^τ word_τ,  the window's words so far

where c_n, how much of the window's first word slot n takes, is known when the window begins: all slots change along
one direction. So the memory at step t is the memory that the window began with, which stays as it is, a vector
s_t, and the words that were written in the window, which are entries of their own, N and after. Slots that have been
written over, and those of earlier episodes, are entries that cannot be read. Nothing of N · W numbers is made or kept
at any step.

Axes: T time, B batch, K read keys, N slots, W width of a slot, Z width of what is written, E = N + t entries.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from merlin.memory import EPSILON, MemoryState, allocate, reset


class MemoryWindow:
    """The memory at each step of a window, by what was written so far. Reads and writes have no gradient of their own.

        for t in range(T):
            scores  = window.dots(keys, t)              keys · memoryᵀ
            words   = window.mix(weights, t)            weights · memory
            window.append(t, latent)

    `dots` and `mix` are each other's adjoint, so that a backward pass needs nothing else: going back from the last
    step, it calls `undo(t)` before it asks for those of step t.

    Args:
        state: The memory that the window begins with.
        is_first: Rows that start an episode; the memory is emptied before they are seen.
        slots: Where each step writes.
        retroactive_discount: g of the retroactive half; None if there is none.
        mask_unwritten: Keep slots that were never written from being read.
    """

    def __init__(
        self,
        state: MemoryState,
        is_first: Bool[Tensor, "T B"],
        slots: Int[Tensor, "T B"],
        retroactive_discount: float | None,
        mask_unwritten: bool = True,
    ) -> None:
        length = is_first.shape[0]
        self.state, self.is_first, self.slots, self.discount = state, is_first, slots, retroactive_discount
        batch_size, self.memory_size, word_size = state.memory.shape
        self.half = word_size if retroactive_discount is None else word_size // 2
        new = state.memory.new_empty
        self.entries = new(batch_size, self.memory_size + length, word_size)
        self.entries[:, : self.memory_size] = state.memory
        self.inverse_norms: list[Tensor] = []
        self._square_norms = state.memory.square().sum(-1)
        if retroactive_discount is not None:
            g = retroactive_discount
            self.take = g * state.retroactive_weights + (1 - g) * state.write_weights
            self.sums = new(length + 1, batch_size, self.half)
            self.sums[0] = 0
            age = torch.arange(length, device=is_first.device)
            age = (age.unsqueeze(0) - age.unsqueeze(1) - 1).clamp(min=0)
            self.decay = ((1 - g) * g**age).to(state.memory.dtype)  # of the entry written at s for the word of t > s
        self.readable, self.kept = _follow(state, is_first, slots, mask_unwritten)

    def dots(self, keys: Float[Tensor, "B K W"], t: int) -> Float[Tensor, "B K E"]:
        """Return keys · memoryᵀ at step t."""
        n = self.memory_size
        scores = torch.bmm(keys, self.entries[:, : n + t].mT)
        if self.discount is not None and t > 0:
            share = torch.bmm(keys[..., self.half :], self.sums[t].unsqueeze(-1))
            scores[..., :n].addcmul_(share, self.take.unsqueeze(1))
        return scores if self.kept is None else self._of_this_episode(scores, t)

    def mix(self, weights: Float[Tensor, "B K E"], t: int) -> Float[Tensor, "B K W"]:
        """Return weights · memory at step t."""
        n = self.memory_size
        if self.kept is not None:
            weights = self._of_this_episode(weights.clone(), t)
        words = torch.bmm(weights, self.entries[:, : n + t])
        if self.discount is not None and t > 0:
            share = torch.bmm(weights[..., :n], self.take.unsqueeze(-1))
            words[..., self.half :].addcmul_(share, self.sums[t].unsqueeze(1))
        return words

    def prepare(self, t: int) -> None:
        """Find the entries' norms at step t, before anything is read there."""
        n = self.memory_size
        squares = self._square_norms
        if self.discount is not None and t > 0:
            sums = self.sums[t]
            across = torch.bmm(self.entries[:, :n, self.half :], sums.unsqueeze(-1)).squeeze(-1)
            across = torch.addcmul(2 * across, self.take, sums.square().sum(-1, keepdim=True))
            squares = torch.addcmul(squares, self.take, across).clamp_(min=0)
        inside = torch.linalg.vector_norm(self.entries[:, n : n + t], dim=-1).square()
        inverse_norms = (torch.cat([squares, inside], -1) if t else squares).add(EPSILON).rsqrt_()
        if self.kept is not None:
            inverse_norms = self._of_this_episode(inverse_norms.unsqueeze(1), t).squeeze(1)
        self.inverse_norms.append(inverse_norms)

    def append(self, t: int, word: Float[Tensor, "B Z"]) -> None:
        """Write what step t is remembered by."""
        n = self.memory_size
        self.entries[:, n + t, : self.half] = word
        if self.discount is not None:
            self.entries[:, n + t, self.half :] = 0
            if t > 0:
                self._traces(t).addcmul_(self.decay[:t, t, None], word.unsqueeze(1))
            torch.add(self.sums[t], word, alpha=self.discount**t, out=self.sums[t + 1])

    def undo(self, t: int) -> None:
        """Take what step t wrote out of the traces of others, so that the entries are as before it."""
        if self.discount is not None and t > 0:
            word = self.entries[:, self.memory_size + t, : self.half]
            self._traces(t).addcmul_(self.decay[:t, t, None], word.unsqueeze(1), value=-1)

    def final_state(self, read_weights: list[Tensor]) -> MemoryState:
        """Return the memory after the window, in which the writing reader had `read_weights`, [B, K, E] at each step."""
        n, length = self.memory_size, len(read_weights)
        memory = self.entries[:, :n].clone()
        if self.discount is not None:
            memory[..., self.half :].addcmul_(self.take.unsqueeze(-1), self.sums[length].unsqueeze(1))
        episode = self.is_first.cumsum(0)
        memory.masked_fill_((episode[-1] > 0)[:, None, None], 0)
        state = self.state
        for t in range(length):
            state = MemoryState(memory, *reset(state, self.is_first[t])[1:])
            weights = read_weights[t]
            by_slot = weights[..., :n].clone()
            if t > 0:
                by_slot.scatter_add_(2, self.slots[:t].T.unsqueeze(1).expand(-1, weights.shape[1], -1), weights[..., n:])
            state, _ = allocate(state, by_slot, self.discount, self.slots[t])
            index = self.slots[t].view(-1, 1, 1).expand(-1, 1, memory.shape[2])
            here = (episode[t] == episode[-1]).view(-1, 1, 1)
            row = torch.where(here, self.entries[:, n + t, None], memory.gather(1, index))
            memory.scatter_(1, index, row)
        return state._replace(memory=memory)

    def _traces(self, t: int) -> Float[Tensor, "B t Z"]:
        return self.entries[:, self.memory_size : self.memory_size + t, self.half :]

    def _of_this_episode(self, x: Float[Tensor, "B K E"], t: int) -> Float[Tensor, "B K E"]:
        """Zero what slots of earlier episodes have in x, in place: they are empty, and can be read."""
        x[..., : self.memory_size] *= self.kept[t, :, None, None]
        return x


def _follow(
    state: MemoryState, is_first: Bool[Tensor, "T B"], slots: Int[Tensor, "T B"], mask_unwritten: bool
) -> tuple[list[Tensor], Float[Tensor, "T B"] | None]:
    """Return which entries can be read at each step, and, if empty ones can, where the first slots still hold."""
    length, batch_size = slots.shape
    present = torch.ones_like(state.usage, dtype=torch.bool)  # not written over in this episode
    alive = is_first.new_zeros(batch_size, length)
    positions = torch.arange(present.shape[1], device=slots.device)
    num_written = state.num_written
    readable = []
    for t in range(length):
        first = is_first[t].unsqueeze(1)
        present = present | first
        alive = alive & ~first
        num_written = num_written.masked_fill(is_first[t], 0)
        held = present & (positions < num_written.unsqueeze(1)) if mask_unwritten else present
        readable.append(torch.cat([held, alive[:, :t]], -1))
        slot = slots[t].unsqueeze(1)
        present = present.scatter(1, slot, False)
        alive = alive & (slots.T != slot)
        alive[:, t] = True
        num_written = num_written + 1
    kept = None if mask_unwritten else (is_first.cumsum(0) == 0).to(state.memory.dtype)
    return readable, kept
