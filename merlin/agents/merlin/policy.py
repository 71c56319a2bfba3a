"""MERLIN's policy: it reads what the predictor wrote, and may see for itself."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merlin.agents.merlin.initialization import start_associative
from merlin.agents.merlin.reward_keys import RewardKeys
from merlin.memory import Reader
from merlin.networks.actions import ActionDistribution
from merlin.networks.encoders import Encoder
from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.ranges import COST, WIDTH, Range, above


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ActorCriticConfig):
    """How the policy learns from advantages, and its own sizes and switches. Sizes are the paper's."""

    policy_hidden_size: Annotated[int, WIDTH] = 256
    """Units of the policy's LSTM, which has one layer."""
    policy_num_read_keys: Annotated[int, Range(1, 1024)] = 1
    """Read keys of the policy."""
    policy_read_strength: Annotated[float | None, above(0, 500)] = None
    """Sharpness that the policy's reads start near; none takes ln N, a perfect match as heavy as all else together."""
    policy_associative_start: bool = False
    """Let the policy's reads start with what is like the present, in place of PyTorch's random keys."""
    policy_reward_keys: Annotated[int, Range(0, 4)] = 0
    """Read keys of the policy that are not learnt, up to four: what was rewarded, the same where it looked like now,
    what led to reward, the same where it looked like now. The paper's policy has none."""
    policy_gradient_to_latent: bool = False
    """Let the policy gradient shape the latent, as the paper does not."""
    policy_encoder: bool = False
    """Give the policy an encoder of its own, of the observation, the previous action and reward, which the policy
    gradient shapes. The paper's policy sees the latent alone."""
    policy_value_cost: Annotated[float, COST] = 0.0
    """Weight of the return loss of a value function of the policy's own, which sees all that the policy does and
    teaches it; 0 makes none, and V is the predictor's, as in the paper."""
    policy_latent_scale: Annotated[float, above(0, 100)] = 1.0
    """Latents enter the policy multiplied by this."""
    policy_read_scale: Annotated[float, above(0, 100)] = 1.0
    """What the policy reads enters it multiplied by this."""


class Policy(nn.Module):
    """The parts of the policy: an LSTM, what its reads are asked with, the head of the action's distribution, and an
    encoder and a value head of its own, where it has them.

    Args:
        latent_size: Z.
        word_size: W, width of what a read returns.
        memory_size: N, slots that it reads.
        encoder: Its own.
    """

    def __init__(
        self,
        config: PolicyConfig,
        actions: ActionDistribution,
        latent_size: int,
        word_size: int,
        memory_size: int,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.latent_scale, self.read_scale = config.policy_latent_scale, config.policy_read_scale
        hidden_size, num_keys = config.policy_hidden_size, config.policy_num_read_keys
        strength = config.policy_read_strength
        if strength is None:
            strength = math.log(max(memory_size, 2))
        self.encoding_size = 0 if encoder is None else encoder.output_size + actions.encoding_size + 1
        count = config.policy_reward_keys
        self.reward_keys = RewardKeys(latent_size, count) if count else None
        self.words_size = word_size * (num_keys + count)
        input_size = latent_size + self.words_size + self.encoding_size
        gain = config.policy_hidden_gain
        self.lstm = LSTM(input_size, hidden_size, 1)
        self.reader = Reader(hidden_size, word_size, num_keys, strength)
        self.head = mlp(input_size + hidden_size, (200,), actions.num_parameters, 0.1, gain)
        self.encoder = encoder
        self.value_head = mlp(input_size + hidden_size, (200,), 1, 1.0, gain) if config.policy_value_cost else None
        if config.policy_associative_start:
            start_associative(self.lstm, self.reader, latent_size)

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch S"] | None:
        """Return the policy's own encoding, if it has one; the reward in units that networks see."""
        if self.encoder is None:
            return None
        return torch.cat([self.encoder(observation), previous_action, previous_reward.unsqueeze(-1)], -1)

    def inputs(
        self, latent: Float[Tensor, "*batch Z"], words: Float[Tensor, "*batch KW"], encoding: Tensor | None
    ) -> list[Tensor]:
        """Return what enters LSTM and heads, part by part: latent and words read at their scales, and the encoding."""
        scaled = [
            x if scale == 1 else x * scale for x, scale in ((latent, self.latent_scale), (words, self.read_scale))
        ]
        return scaled if encoding is None else [*scaled, encoding]
