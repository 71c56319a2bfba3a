"""RL-MEM: the memory-augmented baseline of Wayne et al. 2018, arXiv:1803.10760."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float, Int
from torch import Tensor

from merlin.agents.actor_critic import RecurrentActorCritic, RecurrentConfig
from merlin.agents.agent import Advanced, Perceived
from merlin.experience import StepOutput
from merlin.memory import Memory, MemoryConfig, Reader, make_memory
from merlin.networks.lstm import LSTMState
from merlin.networks.products import Linear
from merlin.precision import as_type
from merlin.ranges import WIDTH, Range, above


@dataclass(frozen=True, kw_only=True)
class RLMemConfig(MemoryConfig, RecurrentConfig):
    """Sizes and costs of RL-MEM."""

    latent_size: Annotated[int, WIDTH] = 200
    """Z, width of the projection of the encoding that is written."""
    num_read_keys: Annotated[int, Range(1, 1024)] = 3
    """K, read keys."""
    read_strength: Annotated[float, above(0, 500)] = math.log(2)
    """Sharpness that reads start near. At ln N a perfect match weighs as much as all else together."""


class RLMemState(NamedTuple):
    """State of RL-MEM: h, c; m; M; a_{t-1}, encoded."""

    lstm: LSTMState
    read_words: Float[Tensor, "B KW"]
    memory: Any
    previous_action: Float[Tensor, "B A"]


class RLMemActivations(NamedTuple):
    """Activations of a step: what policy and value read, and the word that is written."""

    encoding: Float[Tensor, "*batch C"]
    hidden: Float[Tensor, "*batch LH"]
    words: Float[Tensor, "*batch KW"]
    word: Float[Tensor, "*batch Z"]


class RLMemExtras(NamedTuple):
    """The slot that a step was written to."""

    slots: Int[Tensor, "*batch"] | None


class RLMem(RecurrentActorCritic[RLMemConfig, RLMemState]):
    """RL-LSTM plus MERLIN's memory, trained end to end by reinforcement alone:

        h    = lstm([e, m]);   m, w = read(M, keys(h))
        M    = write(M, projection(e), w)
        policy and value on [e, h, m]

    Gradients reach the encoder through what is written. Difference from the paper: the sizes are config values.
    """

    config_class = RLMemConfig
    num_features = 3
    memory: Memory

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: RLMemConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.memory = make_memory(config.latent_size, config)
        words_size = config.num_read_keys * self.memory.slot_size
        self._build(spaces, core_input_size=words_size, feature_size=words_size)
        self.reader = Reader(self.lstm.output_size, self.memory.slot_size, config.num_read_keys, config.read_strength)
        self.projection = Linear(self.encoding_size, config.latent_size)

    def initial_state(self, batch_size: int) -> RLMemState:
        """Return zeros: nothing seen, nothing remembered."""
        lstm = self.lstm.initial_state(batch_size)
        zeros = lstm.hidden.new_zeros
        return RLMemState(
            lstm,
            zeros(batch_size, self.config.num_read_keys * self.memory.slot_size),
            self.memory.empty(batch_size, lstm.hidden),
            zeros(batch_size, self.actions.encoding_size),
        )

    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: RLMemState,
        extras: RLMemExtras | None = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return h and what it reads. See `Agent.perceive`."""
        lstm = self.lstm.step(torch.cat([code, state.read_words], -1), state.lstm)
        keys, strengths = self.reader(lstm.hidden)
        words, weights = self.memory.read(state.memory, keys, strengths)
        words = words.flatten(1)
        activations = RLMemActivations(code, lstm.hidden, words, self.projection(code))
        return Perceived(activations, state._replace(lstm=lstm, read_words=words), extras, weights, strengths)

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Write, and remember the action. See `Agent.advance`."""
        state, weights, word = perceived.state, perceived.read_weights, perceived.activations.word
        assert weights is not None, "perceiving ends in a read"
        word = as_type(word, state.lstm.hidden.dtype)  # if autocast chose another
        slot = None if perceived.extras is None else perceived.extras.slots
        memory, slot = self.memory.write(state.memory, word, weights.detach(), slot)
        return Advanced(state._replace(memory=memory, previous_action=action), RLMemExtras(slot))

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: RLMemState) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held. See `Agent.features`."""
        return super().features(observation, output, state) | {"reads": state.read_words}
