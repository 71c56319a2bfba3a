"""The memory of `merlin.memory.content` over a window of steps, as a linear operator whose slots are never rewritten.

Writing changes one slot and adds a decayed word to the traces of all others. Done slot by slot, a window of T steps
makes T memories of N · W numbers, and automatic differentiation keeps them all. But while slots are only added to,

    slot n at step t  =  [word_n, trace_n + c_n · s_t]           s_t = Σ_{τ<t} g^τ word_τ,  the window's words so far

where c_n, the share of the window's first word that slot n takes, is known when the window begins: all slots change
along one direction. So the memory at step t is the memory that the window began with, which stays as it is, a vector
s_t, and the words that were written in the window. These are entries of their own, N and after, with traces that grow
in place. Slots that have been written over, and those of earlier episodes, are entries that cannot be read: they weigh
0, so that a NaN in them would still spread. Nothing of N · W numbers is made or kept at any step. Where keys read few
of many entries, only finding them looks at all: reading them, and the way back, takes those few.

Slots are filled in order, and where those never written cannot be read the first H, as many as any row of the batch has
written when the window begins, are all that reads look at: their cost grows with what is remembered, not with N. What
remains of N is the usage of each slot at each step, and one copy of the memory for a window.

Going back, `dots` and `mix` are each other's adjoint. The entries are shared by all steps, so the way back must pass
the steps from the last to the first and take each write out again. All reads and writes hang on one thread through the
graph, so that automatic differentiation keeps that order; it is asserted as well.

Without the retroactive half, rows may have words of different numbers: `WindowState.rows_of` is the memory of some
rows, which copies their entries to read them, and appends to what each of them has.

Axes: T time, B batch, K read keys, N slots, H of them held, W width of a slot, Z width of a word, E = H + t entries,
C chosen.
"""

import copy
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from merlin.errors import MerlinError
from merlin.memory.content import EPSILON, MemoryState, Read, allocate, attend, reset, square_lengths, written
from merlin.precision import as_type, full_precision
from merlin.states import put_rows, rows_of


class At(NamedTuple):
    """A step of a window, by what can be read then.

    Attributes:
        step: Words of the window, in the row that has most.
        emptied: Rows of the batch whose first slots can be read as empty by then, if any can.
        rows: Of the batch, where some of them are read alone; all else here and in what is read is of these.
    """

    step: int
    emptied: Bool[Tensor, "B"] | None
    rows: Int[Tensor, "B"] | None


OF_ROWS = ("usage", "write_weights", "num_written")
"""What the state of some rows of a window has for itself, without a retroactive half."""

Places = tuple[slice | Tensor, int | Tensor]
"""Where words lie among a window's own entries: rows of the batch, and the entry of each, or one of all."""


