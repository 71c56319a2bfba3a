"""What the baselines share: a policy and a value head on recurrent features, trained by the RL loss alone."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor

from merlin.agents.agent import Acting, Agent
from merlin.experience import Losses, StepOutput, Unroll
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM, map_state, reset_state
from merlin.networks.spaces import flatten_observation
from merlin.objectives.policy_gradient import ActorCriticConfig, advantages_and_returns, masked_mean, policy_loss

Config = TypeVar("Config", bound="RecurrentConfig")
State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(ActorCriticConfig):
    """Sizes of a recurrent actor-critic."""

    hidden_size: int = 256
    """H, units of each LSTM layer."""
    num_layers: int = 2
    """LSTM layers."""
    head_size: int = 200
    """Units of the tanh layer of the policy and of the value head."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


class ActorCritic(Agent[Config, State], Generic[Config, State]):
    """Encoder, recurrent core, policy and value on the core's features; every gradient reaches every parameter.

    e       = [encoder(o_t), a_{t−1}, r_{t−1}]
    loss    = −advantage · log π(a) − entropy_cost · entropy + return_cost · ½ (R − V)²
    """

    groups = ("agent",)

    def _build(self, spaces: dict[str, Space], core_input_size: int, feature_size: int) -> None:
        """Make the parts, for a core that reads e and `core_input_size` numbers, and gives e, h and `feature_size`."""
        config = self.config
        self.encoder = Encoder(spaces, config.encoder)
        self.encoding_size = self.encoder.output_size + self.actions.encoding_size + 1
        self.lstm = LSTM(self.encoding_size + core_input_size, config.hidden_size, config.num_layers)
        features = self.encoding_size + self.lstm.output_size + feature_size
        num_parameters = self.actions.num_parameters
        self.policy_head = mlp(features, (config.head_size,), num_parameters, 0.1, config.policy_hidden_gain)
        self.value_head = mlp(features, (config.head_size,), 1)

    @abstractmethod
    def _step(self, encoding: Float[Tensor, "B E"], state: State) -> tuple[Tensor, State, Tensor | None]:
        """Return the features, the next state (but for the previous action) and the read weights, if any."""

    @abstractmethod
    def _unroll(
        self, encodings: Float[Tensor, "T B E"], state: State, unroll: Unroll, acting: Acting | None = None
    ) -> tuple[Float[Tensor, "T B F"], State]:
        """Return the features of a window, whose observations are encoded, and the state after it."""

    def _slots(self, state: State) -> Int[Tensor, "B"] | None:
        """Return where the last step was written, if anywhere."""
        return None

    @torch.no_grad()
    def step(
        self,
        observation: Any,
        state: State,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, State]:
        """Return the action and the next state. See `Agent.step`."""
        state = reset_state(state, is_first)
        if reward is None:
            reward = torch.zeros_like(is_first, dtype=state.previous_action.dtype)
        previous_reward = reward.masked_fill(is_first, 0)
        encoding = self._encode(flatten_observation(observation), state.previous_action, previous_reward)
        features, state, weights = self._step(encoding, state)
        parameters = self.policy_head(features)
        action = self.actions.mode(parameters) if greedy else self.actions.sample(parameters, generator)
        output = StepOutput(
            action=action,
            log_prob=self.actions.log_prob(parameters, action),
            value=self.value_head(features).squeeze(-1),
            policy_parameters=parameters,
            slots=self._slots(state),
            read_weights=weights,
        )
        return output, state._replace(previous_action=self.actions.encode(action))

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: State) -> dict[str, Float[Tensor, "B _"]]:
        """Return what the agent knows after a step, by where it knows it. See `Agent.features`."""
        return {"encoding": self.encoder(flatten_observation(observation)), "recurrent state": state.lstm.hidden}

    def losses(
        self, unroll: Unroll, state: State, entropy_scale: float = 1.0, acting: Acting | None = None
    ) -> tuple[Losses, State]:
        """Return the loss of a window that starts from `state`, and the state after it. See `Agent.losses`."""
        config = self.config
        actions, previous_actions = self._action_codes(unroll, state.previous_action)
        encodings = self._encode(unroll.observation, previous_actions, unroll.previous_reward)
        features, state = self._unroll(encodings, state, unroll, acting)
        parameters, value = self.policy_head(features), self.value_head(features).squeeze(-1)

        advantages, returns = advantages_and_returns(unroll, config)
        log_prob, entropy = self.actions.log_prob(parameters, unroll.action), self.actions.entropy(parameters)
        actor = policy_loss(log_prob, unroll.log_prob, advantages, config.clip_ratio)
        actor = actor - config.entropy_cost * entropy_scale * entropy
        critic = 0.5 * (returns - value).square()
        total = masked_mean(actor + config.return_cost * critic, unroll.is_valid)
        metrics = self._actor_critic_metrics(unroll, log_prob, entropy, value, returns)
        state = map_state(Tensor.detach, state._replace(previous_action=actions[-1]))
        return Losses(total, {name: x.detach() for name, x in metrics.items()}), state

    def _encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch A"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch E"]:
        return torch.cat([self.encoder(observation), previous_action, previous_reward.unsqueeze(-1)], -1)
