"""RL-DNC: an LSTM with the memory of the differentiable neural computer, trained by reinforcement alone."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float
from torch import Tensor

from merlin.agents.actor_critic import RecurrentActorCritic, RecurrentConfig
from merlin.agents.agent import Advanced, Perceived
from merlin.experience import StepOutput
from merlin.memory import MemoryConfig
from merlin.memory.dnc import DNCMemory, DNCState, interface_of, interface_size, step
from merlin.networks.lstm import LSTMState
from merlin.networks.products import Linear
from merlin.ranges import WIDTH, Range


@dataclass(frozen=True, kw_only=True)
class RLDNCConfig(RecurrentConfig):
    """Sizes and costs of RL-DNC."""

    memory_size: Annotated[int, Range(1, 100_000)] = 64
    """N, slots. A step takes N² numbers: links from each slot to each."""
    word_size: Annotated[int, WIDTH] = 32
    """W, width of a slot."""
    num_read_keys: Annotated[int, Range(1, 1024)] = 3
    """K, reads of a step."""


class RLDNCState(NamedTuple):
    """State of RL-DNC: h, c; r; M and its links; a_{t-1}, encoded."""

    lstm: LSTMState
    read_words: Float[Tensor, "B KW"]
    memory: DNCState
    previous_action: Float[Tensor, "B A"]


class RLDNCActivations(NamedTuple):
    """Activations of a step: what policy and value read."""

    encoding: Float[Tensor, "*batch C"]
    hidden: Float[Tensor, "*batch LH"]
    words: Float[Tensor, "*batch KW"]


class RLDNC(RecurrentActorCritic[RLDNCConfig, RLDNCState]):
    """RL-LSTM plus the DNC's memory (Graves et al. 2016), a baseline of Wayne et al. 2018, arXiv:1803.10760:

        h     = lstm([e, r])
        M, r  = step(M, interface(h))                   written, then read: `merlin.memory.dnc`
        policy and value on [e, h, r]

    Everything learns from everything: gradients pass through all writes of a window. Difference from the paper: the
    sizes are config values.
    """

    config_class = RLDNCConfig
    num_features = 3
    writes_once = False  # what is written does not follow from the reads, nor is it in one slot
    memory: DNCMemory

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: RLDNCConfig) -> None:
        super().__init__(spaces, action_space, config)
        sizes = MemoryConfig(memory_size=config.memory_size, retroactive_discount=None)
        self.memory = DNCMemory(config.word_size, sizes, config.num_read_keys)
        words_size = config.num_read_keys * config.word_size
        self._build(spaces, core_input_size=words_size, feature_size=words_size)
        self.interface = Linear(self.lstm.output_size, interface_size(config.word_size, config.num_read_keys))

    def initial_state(self, batch_size: int) -> RLDNCState:
        """Return zeros: nothing seen, nothing remembered."""
        lstm = self.lstm.initial_state(batch_size)
        zeros = lstm.hidden.new_zeros
        return RLDNCState(
            lstm,
            zeros(batch_size, self.config.num_read_keys * self.config.word_size),
            self.memory.empty(batch_size, lstm.hidden),
            zeros(batch_size, self.actions.encoding_size),
        )

    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: RLDNCState,
        extras: Any = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return h, what it writes and what it reads then. See `Agent.perceive`."""
        lstm = self.lstm.step(torch.cat([code, state.read_words], -1), state.lstm)
        asked = interface_of(self.interface(lstm.hidden), self.config.word_size, self.config.num_read_keys)
        (words, weights), memory = step(state.memory, asked)
        words = words.flatten(1)
        state = state._replace(lstm=lstm, read_words=words, memory=memory)
        return Perceived(RLDNCActivations(code, lstm.hidden, words), state, extras, weights, asked.read_strengths)

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Remember the action. See `Agent.advance`."""
        return Advanced(perceived.state._replace(previous_action=action))

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: RLDNCState) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held. See `Agent.features`."""
        return super().features(observation, output, state) | {"reads": state.read_words}
