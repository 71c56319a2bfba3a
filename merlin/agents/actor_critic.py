"""What agents trained by reinforcement have in common: encoder, policy and value heads, and the baselines' LSTM."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from gymnasium import Space
from jaxtyping import Float
from torch import Tensor, nn

from merlin.agents.agent import Agent, AgentState
from merlin.experience import Losses, StepOutput, Unroll
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM, LSTMState
from merlin.networks.scales import ReturnScale
from merlin.networks.spaces import flatten_observation
from merlin.objectives.policy_gradient import (
    ActorCriticConfig,
    actor_critic_metrics,
    actor_loss,
    advantages_and_returns,
    masked_mean,
)
from merlin.ranges import WIDTH, Range


@runtime_checkable
class RecurrentState(AgentState, Protocol):
    """An agent's state with that of an LSTM in it."""

    @property
    def lstm(self) -> LSTMState:
        """h, c."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeadConfig(ActorCriticConfig):
    """Sizes of the encoder and of the heads."""

    head_size: Annotated[int, WIDTH] = 200
    """Units of the hidden layer of the policy and of the value head."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(HeadConfig):
    """Sizes of a recurrent actor-critic."""

    hidden_size: Annotated[int, WIDTH] = 256
    """H, units of each LSTM layer."""
    num_layers: Annotated[int, Range(1, 64)] = 2
    """LSTM layers."""


Config = TypeVar("Config", bound=HeadConfig)
State = TypeVar("State", bound=AgentState)
OfLSTM = TypeVar("OfLSTM", bound=RecurrentConfig)
LSTMsState = TypeVar("LSTMsState", bound=RecurrentState)


class ActorCritic(Agent[Config, State], Generic[Config, State]):
    """Encoder, a core that is another's, policy and value on the core's features; every gradient reaches all of it.

    The activations of a step are a NamedTuple, of which policy and value read the first `num_features` entries.

    e       = [encoder(o_t), a_{t−1}, r_{t−1}]
    loss    = −advantage · log π(a) − entropy_cost · entropy + return_cost · ½ (R − V)²
    """

    num_features: int
    head_activation: ClassVar[type[nn.Module]] = nn.Tanh

    def _build_encoder(self, spaces: dict[str, Space]) -> None:
        """Make what comes before a core."""
        self.encoder = Encoder(spaces, self.config.encoder, self.config.running_scales)
        self.encoding_size = self.encoder.output_size + self.actions.encoding_size + 1
        self.return_scale = ReturnScale(self.config.running_scales)

    def _build_heads(self, feature_size: int) -> None:
        """Make what comes after a core."""
        sizes, gain, activation = (self.config.head_size,), self.config.policy_hidden_gain, self.head_activation
        self.policy_head = mlp(feature_size, sizes, self.actions.num_parameters, 0.1, gain, activation)
        self.value_head = mlp(feature_size, sizes, 1, activation=activation)

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return e."""
        reward = self.return_scale.reward(previous_reward)
        return torch.cat([self.encoder(observation), previous_action, reward.unsqueeze(-1)], -1)

    def features_of(self, activations: Any) -> Float[Tensor, "*batch F"]:
        """Return what policy and value read: encoding, recurrent state and, of an agent with a memory, words read."""
        return torch.cat(activations[: self.num_features], -1)

    def policy_parameters(self, activations: Any) -> Float[Tensor, "*batch A"]:
        """Return the parameters of the action's distribution."""
        return self.policy_head(self.features_of(activations))

    def value(self, activations: Any, policy_parameters: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Return V."""
        return self._value(self.features_of(activations))

    def heads(
        self, activations: Any, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        """Return both, of features put together once."""
        features = self.features_of(activations)
        return self.actions.restrict(self.policy_head(features), observation), self._value(features)

    def _value(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        return self.return_scale.value(self.value_head(features).squeeze(-1))

    def loss(
        self,
        activations: Any,
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        entropy_scale: float,
    ) -> Losses:
        """Return the loss of a window. See `Agent.loss`."""
        parameters, value = self.heads(activations, unroll.observation)
        unit = self.return_scale.unit
        advantages, returns = advantages_and_returns(unroll, self.config, unit)
        actor = actor_loss(self.actions, parameters, unroll, advantages, self.config, entropy_scale)
        critic = 0.5 * ((returns - value) / unit).square()
        total = masked_mean(actor.loss + self.config.return_cost * critic, unroll.is_valid)
        metrics = actor_critic_metrics(unroll, actor, value, returns, self.config)
        return Losses(total, {name: x.detach() for name, x in metrics.items()})

    @property
    def scales_are_new(self) -> bool:
        return self.return_scale.is_new

    def update_scales(self, unroll: Unroll) -> None:
        """Take in a window. See `Agent.update_scales`."""
        unroll = unroll._replace(next_value=self.return_scale.known(unroll.next_value))
        _, returns = advantages_and_returns(unroll, self.config)
        self.encoder.update_scales(unroll.observation, unroll.is_valid)
        self.take_returns(unroll, returns)

    def take_returns(self, unroll: Unroll, returns: Float[Tensor, "T B"]) -> None:
        """Let units of rewards and returns take in those of a window."""
        self.return_scale.update(unroll.reward, returns, unroll.is_valid, [(self.value_head[-1], True)])


class RecurrentActorCritic(ActorCritic[OfLSTM, LSTMsState], Generic[OfLSTM, LSTMsState]):
    """An actor-critic whose core is an LSTM."""

    def _build(self, spaces: dict[str, Space], core_input_size: int, feature_size: int) -> None:
        """Make the parts, for a core that reads e and `core_input_size` numbers, and gives e, h and `feature_size`."""
        self._build_encoder(spaces)
        config = self.config
        self.lstm = LSTM(self.encoding_size + core_input_size, config.hidden_size, config.num_layers)
        self._build_heads(self.encoding_size + self.lstm.output_size + feature_size)

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: LSTMsState) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held. See `Agent.features`."""
        return {"encoding": self.encoder(flatten_observation(observation)), "recurrent state": state.lstm.hidden}
