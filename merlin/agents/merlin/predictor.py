"""MERLIN's memory-based predictor: half of the agent, and a module for agents of one's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.experience import Unroll
from merlin.latents import LatentConfig, kl_nats, make_family, split_kl_nats
from merlin.memory import MemoryConfig, Reader, make_memory
from merlin.networks.actions import ActionDistribution
from merlin.networks.decoders import Decoder, DecoderConfig
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.entries import RunningMeans, moments, variance
from merlin.networks.heads import mlp
from merlin.networks.initialization import start_balanced, start_orthogonal
from merlin.networks.lstm import LSTM, LSTMState
from merlin.networks.products import Linear
from merlin.networks.scales import ReturnScale
from merlin.objectives.policy_gradient import masked_mean
from merlin.objectives.reconstruction import (
    ReconstructionConfig,
    explained,
    observation_loss,
    reconstruction_metrics,
    sum_entries,
)
from merlin.precision import as_type
from merlin.ranges import COST, WIDTH, Range, above

PRIOR_KL_COST = 0.05
"""Weight by which a categorical prior is taught unless configured, where observations are worth at least 3 nats; less
in proportion where they are worth less. A prior taught harder than its observations is sure before they are decoded,
and a posterior whose logits start from it learns no other."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(MemoryConfig, LatentConfig, ReconstructionConfig):
    """Sizes, costs and switches of the predictor. The sizes given here are the paper's."""

    hidden_size: Annotated[int, WIDTH] = 256
    """H, units of each LSTM layer of the predictor."""
    num_layers: Annotated[int, Range(1, 64)] = 2
    """LSTM layers of the predictor."""
    num_read_keys: Annotated[int, Range(1, 1024)] = 3
    """K, read keys of the predictor."""
    posterior_scale: Annotated[float, Range(0, 1000)] = 6.0
    """First weights of the posterior's mean, in PyTorch's usual ones. At 1 a latent starts with some fifteen times more
    noise than signal, which decoders take long to find; at 6 with two or three times more."""
    hidden_gain: Annotated[float | None, above(0, 1000)] = None
    """Start the tanh layers of prior, posterior and value orthogonal and this large, with every entry of an observation
    counting the same; PyTorch's almost linear start unless given. It pays with wide latents and decoders."""
    kl_cost: Annotated[float | None, COST] = None
    """Weight of the KL divergence; none scales it to the entropy of the observations (see `Merlin`)."""
    kl_reference_nats: Annotated[float, above(0)] = 8500.0
    """Nats of observation at which the automatic KL weight is 1: about those of the pixels of the paper. More of them
    make latents less noisy, which pays where many slots are read at once."""
    prior_kl_cost: Annotated[float | None, COST] = None
    """Weight of the KL divergence where it teaches the prior, the posterior being a constant: `kl_cost` then is what
    the posterior pays alone. None leaves the two one for a Gaussian, and takes 0.05 for a categorical latent, whose
    prior learns too late at the weights that leave its posterior free; less where observations are worth less than 3
    nats."""
    expectation_cost: Annotated[float, COST] = 0.0
    """Weight of the reconstruction of an observation from the prior's mean, before it is seen. The paper has none: the
    KL alone teaches its prior, which at a small weight takes more steps than a small run has."""
    free_nats: Annotated[float, COST] = 0.0
    """KL below this many nats per step costs nothing."""
    action_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of the previous action."""
    reward_cost: Annotated[float, COST] = 1.0
    """Weight of the reconstruction of the previous reward."""
    return_cost: Annotated[float, COST] = 1.0
    """Weight of the prediction of the return."""
    return_gradient_to_latent: bool = True
    """Let the return loss shape the latent, as the paper does."""
    running_scales: bool = False
    """Standardise vectors by their running mean and spread, see rewards in units of their size, and learn V in units of
    the returns' spread (PopArt), so that costs and rates mean the same in whatever units an environment is."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class PredictorState(NamedTuple):
    """State of the predictor: h, c; m; M and its weights; a_{t-1}, encoded."""

    lstm: LSTMState
    read_words: Float[Tensor, "B KW"]
    memory: Any
    action: Float[Tensor, "B E"]


