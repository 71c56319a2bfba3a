"""The memory of `merlin.memory` over a window of steps, as a linear operator whose N slots are never rewritten.

Writing changes one slot and adds a decayed word to the traces of all others. Done slot by slot, a window of T steps
makes T memories of N · W numbers, and automatic differentiation keeps them all. But while slots are only added to,

    slot n at step t  =  [word_n, trace_n + c_n · s_t]           s_t = Σ_{τ<t} g^τ word_τ,  the window's words so far

where c_n, how much of the window's first word slot n takes, is known when the window begins: all slots change along
one direction. So the memory at step t is the memory that the window began with, which stays as it is, a vector
s_t, and the words that were written in the window, which are entries of their own, N and after, with traces that grow
in place. Slots that have been written over, and those of earlier episodes, are entries that cannot be read: they weigh
0, so that a NaN in them would still spread. Nothing of N · W numbers is made or kept at any step. Where keys read few
of many entries, only finding them looks at all: reading them, and the way back, takes those few.

Slots are filled in order, and where those never written cannot be read the first H, as many as any row of the batch has
written when the window begins, are all that reads look at: their cost grows with what is remembered, not with N. What
remains of N is the usage of each slot at each step, and one copy of the memory for a window.

Axes: T time, B batch, K read keys, N slots, H of them held, W width of a slot, Z width of what is written, E = H + t
entries, C chosen.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from merlin.memory import EPSILON, MemoryState, Read, allocate, attend, reset, unit


class View(NamedTuple):
    """Which entries can be read at a step, and one over their norms. `kept` is 0 where the first N are empty by now."""

    readable: Bool[Tensor, "B E"]
    inverse_norms: Float[Tensor, "B E"]
    kept: Float[Tensor, "B 1 1"] | None


class MemoryWindow:
    """The memory at each step of a window, by what was written so far. Reads and writes have no gradient of their own.

        for t in range(T):
            window.enter(t, is_first[t])
            scores  = window.dots(keys, t)              keys · memoryᵀ
            words   = window.mix(weights, t)            weights · memory
            window.append(t, latent, weights)

    `dots` and `mix` are each other's adjoint, so that a backward pass needs nothing else: going back from the last
    step, it calls `undo(t)` before it asks for those of step t. A step may be entered again until it is written.
    Of both, and of `append`, `chosen` makes what each key has to do with C entries of its own all that is computed.

    Args:
        state: The memory that the window begins with.
        length: T, steps that may be written; one more may be entered.
        retroactive_discount: g of the retroactive half; None if there is none.
        mask_unwritten: Keep slots that were never written from being read.
    """

    def __init__(
        self, state: MemoryState, length: int, retroactive_discount: float | None, mask_unwritten: bool = True
    ) -> None:
        self.discount, self.mask_unwritten = retroactive_discount, mask_unwritten
        batch_size, self.memory_size, word_size = state.memory.shape
        self.half = word_size if retroactive_discount is None else word_size // 2
        new = state.memory.new_empty
        self.held = self.memory_size
        if mask_unwritten:
            self.held = int(state.num_written.max().clamp(1, self.memory_size))
        held = state.memory[:, : self.held]
        self.entries = new(batch_size, self.held + length, word_size)
        self.entries[:, : self.held] = held
        self.square_norms = held.square().sum(-1)
        if retroactive_discount is not None:
            g = retroactive_discount
            trace, last = (x[:, : self.held] for x in (state.retroactive_weights, state.write_weights))
            self.take = g * trace + (1 - g) * last
            self.sums = new(length + 1, batch_size, self.half)
            self.sums[0] = 0
            age = torch.arange(length, device=state.memory.device, dtype=state.memory.dtype)
            age = (age.unsqueeze(0) - age.unsqueeze(1) - 1).clamp(min=0)
            self.decay = (1 - g) * g**age  # of the entry written at s for the word of t > s
        self.views: list[View | None] = [None] * (length + 1)
        self.slots: list[Tensor] = []
        # Of the slots, all but what they hold; which of the first N entries were not written over in this episode;
        # which of the window's own are still slots of it; and which rows have seen an episode start.
        self.rest = state._replace(memory=new(batch_size, self.memory_size, 0))
        self.present = torch.ones_like(state.usage, dtype=torch.bool)
        self.alive = self.present.new_zeros(batch_size, length)
        self.emptied = self.present.new_zeros(batch_size)
        self._positions = torch.arange(self.held, device=state.memory.device)

    def enter(self, t: int, is_first: Bool[Tensor, "B"]) -> None:
        """Begin step t: forget where an episode starts, and find what can be read."""
        assert len(self.slots) == t, "a step is entered when the one before was written"
        rest, present, alive, emptied = self.rest, self.present, self.alive, self.emptied
        if is_first.device.type != "cpu" or is_first.any():
            rest, first = reset(rest, is_first), is_first.unsqueeze(1)
            present, alive, emptied = present | first, alive & ~first, emptied | is_first
        self._entered = rest, present, alive, emptied
        readable = present[:, : self.held]
        if self.mask_unwritten:
            readable = readable & (self._positions < rest.num_written.unsqueeze(1))
        kept = None if self.mask_unwritten else (~emptied).to(self.entries.dtype).view(-1, 1, 1)
        inverse_norms = self._inverse_norms(t)
        if kept is not None:
            inverse_norms[:, : self.held] *= kept[:, 0]
        self.views[t] = View(torch.cat([readable, alive[:, :t]], -1), inverse_norms, kept)

    def dots(
        self, keys: Float[Tensor, "B K W"], t: int, chosen: Int[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K E"] | Float[Tensor, "B K C"]:
        """Return keys · memoryᵀ at step t."""
        if chosen is not None:
            return (self._rows(t, chosen) @ keys.unsqueeze(-1)).squeeze(-1)
        n = self.held
        scores = torch.bmm(keys, self.entries[:, : n + t].mT)
        if self.discount is not None and t > 0:
            share = torch.bmm(keys[..., self.half :], self.sums[t].unsqueeze(-1))
            scores[..., :n].addcmul_(share, self.take.unsqueeze(1))
        return self._of_this_episode(scores, t)

    def mix(
        self, weights: Float[Tensor, "B K E"], t: int, chosen: Int[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K W"]:
        """Return weights · memory at step t."""
        if chosen is not None:
            return (weights.unsqueeze(-2) @ self._rows(t, chosen)).squeeze(-2)
        n = self.held
        if not self.mask_unwritten:
            weights = self._of_this_episode(weights.clone(), t)
        words = torch.bmm(weights, self.entries[:, : n + t])
        if self.discount is not None and t > 0:
            share = torch.bmm(weights[..., :n], self.take.unsqueeze(-1))
            words[..., self.half :].addcmul_(share, self.sums[t].unsqueeze(1))
        return words

    def read(
        self, keys: Float[Tensor, "B K W"], strengths: Float[Tensor, "B K"], t: int, top_k: int | None = None
    ) -> Read:
        """Return what `merlin.memory.read` finds at step t, and the weights of the entries."""
        view = self.views[t]
        assert view is not None, "a step is entered before it is read"
        similarity = self.dots(unit(keys), t) * view.inverse_norms.unsqueeze(1)
        weights = attend(strengths.unsqueeze(-1) * similarity, view.readable.unsqueeze(1), top_k)
        return Read(self.mix(weights, t), weights)

    def append(
        self,
        t: int,
        word: Float[Tensor, "B Z"],
        read_weights: Float[Tensor, "B K E"],
        slot: Int[Tensor, "B"] | None = None,
        chosen: Int[Tensor, "B K C"] | None = None,
    ) -> Int[Tensor, "B"]:
        """Write what step t is remembered by, and return the slot that it went to.

        Args:
            read_weights: Those of the step's reads that count as usage.
            slot: Write here, as when experience is replayed, rather than where usage says.
        """
        n = self.held
        rest, present, alive, self.emptied = self._entered
        if chosen is None:
            weights = read_weights.sum(1, keepdim=True)
        else:
            weights = read_weights.new_zeros(len(read_weights), 1, n + t)
            weights.scatter_add_(2, chosen.flatten(1).unsqueeze(1), read_weights.flatten(1).unsqueeze(1))
        of_slots = F.pad(weights[..., :n], (0, self.memory_size - n))
        if t > 0:
            of_slots = of_slots.scatter_add(2, torch.stack(self.slots, -1).unsqueeze(1), weights[..., n:])
        self.rest, slot = allocate(rest, of_slots, self.discount, slot)
        index = slot.unsqueeze(1)
        self.present = present.scatter(1, index, False)
        self.alive = alive.clone()
        if t > 0:
            self.alive[:, :t] &= torch.stack(self.slots, -1) != index
        self.alive[:, t] = True
        self.slots.append(slot)

        self.entries[:, n + t, : self.half] = word
        if self.discount is not None:
            self.entries[:, n + t, self.half :] = 0
            if t > 0:
                self._traces(t).addcmul_(self.decay[:t, t, None], word.unsqueeze(1))
            torch.add(self.sums[t], word, alpha=self.discount**t, out=self.sums[t + 1])
        return slot

    def undo(self, t: int) -> None:
        """Take what step t wrote out of the traces of others, so that the entries are as before it."""
        if self.discount is not None and t > 0:
            word = self.entries[:, self.held + t, : self.half]
            self._traces(t).addcmul_(self.decay[:t, t, None], word.unsqueeze(1), value=-1)

    def state(self) -> MemoryState:
        """Return the memory after the steps written so far."""
        n, t = self.held, len(self.slots)
        memory = self.entries.new_zeros(len(self.entries), self.memory_size, self.entries.shape[2])
        held = memory[:, :n].copy_(self.entries[:, :n])
        if self.discount is not None:
            held[..., self.half :].addcmul_(self.take.unsqueeze(-1), self.sums[t].unsqueeze(1))
        held.masked_fill_(self.emptied[:, None, None], 0)
        for s, slot in enumerate(self.slots):
            index = slot.view(-1, 1, 1).expand(-1, 1, memory.shape[2])
            row = torch.where(self.alive[:, s, None, None], self.entries[:, n + s, None], memory.gather(1, index))
            memory.scatter_(1, index, row)
        return self.rest._replace(memory=memory)

    def _inverse_norms(self, t: int) -> Float[Tensor, "B E"]:
        n, squares = self.held, self.square_norms
        if self.discount is not None and t > 0:
            sums = self.sums[t]
            across = torch.bmm(self.entries[:, :n, self.half :], sums.unsqueeze(-1)).squeeze(-1)
            across = torch.addcmul(2 * across, self.take, sums.square().sum(-1, keepdim=True))
            squares = torch.addcmul(squares, self.take, across).clamp_(min=0)
        if t > 0:
            inside = torch.linalg.vector_norm(self.entries[:, n : n + t], dim=-1).square()
            squares = torch.cat([squares, inside], -1)
        return squares.add(EPSILON).rsqrt_()

    def _rows(self, t: int, chosen: Int[Tensor, "B K C"]) -> Float[Tensor, "B K C W"]:
        """Return what the chosen entries hold at step t."""
        batch_size, size, word_size = self.entries.shape
        first = size * torch.arange(batch_size, device=chosen.device).view(-1, 1, 1)
        rows = self.entries.view(-1, word_size).index_select(0, (chosen + first).flatten()).view(*chosen.shape, -1)
        is_own = chosen >= self.held
        if self.discount is not None and t > 0:
            slots = chosen.clamp(max=self.held - 1).flatten(1)
            take = self.take.gather(1, slots).view(chosen.shape).masked_fill(is_own, 0)
            rows[..., self.half :].addcmul_(take.unsqueeze(-1), self.sums[t, :, None, None])
        view = self.views[t]
        if view is not None and view.kept is not None:
            rows *= torch.where(is_own, 1.0, view.kept).unsqueeze(-1)
        return rows

    def _traces(self, t: int) -> Float[Tensor, "B t Z"]:
        return self.entries[:, self.held : self.held + t, self.half :]

    def _of_this_episode(self, x: Float[Tensor, "B K E"], t: int) -> Float[Tensor, "B K E"]:
        """Zero in place what the first entries have in x where they are empty by now, and can be read all the same."""
        view = self.views[t]
        if view is not None and view.kept is not None:
            x[..., : self.held] *= view.kept
        return x


class DifferentiableWindow(MemoryWindow):
    """A window whose words are known when it begins, and have gradients: what is read teaches what was written.

    What does not depend on who reads is computed for all steps together: the words' sums s_t and the norms of all
    entries at all steps. A trace is never made: with D[τ, t] the weight of word t in the trace of the entry of step τ,

        keys · traceᵀ  =  (keys · wordsᵀ) Dᵀ          weights · trace  =  (weights D) · words
        |trace_τ(t)|²  =  Σ_{σ<t} (2 D[τ, σ] Σ_{ρ<σ} D[τ, ρ] word_ρ · word_σ  +  D[τ, σ]² |word_σ|²)

    so that automatic differentiation keeps T · (T + N) numbers per environment, and none of N · W.

    Args:
        words: Of all steps of the window. `append` is given the same ones.
    """

    def __init__(
        self,
        state: MemoryState,
        words: Float[Tensor, "T B Z"],
        retroactive_discount: float | None,
        mask_unwritten: bool = True,
    ) -> None:
        super().__init__(state, len(words), retroactive_discount, mask_unwritten)
        self.initial, self.words = state.memory[:, : self.held], words.movedim(0, 1)
        squares = self.square_norms.unsqueeze(-1).expand(-1, -1, len(words) + 1)
        norms = self.words.square().sum(-1)
        own = norms.unsqueeze(-1).expand(-1, -1, len(words) + 1)
        if retroactive_discount is not None:
            self.decay = self.decay.triu(1)
            powers = retroactive_discount ** torch.arange(len(words), device=words.device, dtype=words.dtype)
            sums = (self.words * powers.unsqueeze(-1)).cumsum(1)
            self.word_sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
            take = self.take.unsqueeze(-1)
            across = torch.bmm(self.initial[..., self.half :], self.word_sums.mT)
            squares = squares + take * (2 * across + take * self.word_sums.square().sum(-1).unsqueeze(1))
            alike = torch.bmm(self.words, self.words.mT).triu(1)
            grown = (2 * self.decay * (self.decay @ alike) + self.decay.square() * norms.unsqueeze(1)).cumsum(-1)
            own = own + torch.cat([torch.zeros_like(grown[..., :1]), grown], -1)
        self.entry_norms = torch.cat([squares.clamp(min=0), own], 1).add(EPSILON).rsqrt()

    def dots(self, keys: Float[Tensor, "B K W"], t: int) -> Float[Tensor, "B K E"]:
        """Return keys · memoryᵀ at step t."""
        scores = torch.bmm(keys, self.initial.mT)
        if t == 0:
            return self._of_this_episode(scores, t)
        words = self.words[:, :t].mT
        own = torch.bmm(keys[..., : self.half], words)
        if self.discount is not None:
            traced = keys[..., self.half :]
            scores = scores + traced @ self.word_sums[:, t].unsqueeze(-1) * self.take.unsqueeze(1)
            own = own + torch.bmm(traced, words) @ self.decay[:t, :t].mT
        return torch.cat([self._of_this_episode(scores, t), own], -1)

    def mix(self, weights: Float[Tensor, "B K E"], t: int) -> Float[Tensor, "B K W"]:
        """Return weights · memory at step t."""
        initial, own = weights.split([self.held, t], -1)
        if not self.mask_unwritten:
            initial = self._of_this_episode(initial, t)
        found = torch.bmm(initial, self.initial)
        if t == 0:
            return found
        added = torch.bmm(own, self.words[:, :t])
        if self.discount is not None:
            traces = torch.bmm(own @ self.decay[:t, :t], self.words[:, :t])
            traces = traces + initial @ self.take.unsqueeze(-1) * self.word_sums[:, t].unsqueeze(1)
            added = torch.cat([added, traces], -1)
        return found + added

    def _inverse_norms(self, t: int) -> Float[Tensor, "B E"]:
        return self.entry_norms[:, : self.held + t, t].clone()

    def _of_this_episode(self, x: Float[Tensor, "B K N"], t: int) -> Float[Tensor, "B K N"]:
        view = self.views[t]
        return x if view is None or view.kept is None else x * view.kept
