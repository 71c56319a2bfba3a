"""RL-LSTM: the recurrent baseline of Wayne et al. 2018, arXiv:1803.10760."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float
from torch import Tensor

from merlin.agents.actor_critic import ActorCritic, RecurrentConfig
from merlin.networks.recurrent import LSTMState
from merlin.unroll import Unroll


@dataclass(frozen=True, kw_only=True)
class RLLSTMConfig(RecurrentConfig):
    """Sizes and costs of RL-LSTM."""


class RLLSTMState(NamedTuple):
    """What RL-LSTM carries from step to step."""

    lstm: LSTMState
    previous_action: Float[Tensor, "B A"]


class RLLSTM(ActorCritic[RLLSTMConfig, RLLSTMState]):
    """A two-layer LSTM trained by reinforcement alone: h = lstm(e); policy and value on [e, h].

    Difference from the paper: the sizes are config values.
    """

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: RLLSTMConfig) -> None:
        super().__init__(spaces, action_space, config)
        self._build(spaces, core_input_size=0, feature_size=0)

    def initial_state(self, batch_size: int) -> RLLSTMState:
        """Return zeros."""
        lstm = self.lstm.initial_state(batch_size)
        return RLLSTMState(lstm, lstm.hidden.new_zeros(batch_size, self.actions.encoding_size))

    def _step(self, encoding: Float[Tensor, "B E"], state: RLLSTMState) -> tuple[Tensor, RLLSTMState, None]:
        lstm = self.lstm.step(encoding, state.lstm)
        return torch.cat([encoding, lstm.hidden], -1), state._replace(lstm=lstm), None

    def _unroll(
        self, encodings: Float[Tensor, "T B E"], state: RLLSTMState, unroll: Unroll
    ) -> tuple[Float[Tensor, "T B F"], RLLSTMState]:
        hidden, lstm = self.lstm.unroll(encodings, state.lstm, unroll.is_first)
        return torch.cat([encodings, hidden], -1), state._replace(lstm=lstm)