class Inference(NamedTuple):
    """Parameters of prior and posterior, before and after an observation was seen, and the latent, a sample."""

    prior: Float[Tensor, "*batch Y"]
    posterior: Float[Tensor, "*batch Y"]
    latent: Float[Tensor, "*batch Z"]


class Predictor(nn.Module):
    """Infers a latent from each observation, remembers it, and predicts all it can from it.

        prior      = prior_network(h, m)
        posterior  = prior + posterior_network(e, h, m, prior)          e encodes o_t, a_{t−1}, r_{t−1}
        z          ~ posterior
        h, c       = lstm([z, a, m]);   m, w = read(M, keys(h))
        M          = write(M, sg(z), w)

    Wayne et al. 2018, arXiv:1803.10760, Algorithm 1; the equations stand whole in `merlin.agents.merlin.Merlin`.
    One step is `encode`, `perceive`, then, once the action is chosen, `advance`.
    """

    observation_nats: Float[Tensor, ""]
    """Running mean of what a perfect reconstruction is worth."""

    def __init__(self, spaces: dict[str, Space], actions: ActionDistribution, config: PredictorConfig) -> None:
        super().__init__()
        self.spaces, self.actions, self.config = spaces, actions, config
        self.latents = make_family(config)
        latent_size, action_size = self.latents.size, actions.encoding_size
        self.memory = make_memory(latent_size, config)
        words_size = config.num_read_keys * self.memory.slot_size
        context_size = config.num_layers * config.hidden_size + words_size

        double, gain = self.latents.num_parameters, config.hidden_gain
        self.encoder = Encoder(spaces, config.encoder, config.running_scales)
        self.prior_network = mlp(context_size, (double, double), double, hidden_gain=gain)
        # The first layer of the posterior network, split: what depends on the observation alone, and the rest.
        self.posterior_input = Linear(self.encoder.output_size + action_size + 1, double, bias=False)
        self.posterior_context = Linear(context_size + double, double)
        correction = mlp(double, (double,), double, hidden_gain=gain)
        self.posterior_network = nn.Sequential(nn.Tanh(), correction)
        last = correction[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[:latent_size].mul_(config.posterior_scale)
        if gain is not None:
            start_balanced(self.posterior_input, [*self.encoder.parts, (action_size, 1), (1, 1)], gain)
            start_orthogonal(self.posterior_context, gain)
        self.lstm = LSTM(latent_size + action_size + words_size, config.hidden_size, config.num_layers)
        self.reader = Reader(self.lstm.output_size, self.memory.slot_size, config.num_read_keys)
        self.value_head = mlp(latent_size + actions.num_parameters, (200,), 1, hidden_gain=gain)
        self.advantage_head = mlp(latent_size + action_size, (50,), 1, hidden_gain=gain)
        self.decoder = Decoder(spaces, latent_size, config.decoder, config.running_scales)
        self.action_decoder = Linear(latent_size, action_size)
        self.reward_decoder = Linear(latent_size, 1)
        self.return_scale = ReturnScale(config.running_scales)
        self.register_buffer("observation_nats", torch.tensor(0.0))
        self.reward_marginal = RunningMeans(2)

    def initial_state(self, batch_size: int) -> PredictorState:
        """Return zeros: nothing seen, nothing remembered."""
        zeros = self.observation_nats.new_zeros
        return PredictorState(
            self.lstm.initial_state(batch_size),
            zeros(batch_size, self.config.num_read_keys * self.memory.slot_size),
            self.memory.empty(batch_size, self.observation_nats),
            zeros(batch_size, self.actions.encoding_size),
        )

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return the posterior network's view of the observation, before it knows the context.

        Args:
            previous_action: As `ActionDistribution.encode` gives it; zeros where an episode starts.
            previous_reward: 0 where an episode starts.
        """
        reward = self.return_scale.reward(as_type(previous_reward, previous_action.dtype))
        encoding = torch.cat([self.encoder(observation), previous_action, reward.unsqueeze(-1)], -1)
        return self.posterior_input(encoding)

    def prior(self, state: PredictorState) -> Float[Tensor, "B Y"]:
        """Return the parameters of the next latent's distribution, before anything of it is seen."""
        return self.prior_network(self._context(state))

    def perceive(
        self, code: Float[Tensor, "B C"] | None, noise: Float[Tensor, "B Z"], state: PredictorState
    ) -> Inference:
        """Return prior, posterior and a sample of it.

        Args:
            code: From `encode`; None where nothing is seen, as in imagination: the posterior is the prior then.
            noise: As the latent's family draws it.
        """
        context = self._context(state)
        prior = posterior = self.prior_network(context)
        if code is not None:
            seen = code + self.posterior_context(torch.cat([context, prior], -1))
            posterior = prior + self.posterior_network(seen)
        prior, posterior = (
            as_type(prior, noise.dtype),
            as_type(posterior, noise.dtype),
        )  # also where autocast chose another
        return Inference(prior, posterior, self.latents.from_parameters(posterior).sample(noise))

    def advance(
        self,
        latent: Float[Tensor, "B Z"],
        action: Float[Tensor, "B E"],
        state: PredictorState,
        slot: Int[Tensor, "B"] | None = None,
    ) -> tuple[PredictorState, Float[Tensor, "B K _"], Int[Tensor, "B"] | None]:
        """Return the state after recurrence, read and write, the read weights, and the slot written.

        Args:
            action: The one taken, encoded.
            slot: Where to write, where a step is taken again.
        """
        lstm = self.lstm.step(torch.cat([latent, action, state.read_words], -1), state.lstm)
        words, weights = self.memory.read(state.memory, *self.reader(lstm.hidden))
        memory, slot = self.memory.write(state.memory, latent.detach(), weights.detach(), slot)
        return PredictorState(lstm, words.flatten(1), memory, action), weights, slot

    @torch.no_grad()
    def read_strengths(self, state: PredictorState) -> Float[Tensor, "B K"]:
        """Return how sharp the reads were that the state comes from."""
        return self.reader(state.lstm.hidden)[1]

    def _context(self, state: PredictorState) -> Float[Tensor, "B C"]:
        """Return what prior and posterior know before the observation: [h, m]."""
        return torch.cat([state.lstm.hidden, state.read_words], -1)

    def value(
        self, latent: Float[Tensor, "*batch Z"], policy_parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Return V, which sees the policy but teaches it nothing."""
        policy = self.actions.log_probs(policy_parameters).detach()
        return self.return_scale.value(self.value_head(torch.cat([latent, policy], -1)).squeeze(-1))

    def loss(
        self,
        inferences: Inference,
        unroll: Unroll,
        policy_parameters: Float[Tensor, "T B A"],
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        returns: Float[Tensor, "T B"],
    ) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], dict[str, Tensor]]:
        """Return the predictor's loss, V, and metrics.

        Args:
            inferences: Those of all rows of the window.
            actions: Those taken, encoded.
            previous_actions: Those of the rows before, encoded; zeros where an episode starts.
            returns: R, the window's bootstrapped returns.
        """
        config, latent = self.config, inferences.latent
        prior, posterior = map(self.latents.from_parameters, (inferences.prior, inferences.posterior))

        def mean(x: Float[Tensor, "T B"]) -> Float[Tensor, ""]:
            return masked_mean(x, unroll.is_valid)

        judged = latent if config.return_gradient_to_latent else latent.detach()
        value = self.value(judged, policy_parameters)
        unit = self.return_scale.unit
        advantage = self.advantage_head(torch.cat([judged, actions], -1)).squeeze(-1)  # in units of returns
        error = (returns - value) / unit
        return_loss = 0.5 * (error.square() + (error.detach() - advantage).square())

        kl_cost = self._kl_cost(unroll)
        reconstruction, metrics = self._reconstruction(latent, previous_actions, unroll, mean)
        kl = kl_nats(posterior, prior)
        total = reconstruction + config.return_cost * return_loss
        prior_kl_cost = config.prior_kl_cost
        if prior_kl_cost is None and config.latent == "categorical":
            prior_kl_cost = PRIOR_KL_COST * (self.observation_nats / 3).clamp(max=1)
        if prior_kl_cost is None:
            total = total + kl_cost * (kl - config.free_nats).clamp(min=0)
        else:
            to_prior, to_posterior = split_kl_nats(posterior, prior)
            total = total + prior_kl_cost * to_prior + kl_cost * (to_posterior - config.free_nats).clamp(min=0)
        if config.expectation_cost:
            loss, nats = observation_loss(self.decoder, config, self.decoder(prior.mean), unroll)
            total = total + config.expectation_cost * loss
            metrics["expected_nats"] = mean(sum_entries(nats.values(), unroll.reward))
        metrics |= {"kl_nats": mean(kl), "kl_cost": kl_cost, "observation_nats": self.observation_nats.clone()}
        return total, value, {name: x.detach() for name, x in metrics.items()}

    def update_scales(
        self, unroll: Unroll, returns: Float[Tensor, "T B"], other_heads: Sequence[tuple[nn.Module, bool]] = ()
    ) -> None:
        """Let running scales take in a window that was learnt from.

        Args:
            other_heads: More last layers in units of returns, as `ReturnScale.update` takes them.
        """
        self.encoder.update_scales(unroll.observation, unroll.is_valid)
        self.decoder.update_scales(unroll.observation, unroll.is_valid)
        heads = [(self.value_head[-1], True), (self.advantage_head[-1], False), *other_heads]
        self.return_scale.update(unroll.reward, returns, unroll.is_valid, heads)

    def _reconstruction(
        self,
        latent: Float[Tensor, "T B Z"],
        previous_actions: Float[Tensor, "T B E"],
        unroll: Unroll,
        mean: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B"], dict[str, Tensor]]:
        """Return the weighted reconstruction loss, and each entry's nats and accuracy."""
        config, decoded = self.config, self.decoder(latent)
        loss, nats = observation_loss(self.decoder, config, decoded, unroll)
        metrics = reconstruction_metrics(self.decoder, decoded, nats, unroll)

        if config.action_cost:
            parameters, known = self.action_decoder(latent), unroll.is_valid & ~unroll.is_first
            action_nats = self.actions.reconstruction_nats(parameters, previous_actions).masked_fill(unroll.is_first, 0)
            loss = loss + config.action_cost * action_nats
            metrics["action_nats"] = masked_mean(action_nats, known)
            accuracy = self.actions.reconstruction_accuracy(parameters, previous_actions)
            metrics["action_accuracy"] = masked_mean(accuracy, known)
        if config.reward_cost:
            reward = self.return_scale.reward(unroll.previous_reward)
            reward_nats = 0.5 * (self.reward_decoder(latent).squeeze(-1) - reward).square()
            loss = loss + config.reward_cost * reward_nats
            metrics["reward_nats"] = mean(reward_nats)
            metrics["reward_explained"] = self._reward_explained(reward, reward_nats.detach(), unroll)
        return loss, metrics

    def _reward_explained(
        self, reward: Float[Tensor, "T B"], nats: Float[Tensor, "T B"], unroll: Unroll
    ) -> Float[Tensor, ""]:
        """Return the part of the variance of rewards that is decoded, of steps that follow one."""
        known = unroll.is_valid & ~unroll.is_first
        if self.training:
            self.reward_marginal.update(moments(reward.double().reshape(-1, 1), known), known)
        return explained(masked_mean(nats, known), 0.5 * variance(self.reward_marginal.means).sum())

    def _kl_cost(self, unroll: Unroll) -> Float[Tensor, ""]:
        """Return the weight of the KL divergence, from the observations' measured entropy unless configured."""
        if self.training:
            rate = torch.where(self.observation_nats == 0, 1.0, 0.01)
            marginals = self.decoder.update_marginals(unroll.observation, unroll.is_valid)
            worth = sum_entries(marginals.values(), self.observation_nats)
            some = distributed.total(unroll.is_valid.any().float()).clamp(max=1)
            self.observation_nats += rate * some * (worth - self.observation_nats)
        if self.config.kl_cost is not None:
            return torch.as_tensor(self.config.kl_cost)
        return (self.observation_nats.clamp(min=4.25) / self.config.kl_reference_nats).clamp(max=1.0)
