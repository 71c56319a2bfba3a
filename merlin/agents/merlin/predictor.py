"""MERLIN's memory-based predictor: half of the agent, and a module for agents of one's own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from merlin import memory as memories
from merlin.experience import Unroll
from merlin.latents import DiagonalGaussian, kl_nats
from merlin.memory import MemoryState, Reader
from merlin.networks.actions import ActionDistribution
from merlin.networks.decoders import Decoder, DecoderConfig
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.heads import mlp, start_balanced, start_orthogonal
from merlin.networks.lstm import LSTM, LSTMState
from merlin.networks.spaces import kind
from merlin.objectives.policy_gradient import masked_mean


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Sizes, costs and switches of the predictor. The sizes given here are the paper's."""

    latent_size: int = 200
    """Z, entries of the state variable."""
    hidden_size: int = 256
    """H, units of each LSTM layer of the predictor."""
    num_layers: int = 2
    """LSTM layers of the predictor."""
    memory_size: int = 1350
    """N, slots."""
    num_read_keys: int = 3
    """K, read keys of the predictor."""
    retroactive_discount: float | None = 0.96
    """g of the retroactive half of the memory; none leaves it out."""
    mask_unwritten: bool = True
    """Keep slots that were never written from being read."""
    top_k: int | None = None
    """Read only this many slots for each key; none reads all."""
    posterior_scale: float = 6.0
    """First weights of the posterior's mean, in PyTorch's usual ones. At 1 a latent starts with some fifteen times more
    noise than signal, which decoders take long to find; at 6 with two or three times more."""
    hidden_gain: float | None = None
    """Start the tanh layers of prior, posterior and value orthogonal and this large, with every entry of an observation
    counting the same; PyTorch's almost linear start unless given. It pays with wide latents and decoders."""
    kl_cost: float | None = None
    """Weight of the KL divergence; none scales it to the entropy of the observations (see `Merlin`)."""
    kl_reference_nats: float = 8500.0
    """Nats of observation at which the automatic KL weight is 1: about those of the pixels of the paper. More of them
    make latents less noisy, which pays where many slots are read at once."""
    expectation_cost: float = 0.0
    """Weight of the reconstruction of an observation from the prior's mean, before it is seen. The paper has none: the
    KL alone teaches its prior, which at a small weight takes more steps than a small run has."""
    free_nats: float = 0.0
    """KL below this many nats per step costs nothing."""
    image_cost: float = 1.0
    """Weight of the reconstruction of images."""
    symbols_cost: float = 1.0
    """Weight of the reconstruction of symbolic grids."""
    vector_cost: float = 1.0
    """Weight of the reconstruction of vectors."""
    category_cost: float = 1.0
    """Weight of the reconstruction of categories."""
    text_cost: float = 1.0
    """Weight of the reconstruction of texts."""
    action_cost: float = 1.0
    """Weight of the reconstruction of the previous action."""
    reward_cost: float = 1.0
    """Weight of the reconstruction of the previous reward."""
    return_cost: float = 1.0
    """Weight of the prediction of the return."""
    return_gradient_to_latent: bool = True
    """Let the return loss shape the latent, as the paper does."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class PredictorState(NamedTuple):
    """What the predictor carries from step to step: h, c; m; M and its weights."""

    lstm: LSTMState
    read_words: Float[Tensor, "B KW"]
    memory: MemoryState


class Thought(NamedTuple):
    """What the predictor makes of one observation, before the agent acts."""

    prior: DiagonalGaussian
    posterior: DiagonalGaussian
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

    def __init__(self, spaces: dict[str, Space], actions: ActionDistribution, config: PredictorConfig) -> None:
        super().__init__()
        self.spaces, self.actions, self.config = spaces, actions, config
        latent_size, action_size = config.latent_size, actions.encoding_size
        self.word_size = latent_size * (1 if config.retroactive_discount is None else 2)
        words_size = config.num_read_keys * self.word_size
        context_size = config.num_layers * config.hidden_size + words_size

        double, gain = 2 * latent_size, config.hidden_gain
        self.encoder = Encoder(spaces, config.encoder)
        self.prior_network = mlp(context_size, (double, double), double, hidden_gain=gain)
        # The first layer of the posterior network, split: what depends on the observation alone, and the rest.
        self.posterior_input = nn.Linear(self.encoder.output_size + action_size + 1, double, bias=False)
        self.posterior_context = nn.Linear(context_size + double, double)
        self.posterior_network = nn.Sequential(nn.Tanh(), mlp(double, (double,), double, hidden_gain=gain))
        with torch.no_grad():
            self.posterior_network[-1][-1].weight[:latent_size].mul_(config.posterior_scale)
        if gain is not None:
            start_balanced(self.posterior_input, [*self.encoder.parts, (action_size, 1), (1, 1)], gain)
            start_orthogonal(self.posterior_context, gain)
        self.lstm = LSTM(latent_size + action_size + words_size, config.hidden_size, config.num_layers)
        self.reader = Reader(self.lstm.output_size, self.word_size, config.num_read_keys)
        self.value_head = mlp(latent_size + actions.num_parameters, (200,), 1, hidden_gain=gain)
        self.advantage_head = mlp(latent_size + action_size, (50,), 1, hidden_gain=gain)
        self.decoder = Decoder(spaces, latent_size, config.decoder)
        self.action_decoder = nn.Linear(latent_size, action_size)
        self.reward_decoder = nn.Linear(latent_size, 1)
        self.register_buffer("observation_nats", torch.tensor(0.0))

    def initial_state(self, batch_size: int) -> PredictorState:
        """Return zeros: nothing seen, nothing remembered."""
        config, zeros = self.config, self.observation_nats.new_zeros
        return PredictorState(
            self.lstm.initial_state(batch_size),
            zeros(batch_size, config.num_read_keys * self.word_size),
            memories.initial_state(batch_size, config.memory_size, self.word_size, device=self.observation_nats.device),
        )

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return what the posterior network makes of the observation before it knows the context.

        Args:
            previous_action: As `ActionDistribution.encode` gives it; zeros where an episode starts.
            previous_reward: 0 where an episode starts.
        """
        encoding = torch.cat([self.encoder(observation), previous_action, previous_reward.unsqueeze(-1)], -1)
        return self.posterior_input(encoding)

    def prior(self, state: PredictorState) -> DiagonalGaussian:
        """Return what the next latent will be, before anything of it is seen."""
        context = torch.cat([state.lstm.hidden, state.read_words], -1)
        return DiagonalGaussian(*self.prior_network(context).chunk(2, -1))

    def perceive(self, code: Float[Tensor, "B C"], noise: Float[Tensor, "B Z"], state: PredictorState) -> Thought:
        """Return prior, posterior and a sample of it, made with standard normal `noise`."""
        context = torch.cat([state.lstm.hidden, state.read_words], -1)
        prior = self.prior_network(context)
        correction = self.posterior_network(code + self.posterior_context(torch.cat([context, prior], -1)))
        posterior = DiagonalGaussian(*(prior + correction).chunk(2, -1))
        return Thought(DiagonalGaussian(*prior.chunk(2, -1)), posterior, posterior.sample(noise))

    def advance(
        self, latent: Float[Tensor, "B Z"], action: Float[Tensor, "B E"], state: PredictorState
    ) -> tuple[PredictorState, Float[Tensor, "B K N"]]:
        """Return the state after recurrence, read and write, and the read weights. `action` is encoded."""
        lstm = self.lstm.step(torch.cat([latent, action, state.read_words], -1), state.lstm)
        words, weights = self.read(self.reader, lstm.hidden, state.memory)
        memory = memories.write(state.memory, latent.detach(), weights.detach(), self.config.retroactive_discount)
        return PredictorState(lstm, words, memory), weights

    def recurrent_weights(self) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """Return the predictor's share of `merlin.agents.merlin.recurrence.Weights`, and its further LSTM layers."""
        latent_size, action_size = self.config.latent_size, self.actions.encoding_size
        first, *further = self.lstm.cells
        context_size = self.prior_network[0].in_features
        posterior_context, posterior_prior = self.posterior_context.weight.split([context_size, 2 * latent_size], -1)
        words_start = latent_size + action_size
        nothing = first.weight_hh.new_zeros(first.weight_hh.shape[0], self.lstm.output_size - self.lstm.hidden_size)
        gates = torch.cat([first.weight_hh, nothing, first.weight_ih[:, words_start:]], -1)
        prior, posterior = self.prior_network, self.posterior_network[1]
        weights = {
            "context": torch.cat([prior[0].weight, posterior_context, gates]),
            "context_bias": torch.cat([prior[0].bias, self.posterior_context.bias, gates.new_zeros(gates.shape[0])]),
            "prior_second": prior[2].weight,
            "prior_second_bias": prior[2].bias,
            "prior_last": prior[4].weight,
            "prior_last_bias": prior[4].bias,
            "posterior_prior": posterior_prior,
            "posterior_second": posterior[0].weight,
            "posterior_second_bias": posterior[0].bias,
            "posterior_last": posterior[2].weight,
            "posterior_last_bias": posterior[2].bias,
            "latent": first.weight_ih[:, :latent_size],
            "reader": self.reader.project.weight,
            "reader_bias": self.reader.project.bias,
        }
        layers = [
            (torch.cat([layer.weight_ih, layer.weight_hh], -1), layer.bias_ih + layer.bias_hh) for layer in further
        ]
        return weights, layers

    def action_gates(self, actions: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch G"]:
        """Return what encoded actions are to the gates of the first LSTM layer, with their bias."""
        cell, start = self.lstm.cells[0], self.config.latent_size
        return F.linear(actions, cell.weight_ih[:, start : start + actions.shape[-1]], cell.bias_ih + cell.bias_hh)

    def read(
        self, reader: Reader, hidden: Float[Tensor, "B H"], memory: MemoryState
    ) -> tuple[Float[Tensor, "B KW"], Float[Tensor, "B K N"]]:
        """Return what `reader` finds in the memory, which stays as it is, and its read weights."""
        readable = memories.written(memory) if self.config.mask_unwritten else None
        words, weights = memories.read(memory.memory, *reader(hidden), readable, self.config.top_k)
        return words.flatten(1), weights

    def value(
        self, latent: Float[Tensor, "*batch Z"], policy_parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Return V, which sees the policy but teaches it nothing."""
        policy = self.actions.log_probs(policy_parameters).detach()
        return self.value_head(torch.cat([latent, policy], -1)).squeeze(-1)

    def loss(
        self,
        thoughts: Thought,
        unroll: Unroll,
        policy_parameters: Float[Tensor, "T B A"],
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        returns: Float[Tensor, "T B"],
    ) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], dict[str, Tensor]]:
        """Return the predictor's loss, V, and what to report.

        Args:
            thoughts: Those of all rows of the window.
            actions: Those taken, encoded.
            previous_actions: Those of the rows before, encoded; zeros where an episode starts.
            returns: R, the window's bootstrapped returns.
        """
        config, latent = self.config, thoughts.latent

        def mean(x: Float[Tensor, "T B"]) -> Float[Tensor, ""]:
            return masked_mean(x, unroll.is_valid)

        judged = latent if config.return_gradient_to_latent else latent.detach()
        value = self.value(judged, policy_parameters)
        advantage = self.advantage_head(torch.cat([judged, actions], -1)).squeeze(-1)
        return_loss = 0.5 * ((returns - value).square() + (returns - value.detach() - advantage).square())

        kl_cost = self._kl_cost(unroll)
        reconstruction, metrics = self._reconstruction(latent, previous_actions, unroll, mean)
        kl = kl_nats(thoughts.posterior, thoughts.prior)
        total = reconstruction + config.return_cost * return_loss + kl_cost * (kl - config.free_nats).clamp(min=0)
        if config.expectation_cost:
            loss, nats = self._observation_loss(self.decoder(thoughts.prior.mean), unroll)
            total = total + config.expectation_cost * loss
            metrics["expected_nats"] = mean(sum(nats.values()))
        metrics |= {"kl_nats": mean(kl), "kl_cost": kl_cost, "observation_nats": self.observation_nats.clone()}
        return total, value, metrics

    def _reconstruction(
        self,
        latent: Float[Tensor, "T B Z"],
        previous_actions: Float[Tensor, "T B E"],
        unroll: Unroll,
        mean: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B"], dict[str, Tensor]]:
        """Return the weighted reconstruction loss, and each entry's nats and accuracy."""
        config = self.config
        decoded = self.decoder(latent)
        total, nats = self._observation_loss(decoded, unroll)
        with torch.no_grad():
            floor = self.decoder.floor_nats(unroll.observation)
            accuracy = self.decoder.accuracy(decoded, unroll.observation)
            excess = sum(mean(x - floor[name]) for name, x in nats.items())
            metrics = {f"{name}_nats": mean(x) for name, x in nats.items()}
            metrics |= {f"{name}_accuracy": mean(x) for name, x in accuracy.items()}
            recall = self.decoder.recall(decoded, unroll.observation)
            metrics |= {f"{name}_recall": x for name, x in recall.items()}
            metrics["observation_explained"] = 1 - excess / self.observation_nats.clamp(min=1e-6)

        if config.action_cost:
            parameters, known = self.action_decoder(latent), unroll.is_valid & ~unroll.is_first
            action_nats = self.actions.reconstruction_nats(parameters, previous_actions).masked_fill(unroll.is_first, 0)
            total = total + config.action_cost * action_nats
            metrics["action_nats"] = masked_mean(action_nats, known)
            accuracy = self.actions.reconstruction_accuracy(parameters, previous_actions)
            metrics["action_accuracy"] = masked_mean(accuracy, known)
        if config.reward_cost:
            reward_nats = 0.5 * (self.reward_decoder(latent).squeeze(-1) - unroll.previous_reward).square()
            total = total + config.reward_cost * reward_nats
            metrics["reward_nats"] = mean(reward_nats)
        return total, metrics

    def _observation_loss(
        self, decoded: dict[str, Tensor], unroll: Unroll
    ) -> tuple[Float[Tensor, "T B"], dict[str, Float[Tensor, "T B"]]]:
        """Return the weighted loss of what was decoded against what was observed, and each entry's nats."""
        nats = self.decoder.nats(decoded, unroll.observation)
        losses = self.decoder.losses(decoded, unroll.observation, nats)
        return sum(getattr(self.config, f"{kind(self.spaces[name])}_cost") * x for name, x in losses.items()), nats

    def _kl_cost(self, unroll: Unroll) -> Float[Tensor, ""]:
        """Return the weight of the KL divergence, from the observations' measured entropy unless configured."""
        if self.training:
            rate = torch.where(self.observation_nats == 0, 1.0, 0.01)
            valid = {name: x[unroll.is_valid] for name, x in unroll.observation.items()}
            self.observation_nats += rate * (sum(self.decoder.chance_nats(valid).values()) - self.observation_nats)
        if self.config.kl_cost is not None:
            return torch.as_tensor(self.config.kl_cost)
        return (self.observation_nats.clamp(min=4.25) / self.config.kl_reference_nats).clamp(max=1.0)
