"""RL-LSTM: the recurrent baseline of Wayne et al. 2018, arXiv:1803.10760."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.agents.actor_critic import ActorCritic, RecurrentConfig
from merlin.agents.agent import TapeActing
from merlin.experience import Unroll
from merlin.networks.lstm import LSTMState, map_state


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

    def begin(self, state: RLLSTMState, length: int, generator: torch.Generator | None = None) -> "RLLSTMActing":
        """Return what acts for a window of `length` steps from `state`, and remembers what learning needs of it."""
        return RLLSTMActing(self, state, length, generator)

    def _unroll(
        self,
        encodings: Float[Tensor, "T B E"],
        state: RLLSTMState,
        unroll: Unroll,
        acting: "RLLSTMActing | None" = None,
    ) -> tuple[Float[Tensor, "T B F"], RLLSTMState]:
        tape = None if acting is None else acting.unchanged().tape
        hidden, lstm = self.lstm.unroll(encodings, state.lstm, unroll.is_first, tape)
        return torch.cat([encodings, hidden], -1), state._replace(lstm=lstm)


class RLLSTMActing(TapeActing):
    """RL-LSTM acting on a tape that it then learns from. The same numbers as `RLLSTM.step`'s."""

    agent: RLLSTM

    @torch.no_grad()
    def __init__(self, agent: RLLSTM, state: RLLSTMState, length: int, generator: torch.Generator | None) -> None:
        super().__init__(agent, state.previous_action, generator)
        self.tape = agent.lstm.tape(state.lstm, length)
        self._features: list[Tensor] = []

    def _decide(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B A"]]:
        previous_action = self._previous_action.masked_fill(is_first.unsqueeze(-1), 0)
        encoding = self.agent._encode(observation, previous_action, reward.masked_fill(is_first, 0))
        self._seen = torch.cat([encoding, self.tape.step(len(self._actions), encoding, is_first)], -1)
        return self._seen, self.agent.policy_head(self._seen)

    def _advance(self) -> None:
        self._features.append(self._seen)

    def _value(self, seen: Float[Tensor, "*batch F"], parameters: Tensor) -> Float[Tensor, "*batch"]:
        return self.agent.value_head(seen).squeeze(-1)

    def _all_seen(self) -> Float[Tensor, "T B F"]:
        return torch.stack(self._features)

    def _make_state(self) -> RLLSTMState:
        lstm = map_state(torch.clone, self.tape.state(len(self._actions)))
        return RLLSTMState(lstm, self._previous_action)
