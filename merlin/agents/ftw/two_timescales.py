"""A slow and a fast recurrent core that share a memory: the slow one expects what the fast one infers."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from merlin.latents import DiagonalGaussian
from merlin.memory import Memory, Reader
from merlin.networks.lstm import LSTM, LSTMState
from merlin.networks.products import Linear
from merlin.precision import as_type
from merlin.states import put_rows, rows_of

INITIAL_STD = 0.1
"""Of a latent whose network puts out 0, and of what the prior is drawn to."""
LEAST_STD = 1e-6


class CoreState(NamedTuple):
    """State of both cores.

    Attributes:
        slow: [c_p, h_p, slow words], held between ticks.
        prior: Its moments, held between ticks.
        share: Of the slow core in the fast one's gates, held between ticks inside a window; None outside of it, where
            weights may change from step to step.
        fast: h_q, c_q.
        fast_words: What the fast core read last.
        latent: z.
        memory: That of both cores; None without one.
        num_steps: Rows of the episode seen.
    """

    slow: Float[Tensor, "B S"]
    prior: Float[Tensor, "B Y"]
    share: Float[Tensor, "B G"] | None
    fast: LSTMState
    fast_words: Float[Tensor, "B KW"]
    latent: Float[Tensor, "B Z"]
    memory: Any
    num_steps: Int[Tensor, "B"]

    @property
    def slow_hidden(self) -> Float[Tensor, "B H"]:
        """h_p."""
        return self.slow[:, self.fast.hidden.shape[1] :][:, : self.fast.hidden.shape[1]]


class CoreStep(NamedTuple):
    """What a step of both cores leads to, up to the fast core's write.

    Attributes:
        posterior: Means and standard deviations, side by side.
        ticks: Batch rows whose slow core took a step.
        read_weights: Of the fast core's read; None without a memory.
        slow_slots: Where the slow core wrote, in rows that tick.
    """

    state: CoreState
    posterior: Float[Tensor, "B Y"]
    ticks: Bool[Tensor, "B"]
    read_weights: Float[Tensor, "B K _"] | None
    slow_slots: Int[Tensor, "B"] | None


def moments(outputs: Float[Tensor, "*batch Y"]) -> Float[Tensor, "*batch Y"]:
    """Return means and standard deviations of what a network put out, side by side.

    std = 0.1 · softplus(x) / softplus(0) + 1e-6

    Jaderberg et al. 2019, arXiv:1807.01281, supplement.
    """
    mean, x = outputs.chunk(2, -1)
    return torch.cat([mean, F.softplus(x) * (INITIAL_STD / math.log(2)) + LEAST_STD], -1)


def gaussian(moments: Float[Tensor, "*batch Y"]) -> DiagonalGaussian:
    """Return the distribution of these means and standard deviations."""
    mean, std = moments.chunk(2, -1)
    return DiagonalGaussian(mean, 2 * std.log())


def scale_gradient(x: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """Return exactly x, whose gradient on the way back is multiplied by `scale`."""
    if scale == 1:
        return x
    held = x.detach()
    return held if scale == 0 else held + scale * (x - held)


class TwoTimescales(nn.Module):
    """A step of both cores, in order; rows whose `num_steps` is a multiple of τ tick, an episode's first among them:

        where a row ticks (elsewhere h_p, c_p, slow_words and prior are held):
            h_p, c_p    = slow([h_q, slow_words], h_p, c_p)             h_q of the step before
            slow_words  = read(M, slow_reader(h_p))
            M           = write(M, slow_writer([h_p, slow_words]))      least used slot
            prior       = N(moments(prior([h_p, slow_words])))
        s           = scale_gradient([h_p, slow_words, prior's moments], c)
        h_q, c_q    = fast([e, s, z, fast_words], h_q, c_q)             z, fast_words of the step before
        fast_words  = read(M, fast_reader(h_q))                         slow's new word can be read
        posterior   = N(moments(posterior([h_q, fast_words])));   z ~ posterior
        M           = write(M, fast_writer([h_q, fast_words]))          `write`, when the action is chosen

    Jaderberg et al. 2019, arXiv:1807.01281, Figure S10.

    What the slow core computes, it computes for the rows that tick alone, where asking which does not have to wait for
    a device. What s adds to the fast core's gates changes at ticks alone, and is held between them inside a window.

    Args:
        encoding_size: Width of e.
        hidden_size: H, of each core.
        latent_size: Z.
        num_read_keys: K, of each core's reads.
        read_strength: Sharpness that reads start near.
        memory: None leaves reads and writes out.
    """

    def __init__(
        self,
        encoding_size: int,
        hidden_size: int,
        latent_size: int,
        num_read_keys: int,
        read_strength: float,
        memory: Memory | None,
    ) -> None:
        super().__init__()
        self.memory, self.latent_size = memory, latent_size
        self.words_size = 0 if memory is None else num_read_keys * memory.slot_size
        context_size = hidden_size + self.words_size
        self.slow = LSTM(context_size, hidden_size, 1)
        self.fast = LSTM(encoding_size + latent_size + self.words_size, hidden_size, 1, has_share=True)
        self.slow_to_fast = Linear(context_size + 2 * latent_size, 4 * hidden_size, bias=False)
        nn.init.uniform_(self.slow_to_fast.weight, -(hidden_size**-0.5), hidden_size**-0.5)  # as other gates' weights
        self.prior = Linear(context_size, 2 * latent_size)
        self.posterior = Linear(context_size, 2 * latent_size)
        if memory is not None:
            self.slow_reader, self.fast_reader = (
                Reader(hidden_size, memory.slot_size, num_read_keys, read_strength) for _ in range(2)
            )
            self.slow_writer, self.fast_writer = (Linear(context_size, memory.word_size) for _ in range(2))

    def initial_state(self, batch_size: int) -> CoreState:
        """Return zeros: nothing seen, nothing remembered."""
        fast = self.fast.initial_state(batch_size)
        zeros, like = fast.hidden.new_zeros, fast.hidden
        return CoreState(
            slow=zeros(batch_size, 2 * like.shape[1] + self.words_size),
            prior=zeros(batch_size, 2 * self.latent_size),
            share=None,
            fast=fast,
            fast_words=zeros(batch_size, self.words_size),
            latent=zeros(batch_size, self.latent_size),
            memory=None if self.memory is None else self.memory.empty(batch_size, like),
            num_steps=torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def begin_window(self, state: CoreState, gradient_scale: float) -> CoreState:
        """Return the state with the slow core's share in the fast one's gates, to be held between ticks."""
        return state._replace(share=self._share(state.slow, state.prior, gradient_scale))

    def _share(
        self, slow: Float[Tensor, "B S"], prior: Float[Tensor, "B Y"], gradient_scale: float
    ) -> Float[Tensor, "B G"]:
        """Return what the slow core adds to the fast one's gates."""
        s = torch.cat([slow[:, self.slow.hidden_size :], prior], -1)
        return as_type(self.slow_to_fast(scale_gradient(s, gradient_scale)), slow.dtype)

    def step(
        self,
        encoding: Float[Tensor, "B E"],
        state: CoreState,
        noise: Float[Tensor, "B Z"],
        tick_steps: int,
        gradient_scale: float,
        slow_slots: Int[Tensor, "B"] | None = None,
    ) -> CoreStep:
        """Return both cores' step, up to the fast one's write.

        Args:
            noise: Of the latent, standard normal.
            tick_steps: τ.
            gradient_scale: c.
            slow_slots: Where the slow core writes, where a step is taken again.
        """
        ticks = state.num_steps % tick_steps == 0
        # Who need not wait for a device asks who ticks.
        rows = ticks
        if ticks.device.type == "cpu" and not torch.compiler.is_compiling() and not ticks.all():
            rows = ticks.nonzero().squeeze(1)
        if rows is ticks or len(rows):
            state, slow_slots = self._tick(rows, state, gradient_scale, slow_slots)
        elif self.memory is not None and slow_slots is None:
            slow_slots = torch.zeros_like(state.num_steps)
        share = state.share
        if share is None:
            share = self._share(state.slow, state.prior, gradient_scale)
        fast = self.fast.step(torch.cat([encoding, state.latent, state.fast_words], -1), state.fast, share)
        words, weights = state.fast_words, None
        if self.memory is not None:
            read, weights = self.memory.read(state.memory, *self.fast_reader(fast.hidden))
            words = read.flatten(1)
        posterior = moments(self.posterior(torch.cat([fast.hidden, words], -1)))
        posterior = as_type(posterior, noise.dtype)  # also where autocast chose another
        mean, std = posterior.chunk(2, -1)
        latent = torch.addcmul(mean, std, noise)
        state = state._replace(fast=fast, fast_words=words, latent=latent, num_steps=state.num_steps + 1)
        return CoreStep(state, posterior, ticks, weights, slow_slots)

    def _tick(
        self,
        rows: Int[Tensor, "b"] | Bool[Tensor, "B"],
        state: CoreState,
        gradient_scale: float,
        slots: Int[Tensor, "B"] | None,
    ) -> tuple[CoreState, Int[Tensor, "B"] | None]:
        """Return the state after the slow core's step in rows that tick, and where it wrote."""
        is_part, size = rows.dtype != torch.bool, self.slow.hidden_size
        slow, fast = (rows_of(x, rows) if is_part else x for x in (state.slow, state.fast.hidden))
        cell, hidden, words = slow.split([size, size, self.words_size], -1)
        lstm = self.slow.step(torch.cat([fast, words], -1), LSTMState(hidden, cell))
        context, memory = lstm.hidden, state.memory
        if self.memory is not None:
            part = self.memory.rows_of(memory, rows) if is_part else memory
            read, weights = self.memory.read(part, *self.slow_reader(lstm.hidden))
            context = torch.cat([context, read.flatten(1)], -1)
            told = rows_of(slots, rows) if is_part else slots
            word = as_type(self.slow_writer(context), context.dtype)  # if autocast chose another
            part, slot = self.memory.write(part, word, weights.detach(), told)
            memory = self.memory.put_rows(memory, part, rows)
            slots = torch.zeros_like(state.num_steps)
            if slot is not None:
                slots = put_rows(slots, slot, rows)
        prior = as_type(moments(self.prior(context)), context.dtype)
        slow = torch.cat([lstm.cell, context], -1)
        share = None if state.share is None else self._share(slow, prior, gradient_scale)
        after = state._replace(slow=slow, prior=prior, share=share)
        held = {name: put_rows(getattr(state, name), getattr(after, name), rows) for name in ("slow", "prior", "share")}
        return state._replace(**held, memory=memory), slots

    def write(
        self, state: CoreState, read_weights: Float[Tensor, "B K _"] | None, slot: Int[Tensor, "B"] | None = None
    ) -> tuple[CoreState, Int[Tensor, "B"] | None]:
        """Return the state with the fast core's word, and where it went.

        Args:
            read_weights: Of the fast core's read in this step.
            slot: Where it went when this was experienced, where a step is taken again.
        """
        if self.memory is None:
            return state, None
        assert read_weights is not None, "where there is a memory it is read"
        word = self.fast_writer(torch.cat([state.fast.hidden, state.fast_words], -1))
        word = as_type(word, state.fast.hidden.dtype)
        memory, slot = self.memory.write(state.memory, word, read_weights.detach(), slot)
        return state._replace(memory=memory), slot


class SingleCore(nn.Module):
    """One LSTM of e, without latent or memory, where two timescales are left out."""

    def __init__(self, encoding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fast = LSTM(encoding_size, hidden_size, 1)

    def initial_state(self, batch_size: int) -> CoreState:
        """Return zeros; what there is none of has width 0."""
        fast = self.fast.initial_state(batch_size)
        nothing = fast.hidden[:, :0]
        num_steps = torch.zeros(batch_size, dtype=torch.int64, device=nothing.device)
        return CoreState(nothing, nothing, None, fast, nothing, nothing, None, num_steps)

    def begin_window(self, state: CoreState, gradient_scale: float) -> CoreState:
        """Return the state as it is."""
        return state

    def step(self, encoding: Float[Tensor, "B E"], state: CoreState, noise: Float[Tensor, "B Z"], *_: Any) -> CoreStep:
        """Return the LSTM's step. See `TwoTimescales.step`."""
        state = state._replace(fast=self.fast.step(encoding, state.fast), num_steps=state.num_steps + 1)
        return CoreStep(state, noise, torch.zeros_like(state.num_steps, dtype=torch.bool), None, None)

    def write(self, state: CoreState, *_: Any) -> tuple[CoreState, None]:
        """Return the state as it is."""
        return state, None
