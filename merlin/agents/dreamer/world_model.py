"""DreamerV2's world model: a recurrent state-space model, and what is predicted of its states."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, elu

from merlin.experience import Unroll
from merlin.latents import LatentConfig, make_family, split_kl_nats
from merlin.networks.actions import ActionDistribution
from merlin.networks.decoders import Decoder, DecoderConfig
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.entries import RunningMeans, moments, variance
from merlin.networks.gru import LayerNormGRU
from merlin.networks.heads import mlp
from merlin.networks.initialization import start_glorot, start_neutral
from merlin.networks.products import Linear
from merlin.networks.scales import ReturnScale
from merlin.objectives.columns import masked_mean, mean
from merlin.objectives.reconstruction import (
    ReconstructionConfig,
    explained,
    observation_loss,
    reconstruction_metrics,
)
from merlin.precision import as_type
from merlin.ranges import COST, WIDTH, Range


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig(LatentConfig, ReconstructionConfig):
    """Sizes and costs of the world model. What is given here is the paper's for Atari."""

    latent: Literal["categorical", "gaussian"] = "categorical"
    """Family of the latents."""
    latent_size: Annotated[int, WIDTH] = 32
    """Entries of a Gaussian latent."""
    latent_classes: Annotated[int, Range(2, 65_536)] = 32
    """C, classes of each categorical variable."""
    latent_uniform_mix: Annotated[float, Range(0, 0.99)] = 0.0
    """Part of the uniform distribution in categorical latents. 0.01 keeps KLs finite."""
    deterministic_size: Annotated[int, WIDTH] = 600
    """D, units of the recurrent state."""
    hidden_size: Annotated[int, WIDTH] = 600
    """Units of the layers before the recurrence, prior and posterior."""
    head_size: Annotated[int, WIDTH] = 400
    """Units of each layer of the heads of reward, discount, policy and value, and of the one before decoders."""
    head_layers: Annotated[int, Range(1, 64)] = 4
    """Layers of those heads."""
    observe_reward: bool = False
    """Let the encoder see the previous reward, as the paper's does not: where an outcome is in no picture the agent
    could not know it."""
    kl_cost: Annotated[float, COST] = 0.1
    """Weight of the KL divergence."""
    kl_balance: Annotated[float | None, Range(0, 1)] = 0.8
    """Part of the KL's gradient that teaches the prior; none is the plain KL."""
    free_nats: Annotated[float, COST] = 0.0
    """KL below this many nats, of a batch's mean, costs nothing. Above what a symbolic observation is worth, the prior
    is never taught."""
    reward_cost: Annotated[float, COST] = 1.0
    """Weight of the prediction of rewards. Half the squared error of rare rewards of 1 is next to nothing: 20 pays."""
    discount_cost: Annotated[float, COST] = 1.0
    """Weight of the prediction of discounts, 0 after a termination. The authors' code has 5."""
    reward_transform: Literal["identity", "tanh"] = "tanh"
    """Of rewards before they are predicted and imagined. tanh is the paper's for Atari."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class WorldModel(nn.Module):
    """What is seen as a latent, what follows from an action, and what is predicted of both; F = Z + D.

        h'         = gru(elu(W [z, a]), h)
        prior      = prior_network(h)
        posterior  = posterior_network([h, encoder(o)])               no prior in it, other than MERLIN's
        s          = [z, h]                                           what all heads read

    Hafner et al. 2021, arXiv:2010.02193, Eq 1.
    """

    def __init__(
        self, spaces: dict[str, Space], actions: ActionDistribution, config: WorldModelConfig, running_scales: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.latents = make_family(config)
        size, hidden = self.latents.size, config.hidden_size
        num_parameters, deterministic = self.latents.num_parameters, config.deterministic_size
        self.feature_size = size + deterministic
        self.encoder = Encoder(spaces, config.encoder, running_scales)
        # The posterior network's hidden layer, split: what depends on the observation alone, and the rest.
        self.posterior_input = Linear(self.encoder.output_size + config.observe_reward, hidden, bias=False)
        self.posterior_context = Linear(deterministic, hidden)
        self.posterior_output = Linear(hidden, num_parameters)
        self.prior_network = mlp(deterministic, (hidden,), num_parameters, activation=nn.ELU)
        self.recurrent_input = Linear(size + actions.encoding_size, hidden)
        self.gru = LayerNormGRU(hidden, deterministic)
        layers = (config.head_size,) * config.head_layers
        self.reward_head = mlp(self.feature_size, layers, 1, activation=nn.ELU)
        self.discount_head = mlp(self.feature_size, layers, 1, activation=nn.ELU)
        self.before_decoder = Linear(self.feature_size, config.head_size)
        for part in [x for name, x in self.named_children() if name != "encoder"]:
            start_glorot(part)
        for head in (self.reward_head, self.discount_head):
            start_neutral(head)
        self.decoder = Decoder(spaces, config.head_size, config.decoder, running_scales)
        self.reward_scale = ReturnScale(running_scales)
        self.reward_marginal = RunningMeans(2)

    def encode(
        self, observation: dict[str, Tensor], previous_reward: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch C"]:
        """Return the posterior network's view of the observation, before it knows the recurrent state."""
        seen = self.encoder(observation)
        if self.config.observe_reward:
            seen = torch.cat([seen, self.transform(previous_reward).unsqueeze(-1)], -1)
        return self.posterior_input(seen)

    def recur(
        self, latent: Float[Tensor, "*batch Z"], action: Float[Tensor, "*batch E"], hidden: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch D"]:
        """Return h' after an action, encoded."""
        return self.gru(elu(self.recurrent_input(torch.cat([latent, action], -1))), hidden)

    def posterior(
        self, code: Float[Tensor, "*batch C"], hidden: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch Y"]:
        """Return the parameters of the posterior."""
        return as_type(self.posterior_output(elu(code + self.posterior_context(hidden))), hidden.dtype)

    def prior(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch Y"]:
        """Return the parameters of the prior."""
        return as_type(self.prior_network(hidden), hidden.dtype)

    def split(self, features: Float[Tensor, "*batch F"]) -> tuple[Float[Tensor, "*batch Z"], Float[Tensor, "*batch D"]]:
        """Return z and h."""
        latent, hidden = features.split([self.latents.size, self.config.deterministic_size], -1)
        return latent, hidden

    def imagine(
        self,
        features: Float[Tensor, "I F"],
        action: Float[Tensor, "I E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "I F"]:
        """Return what follows from an action, encoded, where nothing is seen: z is a sample of the prior."""
        hidden = self.recur(features[..., : self.latents.size], action, features[..., self.latents.size :])
        prior = self.latents.from_parameters(self.prior(hidden))
        noise = self.latents.draw_noise(len(hidden), hidden, generator)
        return torch.cat([prior.sample(noise), hidden], -1)

    def reward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        """Return the reward expected of having come to a state, in the units that it is predicted in."""
        return self.reward_head(features).squeeze(-1)

    def discount_logit(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        """Return the logit of the discount expected of having come to a state."""
        return self.discount_head(features).squeeze(-1)

    def transform(self, reward: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return rewards as they are predicted."""
        reward = self.reward_scale.reward(reward)
        return torch.tanh(reward) if self.config.reward_transform == "tanh" else reward

    def decode(self, features: Float[Tensor, "*batch F"]) -> dict[str, Float[Tensor, "*batch _"]]:
        """Return the parameters of each entry's distribution."""
        return self.decoder(elu(self.before_decoder(features)))

    def loss(
        self,
        posterior: Float[Tensor, "T B Y"],
        features: Float[Tensor, "T B F"],
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss of a window, and metrics.

            Σ reconstruction nats + reward_cost · ½ (r̂ − f(r))² + discount_cost · BCE(ĝ, discount)
            + kl_cost · (α · max(KL[sg post ‖ prior], free) + (1 − α) · max(KL[post ‖ sg prior], free))

        Rows whose action the environment ignored are observations of how an episode ended, and are decoded like others.
        """
        config = self.config
        seen = unroll._replace(is_valid=torch.ones_like(unroll.is_valid))
        if self.training:
            self.decoder.update_marginals(unroll.observation, seen.is_valid)
        decoded = self.decode(features)
        reconstruction, nats = observation_loss(self.decoder, config, decoded, seen)
        metrics = reconstruction_metrics(self.decoder, decoded, nats, seen)

        arrived = self.arrivals(features, unroll.is_first, actions, generator)
        reward, target = self.reward(arrived), self.transform(unroll.reward)
        reward_nats = 0.5 * (reward - target).square()
        logit = self.discount_logit(arrived)
        discount_nats = binary_cross_entropy_with_logits(logit, unroll.discount, reduction="none")

        after = self.latents.from_parameters(posterior)
        before = self.latents.from_parameters(self.prior(self.split(features)[1]))
        to_prior, to_posterior = (mean(x) for x in split_kl_nats(after, before))
        if config.kl_balance is None:
            kl_loss = mean(after.kl_nats(before)).clamp(min=config.free_nats)
        else:
            balance, free = config.kl_balance, config.free_nats
            kl_loss = balance * to_prior.clamp(min=free) + (1 - balance) * to_posterior.clamp(min=free)
        total = (
            mean(reconstruction)
            + config.kl_cost * kl_loss
            + config.reward_cost * masked_mean(reward_nats, unroll.is_valid)
            + config.discount_cost * masked_mean(discount_nats, unroll.is_valid)
        )
        with torch.no_grad():
            said = mean(after.kl_nats(after.marginal()))
            metrics |= {
                "kl_nats": to_prior,
                "prior_explained": explained(to_prior, said),
                "posterior_entropy_nats": mean(after.entropy_nats()),
                "prior_entropy_nats": mean(before.entropy_nats()),
                "reward_nats": masked_mean(reward_nats, unroll.is_valid),
                "reward_explained": self._reward_explained(target, reward_nats, unroll),
                "discount_nats": masked_mean(discount_nats, unroll.is_valid),
                "model_loss": total,
            }
        return total, metrics

    def arrivals(
        self,
        features: Float[Tensor, "T B F"],
        is_first: Bool[Tensor, "T B"],
        actions: Float[Tensor, "T B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "T B F"]:
        """Return the state that each row's action led to, which tells of its reward and discount.

        It is the next row's, where that row is in the window and of the same episode; else it is imagined, without a
        reset. So nothing crosses an episode, and no final observation is needed.
        """
        follows = torch.cat([~is_first[1:], torch.zeros_like(is_first[:1])])
        rows, columns = (~follows).nonzero(as_tuple=True)
        imagined = self.imagine(features[rows, columns], actions[rows, columns], generator)
        return torch.cat([features[1:], features[-1:]]).index_put((rows, columns), imagined)

    def update_scales(self, unroll: Unroll) -> None:
        """Let running scales take in a window that was experienced."""
        self.encoder.update_scales(unroll.observation, unroll.is_valid)
        self.decoder.update_scales(unroll.observation, unroll.is_valid)
        self.reward_scale.update(unroll.reward, unroll.reward, unroll.is_valid, [])

    def _reward_explained(
        self, target: Float[Tensor, "T B"], nats: Float[Tensor, "T B"], unroll: Unroll
    ) -> Float[Tensor, ""]:
        """Return the part of the variance of rewards that is predicted."""
        if self.training:
            self.reward_marginal.update(moments(target.double().reshape(-1, 1), unroll.is_valid), unroll.is_valid)
        return explained(masked_mean(nats, unroll.is_valid), 0.5 * variance(self.reward_marginal.means).sum())
