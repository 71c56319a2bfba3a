"""RL-LSTM: the recurrent baseline of Wayne et al. 2018, arXiv:1803.10760."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float
from torch import Tensor

from merlin.agents.actor_critic import RecurrentActorCritic, RecurrentConfig
from merlin.agents.agent import Advanced, Perceived
from merlin.networks.lstm import LSTMState


@dataclass(frozen=True, kw_only=True)
class RLLSTMConfig(RecurrentConfig):
    """Sizes and costs of RL-LSTM."""


class RLLSTMState(NamedTuple):
    """State of RL-LSTM: h, c; a_{t-1}, encoded."""

    lstm: LSTMState
    previous_action: Float[Tensor, "B A"]


class RLLSTMActivations(NamedTuple):
    """Activations of a step, which policy and value read: e, h."""

    encoding: Float[Tensor, "*batch C"]
    hidden: Float[Tensor, "*batch LH"]


class RLLSTM(RecurrentActorCritic[RLLSTMConfig, RLLSTMState]):
    """An LSTM trained by reinforcement alone: h = lstm(e); policy and value on [e, h].

    Difference from the paper: the sizes are config values, and so are the layers, of which the paper has two.
    """

    config_class = RLLSTMConfig
    num_features = 2

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: RLLSTMConfig) -> None:
        super().__init__(spaces, action_space, config)
        self._build(spaces, core_input_size=0, feature_size=0)

    def initial_state(self, batch_size: int) -> RLLSTMState:
        """Return zeros."""
        lstm = self.lstm.initial_state(batch_size)
        return RLLSTMState(lstm, lstm.hidden.new_zeros(batch_size, self.actions.encoding_size))

    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: RLLSTMState,
        extras: Any = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return h = lstm(e). See `Agent.perceive`."""
        lstm = self.lstm.step(code, state.lstm)
        return Perceived(RLLSTMActivations(code, lstm.hidden), state._replace(lstm=lstm))

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Remember the action. See `Agent.advance`."""
        return Advanced(perceived.state._replace(previous_action=action))
