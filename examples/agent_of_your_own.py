"""An agent of your own: a GRU trained by advantages. It trains, resumes, compares and is watched by its name.

From the folder of this file:

    merlin train merlin/TMaze-v0 --agent agent_of_your_own:GRUAgent --set model.hidden_size=64
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from merlin import Agent, Losses, Unroll
from merlin.agents.agent import Advanced, Perceived
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.heads import mlp
from merlin.objectives import policy_gradient as pg


@dataclass(frozen=True, kw_only=True)
class GRUConfig(pg.ActorCriticConfig):
    hidden_size: int = 128
    """Units of the GRU: whatever stands here can be set by `--set model.hidden_size=64`."""
    remembers: bool = True
    """False zeroes the GRU's state at every step: the same agent without memory."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


class GRUState(NamedTuple):
    hidden: Tensor  # [B, H]
    previous_action: Tensor  # [B, E], which every agent's state has


class Features(NamedTuple):
    features: Tensor  # what policy, value and loss read of a step


class GRUAgent(Agent[GRUConfig, GRUState]):
    config_class = GRUConfig

    def __init__(self, spaces: dict, action_space: Any, config: GRUConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.encoder = Encoder(spaces, config.encoder)  # categories, vectors, grids, pictures, texts
        size = self.encoder.output_size + self.actions.encoding_size + 1
        self.cell = nn.GRUCell(size, config.hidden_size)
        self.policy_head = mlp(size + config.hidden_size, (128,), self.actions.num_parameters, 0.1)
        self.value_head = mlp(size + config.hidden_size, (128,), 1)

    def initial_state(self, batch_size: int) -> GRUState:
        zeros = self.cell.weight_hh.new_zeros
        return GRUState(zeros(batch_size, self.config.hidden_size), zeros(batch_size, self.actions.encoding_size))

    def encode(self, observation: dict[str, Tensor], previous_action: Tensor, previous_reward: Tensor) -> Tensor:
        return torch.cat([self.encoder(observation), previous_action, previous_reward.unsqueeze(-1)], -1)

    def perceive(self, code: Tensor, state: GRUState, extras: Any = None, generator: Any = None) -> Perceived:
        hidden = self.cell(code, state.hidden * self.config.remembers)
        return Perceived(Features(torch.cat([code, hidden], -1)), state._replace(hidden=hidden))

    def advance(self, perceived: Perceived, action: Tensor) -> Advanced:
        return Advanced(perceived.state._replace(previous_action=action))

    def policy_parameters(self, activations: Features) -> Tensor:
        return self.policy_head(activations.features)

    def value(self, activations: Features, policy_parameters: Tensor) -> Tensor:
        return self.value_head(activations.features).squeeze(-1)

    def loss(self, activations: Features, unroll: Unroll, actions, previous_actions, entropy_scale: float) -> Losses:
        parameters, value = self.policy_parameters(activations), self.value(activations, None)
        advantages, returns = pg.advantages_and_returns(unroll, self.config)
        actor = pg.actor_loss(self.actions, parameters, unroll, advantages, self.config, entropy_scale)
        total = pg.masked_mean(actor.loss + self.config.return_cost * 0.5 * (returns - value).square(), unroll.is_valid)
        metrics = pg.actor_critic_metrics(unroll, actor, value, returns)
        return Losses(total, {name: x.detach() for name, x in metrics.items()})
