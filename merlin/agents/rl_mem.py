"""RL-MEM: the memory-augmented baseline of Wayne et al. 2018, arXiv:1803.10760."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import memory as memories
from merlin.agents.actor_critic import ActorCritic, RecurrentConfig
from merlin.agents.agent import Acting, TapeActing
from merlin.experience import StepOutput, Unroll
from merlin.memory import MemoryState, Reader
from merlin.memory.window import DifferentiableWindow, MemoryWindow
from merlin.networks.lstm import LSTMState, map_state, reset_state


@dataclass(frozen=True, kw_only=True)
class RLMemConfig(RecurrentConfig):
    """Sizes and costs of RL-MEM."""

    latent_size: int = 200
    """Z, width of the projection of the encoding that is written."""
    memory_size: int = 1350
    """N, slots."""
    num_read_keys: int = 3
    """K, read keys."""
    retroactive_discount: float | None = 0.96
    """g of the retroactive half of the memory; none leaves it out."""
    mask_unwritten: bool = True
    """Keep slots that were never written from being read."""
    top_k: int | None = None
    """Read only this many slots for each key; none reads all."""


class RLMemState(NamedTuple):
    """What RL-MEM carries from step to step."""

    lstm: LSTMState
    read_words: Float[Tensor, "B KW"]
    memory: MemoryState
    previous_action: Float[Tensor, "B A"]


class RLMem(ActorCritic[RLMemConfig, RLMemState]):
    """RL-LSTM plus MERLIN's memory, trained end to end by reinforcement alone:

        h    = lstm([e, m]);   m, w = read(M, keys(h))
        M    = write(M, projection(e), w)
        policy and value on [e, h, m]

    Gradients reach the encoder through what is written. Difference from the paper: the sizes are config values.
    """

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: RLMemConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.word_size = config.latent_size * (1 if config.retroactive_discount is None else 2)
        words_size = config.num_read_keys * self.word_size
        self._build(spaces, core_input_size=words_size, feature_size=words_size)
        self.reader = Reader(self.lstm.output_size, self.word_size, config.num_read_keys)
        self.projection = nn.Linear(self.encoding_size, config.latent_size)

    def initial_state(self, batch_size: int) -> RLMemState:
        """Return zeros: nothing seen, nothing remembered."""
        lstm = self.lstm.initial_state(batch_size)
        zeros = lstm.hidden.new_zeros
        return RLMemState(
            lstm,
            zeros(batch_size, self.config.num_read_keys * self.word_size),
            memories.initial_state(batch_size, self.config.memory_size, self.word_size, device=lstm.hidden.device),
            zeros(batch_size, self.actions.encoding_size),
        )

    def begin(self, state: RLMemState, length: int, generator: torch.Generator | None = None) -> "RLMemActing":
        """Return what acts for a window of `length` steps from `state`, and copies no memory from step to step."""
        return RLMemActing(self, state, length, generator)

    def features(self, observation: Any, output: StepOutput, state: RLMemState) -> dict[str, Float[Tensor, "B _"]]:
        """Return what the agent knows after a step, by where it knows it. See `Agent.features`."""
        return super().features(observation, output, state) | {"reads": state.read_words}

    def _slots(self, state: RLMemState) -> Int[Tensor, "B"]:
        return state.memory.write_weights.argmax(-1)

    def _step(
        self, encoding: Float[Tensor, "B E"], state: RLMemState
    ) -> tuple[Tensor, RLMemState, Float[Tensor, "B K N"]]:
        lstm = self.lstm.step(torch.cat([encoding, state.read_words], -1), state.lstm)
        readable = memories.written(state.memory) if self.config.mask_unwritten else None
        words, weights = memories.read(state.memory.memory, *self.reader(lstm.hidden), readable, self.config.top_k)
        words = words.flatten(1)
        memory = memories.write(state.memory, self.projection(encoding), weights, self.config.retroactive_discount)
        state = state._replace(lstm=lstm, read_words=words, memory=memory)
        return torch.cat([encoding, lstm.hidden, words], -1), state, weights

    def _unroll(
        self, encodings: Float[Tensor, "T B E"], state: RLMemState, unroll: Unroll, acting: Acting | None = None
    ) -> tuple[Float[Tensor, "T B F"], RLMemState]:
        config, written = self.config, self.projection(encodings)
        memory = map_state(Tensor.detach, state.memory)
        memory = DifferentiableWindow(memory, written, config.retroactive_discount, config.mask_unwritten)
        features, lstm, words = [], state.lstm, state.read_words
        for t, (encoding, first) in enumerate(zip(encodings, unroll.is_first, strict=True)):
            lstm, words = reset_state(lstm, first), reset_state(words, first)
            lstm = self.lstm.step(torch.cat([encoding, words], -1), lstm)
            memory.enter(t, first)
            found, weights = memory.read(*self.reader(lstm.hidden), t, config.top_k)
            words = found.flatten(1)
            features.append(torch.cat([encoding, lstm.hidden, words], -1))
            # Usage only chooses a slot, which has no gradient.
            memory.append(t, written[t].detach(), weights.detach(), None if unroll.slots is None else unroll.slots[t])
        return torch.stack(features), state._replace(lstm=lstm, read_words=words, memory=memory.state())


class RLMemActing(TapeActing):
    """RL-MEM acting with the memory of a window. The same numbers as `RLMem.step`'s.

    But for `top_k` of slots never written, where these can be read: of equal ones others may be chosen.
    """

    agent: RLMem

    @torch.no_grad()
    def __init__(self, agent: RLMem, state: RLMemState, length: int, generator: torch.Generator | None) -> None:
        super().__init__(agent, state.previous_action, generator)
        config = agent.config
        self.tape = MemoryWindow(state.memory, length, config.retroactive_discount, config.mask_unwritten)
        self._lstm, self._words = state.lstm, state.read_words
        self._features: list[Tensor] = []

    @torch.no_grad()
    def columns(self) -> dict[str, Tensor | None]:
        """Return what `Unroll` holds of the agent, for all steps taken."""
        return super().columns() | {"slots": torch.stack(self.tape.slots)}

    def _decide(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B A"]]:
        agent, t = self.agent, len(self._actions)
        carried = (self._previous_action, self._lstm, self._words)
        previous_action, lstm, words = (reset_state(x, is_first) for x in carried)
        encoding = agent._encode(observation, previous_action, reward.masked_fill(is_first, 0))
        lstm = agent.lstm.step(torch.cat([encoding, words], -1), lstm)
        self.tape.enter(t, is_first)
        words, weights = self.tape.read(*agent.reader(lstm.hidden), t, agent.config.top_k)
        words = words.flatten(1)
        features = torch.cat([encoding, lstm.hidden, words], -1)
        self._entered = encoding, lstm, words, weights, features
        return features, agent.policy_head(features)

    def _advance(self) -> None:
        encoding, self._lstm, self._words, weights, features = self._entered
        self.tape.append(len(self._actions), self.agent.projection(encoding), weights)
        self._features.append(features)

    def _value(self, seen: Float[Tensor, "*batch F"], parameters: Tensor) -> Float[Tensor, "*batch"]:
        return self.agent.value_head(seen).squeeze(-1)

    def _all_seen(self) -> Float[Tensor, "T B F"]:
        return torch.stack(self._features)

    def _make_state(self) -> RLMemState:
        return RLMemState(self._lstm, self._words, self.tape.state(), self._previous_action)
