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
from merlin.precision import as_type

INITIAL_STD = 0.1
"""Of a latent whose network puts out 0, and of what the prior is drawn to."""
LEAST_STD = 1e-6


class CoreState(NamedTuple):
    """State of both cores.

    Attributes:
        slow_cell: c_p.
        slow: [h_p, slow words, the prior's moments], held between ticks.
        fast: h_q, c_q.
        fast_words: What the fast core read last.
        latent: z.
        memory: That of both cores; None without one.
        num_steps: Rows of the episode seen.
    """

    slow_cell: Float[Tensor, "B H"]
    slow: Float[Tensor, "B S"]
    fast: LSTMState
    fast_words: Float[Tensor, "B KW"]
    latent: Float[Tensor, "B Z"]
    memory: Any
    num_steps: Int[Tensor, "B"]

    @property
    def slow_hidden(self) -> Float[Tensor, "B H"]:
        """h_p."""
        return self.slow[:, : self.slow_cell.shape[1]]


class CoreStep(NamedTuple):
    """What a step of both cores leads to, up to the fast core's write.

    Attributes:
        prior, posterior: Means and standard deviations, side by side.
        ticks: Batch rows whose slow core took a step.
        read_weights: Of the fast core's read; None without a memory.
        slow_slots: Where the slow core wrote, in rows that tick.
    """

    state: CoreState
    prior: Float[Tensor, "B Y"]
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
        self.slow_size = context_size + 2 * latent_size
        self.slow = LSTM(context_size, hidden_size, 1)
        self.fast = LSTM(encoding_size + self.slow_size + latent_size + self.words_size, hidden_size, 1)
        self.prior = nn.Linear(context_size, 2 * latent_size)
        self.posterior = nn.Linear(context_size, 2 * latent_size)
        if memory is not None:
            self.slow_reader, self.fast_reader = (
                Reader(hidden_size, memory.slot_size, num_read_keys, read_strength) for _ in range(2)
            )
            self.slow_writer, self.fast_writer = (nn.Linear(context_size, memory.word_size) for _ in range(2))

    def initial_state(self, batch_size: int) -> CoreState:
        """Return zeros: nothing seen, nothing remembered."""
        fast = self.fast.initial_state(batch_size)
        zeros, like = fast.hidden.new_zeros, fast.hidden
        return CoreState(
            slow_cell=zeros(batch_size, like.shape[1]),
            slow=zeros(batch_size, self.slow_size),
            fast=fast,
            fast_words=zeros(batch_size, self.words_size),
            latent=zeros(batch_size, self.latent_size),
            memory=None if self.memory is None else self.memory.empty(batch_size, like),
            num_steps=torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

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
        # Who need not wait for a device asks whether there is anything to do.
        if ticks.device.type != "cpu" or torch.compiler.is_compiling() or ticks.any():
            state, slow_slots = self._tick(ticks, state, slow_slots)
        elif self.memory is not None and slow_slots is None:
            slow_slots = torch.zeros_like(state.num_steps)
        slow = scale_gradient(state.slow, gradient_scale)
        fast = self.fast.step(torch.cat([encoding, slow, state.latent, state.fast_words], -1), state.fast)
        words, weights = state.fast_words, None
        if self.memory is not None:
            read, weights = self.memory.read(state.memory, *self.fast_reader(fast.hidden))
            words = read.flatten(1)
        posterior = moments(self.posterior(torch.cat([fast.hidden, words], -1)))
        posterior = as_type(posterior, noise.dtype)  # also where autocast chose another
        mean, std = posterior.chunk(2, -1)
        latent = torch.addcmul(mean, std, noise)
        prior = state.slow[:, -2 * self.latent_size :]
        state = state._replace(fast=fast, fast_words=words, latent=latent, num_steps=state.num_steps + 1)
        return CoreStep(state, prior, posterior, ticks, weights, slow_slots)

    def _tick(
        self, ticks: Bool[Tensor, "B"], state: CoreState, slots: Int[Tensor, "B"] | None
    ) -> tuple[CoreState, Int[Tensor, "B"] | None]:
        """Return the state after the slow core's step in rows that tick, and where it wrote."""
        size, memory = state.slow_cell.shape[1], state.memory
        words = state.slow[:, size : size + self.words_size]
        before = LSTMState(state.slow_hidden, state.slow_cell)
        lstm = self.slow.step(torch.cat([state.fast.hidden, words], -1), before)
        context = lstm.hidden
        if self.memory is not None:
            read, weights = self.memory.read(memory, *self.slow_reader(lstm.hidden))
            context = torch.cat([context, read.flatten(1)], -1)
            memory, slots = self.memory.write_where(ticks, memory, self.slow_writer(context), weights.detach(), slots)
        prior = as_type(moments(self.prior(context)), context.dtype)
        is_new = ticks.unsqueeze(-1)
        slow = torch.where(is_new, torch.cat([context, prior], -1), state.slow)
        cell = torch.where(is_new, lstm.cell, state.slow_cell)
        return state._replace(slow_cell=cell, slow=slow, memory=memory), slots

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
        return CoreState(nothing, nothing, fast, nothing, nothing, None, num_steps)

    def step(self, encoding: Float[Tensor, "B E"], state: CoreState, noise: Float[Tensor, "B Z"], *_: Any) -> CoreStep:
        """Return the LSTM's step. See `TwoTimescales.step`."""
        state = state._replace(fast=self.fast.step(encoding, state.fast), num_steps=state.num_steps + 1)
        return CoreStep(state, noise, noise, torch.zeros_like(state.num_steps, dtype=torch.bool), None, None)

    def write(self, state: CoreState, *_: Any) -> tuple[CoreState, None]:
        """Return the state as it is."""
        return state, None