class MemoryWindow:
    """The entries that all steps of a window share: the slots at its begin, and the words that it writes.

    Args:
        state: The memory that the window begins with.
        length: T, steps that may be written; one more may be read.
        retroactive_discount: g of the retroactive half; None if there is none.
        mask_unwritten: Keep slots that were never written from being read.
    """

    def __init__(
        self, state: MemoryState, length: int, retroactive_discount: float | None, mask_unwritten: bool = True
    ) -> None:
        self.discount, self.mask_unwritten, self.length = retroactive_discount, mask_unwritten, length
        memory = state.memory.detach()
        batch_size, self.memory_size, slot_size = memory.shape
        self.word_size = slot_size if retroactive_discount is None else slot_size // 2
        self.held = self.memory_size
        if mask_unwritten and batch_size:
            with suppress(RuntimeError) if memory.is_meta else nullcontext():  # there are no numbers there
                self.held = int(state.num_written.max().clamp(1, self.memory_size))
        held = memory[:, : self.held]
        self.entries = memory.new_zeros(batch_size, self.held + length, slot_size)
        self.entries[:, : self.held] = held
        lengths = square_lengths(held)
        self.square_norms = lengths.new_zeros(self.entries.shape[:2])  # of words of the window where there is no trace
        self.square_norms[:, : self.held] = lengths
        if retroactive_discount is not None:
            g = retroactive_discount
            trace, last = (x[:, : self.held] for x in (state.retroactive_weights, state.write_weights))
            self.take = g * trace + (1 - g) * last
            self.sums = memory.new_empty(length + 1, batch_size, self.word_size)
            self.sums[0] = 0
            age = torch.arange(length, device=memory.device, dtype=memory.dtype)
            age = (age.unsqueeze(0) - age.unsqueeze(1) - 1).clamp(min=0)
            self.decay = (1 - g) * g**age  # of the entry written at s for the word of t > s
        # Of each entry, the slot that it is in while it is in any.
        self.slots = state.num_written.new_zeros(batch_size, self.held + length)
        self.slots[:, : self.held] = torch.arange(self.held, device=memory.device)
        self.num_entered = 0  # steps whose words are in the entries now
        self.num_uses = 0  # reads and writes that are still to be gone back through
        self.teaches = False  # whether words have gradients
        self.is_spent = False  # whether a backward pass has begun to take them out
        self.is_aside = False  # whether what is written is overwritten by who is not aside
        self.gradients: tuple[Tensor, Tensor, Tensor] | None = None  # of its own entries, the sums, and square norms

    def begin(self, state: MemoryState) -> "WindowState":
        """Return the state at the window's first step."""
        alive = torch.zeros_like(self.slots, dtype=torch.bool)
        alive[:, : self.held] = written(state)[:, : self.held] if self.mask_unwritten else True
        return WindowState(
            window=self,
            step=0,
            rest=state._replace(memory=state.memory.new_empty(*state.usage.shape, 0)),
            alive=alive,
            emptied=None if self.mask_unwritten else alive.new_zeros(len(alive)),
            thread=[torch.zeros((), device=alive.device, requires_grad=True)],
        )

    def aside(self) -> "MemoryWindow":
        """Return the window for steps that leave no trace: their words lie where those of later steps will."""
        aside = copy.copy(self)
        aside.is_aside = True
        return aside

    def traces(self, step: int) -> Float[Tensor, "B t Z"]:
        """Return the traces of the words written before a step."""
        return self.entries[:, self.held : self.held + step, self.word_size :]

    def enter(self, step: int, word: Float[Tensor, "B Z"], places: Places) -> None:
        """Add an entry, and its word to the traces of those before it."""
        assert not self.is_spent and self.num_entered == step < self.length, "steps are written one after another"
        assert not self.is_aside or self.discount is None, "a word aside would stay in the traces of others"
        z = self.word_size
        own = self.entries[:, self.held :]
        own[*places, :z] = word
        if self.discount is None:
            self.square_norms[:, self.held :][places] = square_lengths(word)
        else:
            own[*places, z:] = 0
            if step > 0:
                self.traces(step).addcmul_(self.decay[:step, step, None], word.unsqueeze(1))
            torch.add(self.sums[step], word, alpha=self.discount**step, out=self.sums[step + 1])

    def count_use(self) -> int:
        """Return the number of a read or a write, which are gone back through in the opposite order."""
        self.num_uses += 1
        return self.num_uses

    def go_back_to(self, step: int, use: int) -> None:
        """Take the words of this step and of later ones out of the traces, from the last on."""
        assert use <= self.num_uses, "a window is gone back through once, from its last step to its first"
        self.is_spent, self.num_uses = True, use - 1
        while self.num_entered > step:
            self.num_entered -= 1
            if self.discount is not None and self.num_entered > 0:
                word = self.entries[:, self.held + self.num_entered, : self.word_size]
                decay = self.decay[: self.num_entered, self.num_entered, None]
                self.traces(self.num_entered).addcmul_(decay, word.unsqueeze(1), value=-1)

    def dots(
        self, at: At, keys: Float[Tensor, "B K W"], chosen: Int[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K #E"]:
        """Return keys · memoryᵀ, of all entries or of those that each key has chosen."""
        if chosen is not None:
            return (self._rows(at, chosen) @ keys.unsqueeze(-1)).squeeze(-1)
        n, step = self.held, at.step
        scores = torch.bmm(keys, self._seen(at, self.entries).mT)
        if self.discount is not None and step > 0:
            share = torch.bmm(keys[..., self.word_size :], self.sums[step].unsqueeze(-1))
            scores[..., :n].addcmul_(share, self.take.unsqueeze(1))
        if at.emptied is not None:
            scores[..., :n].masked_fill_(at.emptied.view(-1, 1, 1), 0)
        return scores

    def mix(
        self, at: At, weights: Float[Tensor, "B K #E"], chosen: Int[Tensor, "B K C"] | None = None
    ) -> Float[Tensor, "B K W"]:
        """Return weights · memory."""
        if chosen is not None:
            return (weights.unsqueeze(-2) @ self._rows(at, chosen)).squeeze(-2)
        n, step = self.held, at.step
        if at.emptied is not None:
            weights = torch.cat([_without(at.emptied, weights[..., :n]), weights[..., n:]], -1)
        words = torch.bmm(weights, self._seen(at, self.entries))
        if self.discount is not None and step > 0:
            share = torch.bmm(weights[..., :n], self.take.unsqueeze(-1))
            words[..., self.word_size :].addcmul_(share, self.sums[step].unsqueeze(1))
        return words

    def inverse_norms(self, at: At) -> Float[Tensor, "B E"]:
        """Return one over the length of each entry, 0 for those of an earlier episode that can be read as empty."""
        n, step = self.held, at.step
        squares = self._seen(at, self.square_norms)
        if self.discount is not None and step > 0:
            traces, take, sums = (
                as_type(x, squares.dtype) for x in (self.entries[:, :n, self.word_size :], self.take, self.sums[step])
            )
            across = torch.bmm(traces, sums.unsqueeze(-1)).squeeze(-1)
            across = torch.addcmul(2 * across, take, sums.square().sum(-1, keepdim=True))
            inside = square_lengths(self.entries[:, n : n + step])
            squares = torch.cat([torch.addcmul(squares[:, :n], take, across).clamp_(min=0), inside], -1)
        inverse_norms = squares.add(EPSILON).rsqrt_()
        if at.emptied is not None:
            inverse_norms[:, :n].masked_fill_(at.emptied.unsqueeze(1), 0)
        return as_type(inverse_norms, self.entries.dtype)

    def _rows(self, at: At, chosen: Int[Tensor, "B K C"]) -> Float[Tensor, "B K C W"]:
        """Return what the chosen entries hold."""
        step = at.step
        batch_size, size, slot_size = self.entries.shape
        rows = torch.arange(batch_size, device=chosen.device) if at.rows is None else at.rows
        first = size * rows.view(-1, 1, 1)
        rows = self.entries.view(-1, slot_size).index_select(0, (chosen + first).flatten()).view(*chosen.shape, -1)
        is_own = chosen >= self.held
        if self.discount is not None and step > 0:
            slots = chosen.clamp(max=self.held - 1).flatten(1)
            take = self.take.gather(1, slots).view(chosen.shape).masked_fill(is_own, 0)
            rows[..., self.word_size :].addcmul_(take.unsqueeze(-1), self.sums[step, :, None, None])
        if at.emptied is not None:
            rows.masked_fill_((at.emptied.view(-1, 1, 1) & ~is_own).unsqueeze(-1), 0)
        return rows

    def _seen(self, at: At, x: Shaped[Tensor, "B E *_"]) -> Shaped[Tensor, "b e *_"]:
        """Return what `x` has of the entries that can be read."""
        seen = x[:, : self.held + at.step]
        return seen if at.rows is None else seen.index_select(0, at.rows)

    def teach(self, at: At, weights: Float[Tensor, "B K E"], vectors: Float[Tensor, "B K W"]) -> None:
        """Add Σₖ weights[k, e] · vectors[k] to the gradient of each entry e, as far as the window's words made it."""
        grad_entries, grad_sums, _ = self._begin_gradients()
        n, step = self.held, at.step
        _add(grad_entries[:, :step], at.rows, weights[..., n:].mT, vectors)
        if self.discount is not None:
            held = _without(at.emptied, weights[..., :n])
            share = torch.bmm(held, self.take.unsqueeze(-1))
            grad_sums += (share * vectors[..., self.word_size :]).sum(1)

    def teach_norms(self, at: At, grad_squares: Float[Tensor, "B E"]) -> None:
        """Add the gradient of the entries' square norms to that of the entries."""
        grad_entries, grad_sums, grad_norms = self._begin_gradients()
        n, step = self.held, at.step
        if self.discount is None:  # words stay as they are: what becomes of it waits until it is asked for
            if at.rows is None:
                grad_norms[:, :step] += grad_squares[:, n:]
            else:
                grad_norms[:, :step].index_add_(0, at.rows, grad_squares[:, n:])
            return
        grad_squares = 2 * grad_squares.unsqueeze(-1)
        grad_entries[:, :step] += grad_squares[:, n:] * self.entries[:, n : n + step]
        along = (grad_squares[:, :n] * self.take.unsqueeze(-1)).mT
        traces = torch.bmm(along, self.entries[:, :n, self.word_size :]).squeeze(1)
        grad_sums += traces + (along.squeeze(1) * self.take).sum(-1, keepdim=True) * self.sums[step]

    def word_gradient(self, step: int, places: Places) -> Float[Tensor, "B Z"] | None:
        """Return the gradient of the word of a step, all later reads having been gone back through."""
        if self.gradients is None:
            return None
        (grad_entries, grad_sums, grad_norms), z = self.gradients, self.word_size
        if self.discount is None:
            own = self.entries[:, self.held :]
            return torch.addcmul(grad_entries[places], own[places], grad_norms[places].unsqueeze(-1), value=2)
        gradient = grad_entries[:, step, :z] + self.discount**step * grad_sums
        if step > 0:
            traced = torch.einsum("t,btz->bz", self.decay[:step, step], grad_entries[:, :step, z:])
            gradient = gradient + traced
        return gradient

    def _begin_gradients(self) -> tuple[Float[Tensor, "B T W"], Float[Tensor, "B Z"], Float[Tensor, "B T"]]:
        if self.gradients is None:
            own = self.entries[:, self.held :]
            sums = own.new_zeros(len(own), self.word_size)
            self.gradients = torch.zeros_like(own), sums, own.new_zeros(own.shape[:2])
        return self.gradients


def _add(total: Tensor, rows: Tensor | None, x: Tensor, y: Tensor) -> None:
    """Add products to a total, or to some of its batch rows."""
    if rows is None:
        total.baddbmm_(x, y)
    else:
        total.index_add_(0, rows, torch.bmm(x, y))


def _without(emptied: Bool[Tensor, "B"] | None, x: Float[Tensor, "B K H"]) -> Float[Tensor, "B K H"]:
    return x if emptied is None else x.masked_fill(emptied.view(-1, 1, 1), 0)


@dataclass(frozen=True)
class WindowState:
    """The memory at one step of a window: the entries that all steps share, and what is of this step alone.

    Attributes:
        rest: Of the slots, all but their contents.
        alive: Entries that are still in a slot of this episode, and can be read.
        emptied: Rows of the batch that have seen an episode start, where slots never written can be read.
        thread: The last node of the graph that a read or a write of the window made.
        counts: Words that each row has of the window, where that is not `step` in all.
        rows: Of the window, where this is the memory of some of its rows alone.
    """

    window: MemoryWindow
    step: int
    rest: MemoryState
    alive: Bool[Tensor, "B E"]
    emptied: Bool[Tensor, "B"] | None
    thread: list[Float[Tensor, ""]]
    counts: Int[Tensor, "B"] | None = None
    rows: Int[Tensor, "B"] | None = None

    @property
    def at(self) -> At:
        """The step, as the window knows it."""
        return At(self.step, self.emptied, self.rows)

    @property
    def readable(self) -> Bool[Tensor, "B 1 E"]:
        """Entries that can be read."""
        return self.alive[:, : self.window.held + self.step].unsqueeze(1)

    @cached_property
    def inverse_norms(self) -> Float[Tensor, "B 1 E"]:
        """One over the length of each entry."""
        return self.window.inverse_norms(self.at).unsqueeze(1)

    def reset(self, is_first: Bool[Tensor, "B"]) -> "WindowState":
        """Return the state with the batch rows that start an episode emptied."""
        alive, emptied = self.alive.masked_fill(is_first.unsqueeze(1), False), self.emptied
        if emptied is not None:
            alive[:, : self.window.held] |= is_first.unsqueeze(1)
            emptied = emptied | is_first
        return replace(self, rest=reset(self.rest, is_first), alive=alive, emptied=emptied)

    def detach(self) -> "WindowState":
        """Return the state for steps that leave no trace, where no graph is recorded."""
        return replace(self, window=self.window.aside())

    def read(self, keys: Float[Tensor, "B K W"], strengths: Float[Tensor, "B K"], top_k: int | None = None) -> Read:
        """Return what `merlin.memory.read` finds, the weights being those of the entries, without gradients."""
        dtype = self.window.entries.dtype
        with full_precision(keys):
            asked = as_type(keys, dtype), as_type(strengths, dtype)
            return Read(*self._apply(_Read, self.readable, self.inverse_norms, *asked, top_k))

    def rows_of(self, rows: Int[Tensor, "b"]) -> "WindowState":
        """Return the memory of some batch rows, of a window without a retroactive half."""
        self._check_rows()
        assert self.rows is None
        alive, emptied, counts = (rows_of(x, rows) for x in (self.alive, self.emptied, self.counts))
        rest = self.rest._replace(**{name: rows_of(getattr(self.rest, name), rows) for name in OF_ROWS})
        return WindowState(self.window, self.step, rest, alive, emptied, self.thread, counts, rows)

    def put_rows(self, part: "WindowState", rows: Int[Tensor, "b"] | Bool[Tensor, "B"]) -> "WindowState":
        """Return the state in which some batch rows have what was written to `part`, and the others have not."""
        self._check_rows()
        now = {name: put_rows(getattr(self.rest, name), getattr(part.rest, name), rows) for name in OF_ROWS}
        counts = part.counts  # where all wrote, and some are kept, the others' words are entries that nobody reads
        if part.rows is not None:
            counts = put_rows(self._counted(), part._counted(), rows)
        rest, alive = self.rest._replace(**now), put_rows(self.alive, part.alive, rows)
        return WindowState(self.window, part.step, rest, alive, self.emptied, self.thread, counts, self.rows)

    def _check_rows(self) -> None:
        if self.window.discount is not None:
            raise MerlinError(
                f"Some rows of a memory can be written alone where it has no retroactive half, as traces grow in all "
                f"rows alike, but retroactive_discount is {self.window.discount:g}: take "
                f"model.retroactive_discount=none, or write every row at every step."
            )

    def _counted(self) -> Int[Tensor, "B"]:
        """Return how many words each row has of the window."""
        return torch.full_like(self.rest.num_written, self.step) if self.counts is None else self.counts

    def write(
        self, word: Float[Tensor, "B Z"], read_weights: Float[Tensor, "B K E"], slot: Int[Tensor, "B"] | None = None
    ) -> "WindowState":
        """Return the state of the next step, with the word where `merlin.memory.write` puts it.

        Args:
            read_weights: Those of the step's reads that count as usage.
            slot: Write here, as when experience is replayed, rather than where usage says.
        """
        return self.write_to(word, read_weights, slot)[0]

    def write_to(
        self, word: Float[Tensor, "B Z"], read_weights: Float[Tensor, "B K E"], slot: Int[Tensor, "B"] | None = None
    ) -> tuple["WindowState", Int[Tensor, "B"]]:
        """Return the state after `write`, and the slot written: the one given, or the one that usage says."""
        window, step, n = self.window, self.step, self.window.held
        word = as_type(word, window.entries.dtype)
        counts, places, after = None, (slice(None), step), step + 1
        if self.rows is not None or self.counts is not None:  # rows have words of different numbers
            counts = self._counted()
            rows = torch.arange(len(counts), device=counts.device) if self.rows is None else self.rows
            places, after = (rows, counts), max(step, int(counts.max()) + 1)
        with torch.no_grad():
            window.enter(step, word, places)
            window.num_entered = after
            slots = window._seen(self.at, window.slots)
            of_slots = torch.zeros_like(self.rest.usage, dtype=read_weights.dtype)
            of_slots = of_slots.scatter_add_(1, slots, read_weights.sum(1)).unsqueeze(1)
            rest, slot = allocate(self.rest, of_slots, window.discount, slot)
            alive = self.alive.clone()
            alive[:, : n + step] &= slots != slot.unsqueeze(1)
            window.slots[:, n:][places] = slot
            if counts is None:
                alive[:, n + step] = True
            else:
                alive.scatter_(1, n + counts.unsqueeze(1), True)
                counts = counts + 1
        window.teaches |= word.requires_grad
        self._apply(_Write, places, word)
        thread, emptied = self.thread, self.emptied
        return WindowState(window, after, rest, alive, emptied, thread, counts, self.rows), slot

    @torch.no_grad()
    def memory_state(self) -> MemoryState:
        """Return the memory after the words written so far, as a value of its own."""
        window, n, step = self.window, self.window.held, self.step
        assert window.num_entered == step, "of a window the state at its end is a memory"
        entries = window.entries[:, : n + step].clone()
        if window.discount is not None:
            entries[:, :n, window.word_size :].addcmul_(window.take.unsqueeze(-1), window.sums[step].unsqueeze(1))
        if self.emptied is not None:
            entries[:, :n].masked_fill_(self.emptied[:, None, None], 0)
        # What is in no slot any more goes into one beyond the last.
        slots = window.slots[:, : n + step].masked_fill(~self.alive[:, : n + step], window.memory_size)
        memory = entries.new_zeros(len(entries), window.memory_size + 1, entries.shape[2])
        memory.scatter_(1, slots.unsqueeze(-1).expand_as(entries), entries)
        return self.rest._replace(memory=memory[:, :-1].contiguous())

    def _apply(self, function: Any, *arguments: Any) -> list[Tensor]:
        """Return what a read or a write of the window gives, and let the next one hang on it."""
        *results, thread = function.apply(self.thread[0], self.window, self.at, *arguments)
        if torch.is_grad_enabled():
            self.thread[0] = thread
        return results


class _Read(torch.autograd.Function):
    """A read of a window as one operation: `merlin.memory.read` by `dots` and `mix`, which are each other's adjoint.

    Its gradient goes to keys and strengths, and to the window's words where they learn.
    """

    @staticmethod
    def forward(
        ctx: Any,
        thread: Tensor,
        window: MemoryWindow,
        at: At,
        readable: Tensor,
        inverse_norms: Tensor,
        keys: Tensor,
        strengths: Tensor,
        top_k: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert not window.is_spent and window.num_entered == at.step, "of a window the last step is read"
        wide = as_type(keys, window.square_norms.dtype)
        scale = torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)
        keys, strengths = as_type(wide * scale, keys.dtype), strengths.unsqueeze(-1)
        similarity = window.dots(at, keys).mul_(inverse_norms)
        chosen = None
        if top_k is not None and top_k < similarity.shape[2]:
            chosen = similarity.masked_fill(~readable, -torch.inf).topk(top_k, sorted=False).indices
            expanded = (x.expand(-1, keys.shape[1], -1) for x in (similarity, readable, inverse_norms))
            similarity, readable, inverse_norms = (x.gather(2, chosen) for x in expanded)
        weights = attend(strengths * similarity, readable)
        ctx.window, ctx.at, ctx.use = window, at, window.count_use()
        ctx.set_materialize_grads(False)
        # None of these is a differentiable output: keeping them here makes no cycle, and is quicker than saving.
        ctx.kept = keys, scale, strengths, similarity, weights, inverse_norms, chosen
        whole = _whole(weights, chosen, window.held + at.step)
        ctx.mark_non_differentiable(whole)
        return window.mix(at, weights, chosen), whole, thread.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_words: Tensor | None, *_: Any) -> tuple:
        ctx.window.go_back_to(ctx.at.step, ctx.use)
        if grad_words is None:
            return (None,) * 8
        with full_precision(grad_words):
            return _Read._gradients(ctx, grad_words)

    @staticmethod
    def _gradients(ctx: Any, grad_words: Tensor) -> tuple:
        window, at = ctx.window, ctx.at
        keys, scale, strengths, similarity, weights, inverse_norms, chosen = ctx.kept
        ctx.kept = None
        grad_weights = window.dots(at, grad_words, chosen).mul_(weights)
        grad_logits = torch.addcmul(grad_weights, weights, grad_weights.sum(-1, keepdim=True), value=-1)
        grad_similarity = grad_logits * strengths
        grad_dots = grad_similarity * inverse_norms
        if window.teaches and at.step > 0:
            size = window.held + at.step
            across = torch.cat([_whole(weights, chosen, size), _whole(grad_dots, chosen, size)], 1)
            window.teach(at, across, torch.cat([grad_words, keys], 1))
            by_norms = -0.5 * grad_dots * inverse_norms * similarity  # of the square norms
            window.teach_norms(at, _whole(by_norms, chosen, size).sum(1))
        grad_keys = window.mix(at, grad_dots, chosen)
        along = (keys * grad_keys).sum(-1, keepdim=True)
        grad_keys = torch.addcmul(grad_keys, keys, along, value=-1).mul_(scale)
        return None, None, None, None, None, grad_keys, (grad_logits * similarity).sum(-1), None


def _whole(weights: Tensor, chosen: Tensor | None, size: int) -> Tensor:
    """Return weights of chosen entries as weights of all of them."""
    return weights if chosen is None else weights.new_zeros(*weights.shape[:2], size).scatter(2, chosen, weights)


class _Write(torch.autograd.Function):
    """The writing of a word, whose gradient is complete when all later reads have been gone back through."""

    @staticmethod
    def forward(ctx: Any, thread: Tensor, window: MemoryWindow, at: At, places: Places, word: Tensor) -> tuple[Tensor]:
        ctx.window, ctx.step, ctx.places, ctx.use = window, at.step, places, window.count_use()
        ctx.set_materialize_grads(False)
        return (thread.clone(),)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> tuple:
        ctx.window.go_back_to(ctx.step, ctx.use)
        gradient = ctx.window.word_gradient(ctx.step, ctx.places) if ctx.needs_input_grad[4] else None
        return None, None, None, None, gradient
