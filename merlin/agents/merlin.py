"""MERLIN: a memory-based predictor and a read-only policy. Wayne et al. 2018, arXiv:1803.10760."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin import memory as memories
from merlin.agents.agent import Agent
from merlin.latents import DiagonalGaussian, kl_nats
from merlin.losses import ActorCriticConfig, advantages_and_returns, masked_mean, policy_loss
from merlin.memory import MemoryState, Reader
from merlin.networks.decoders import Decoder, DecoderConfig
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.heads import mlp
from merlin.networks.recurrent import LSTM, LSTMState, map_state, reset_state
from merlin.networks.spaces import flatten_observation, kind
from merlin.unroll import Losses, StepOutput, Unroll


@dataclass(frozen=True, kw_only=True)
class MerlinConfig(ActorCriticConfig):
    """Sizes, costs and switches of MERLIN. The sizes given here are the paper's."""

    latent_size: int = 200
    """Z, entries of the state variable."""
    hidden_size: int = 256
    """H, units of each LSTM layer of the predictor."""
    num_layers: int = 2
    """LSTM layers of the predictor."""
    policy_hidden_size: int = 256
    """Units of the policy's LSTM."""
    memory_size: int = 1350
    """N, slots."""
    num_read_keys: int = 3
    """K, read keys of the predictor; the policy has one."""
    retroactive_discount: float | None = 0.96
    """g of the retroactive half of the memory; none leaves it out."""
    mask_unwritten: bool = True
    """Keep slots that were never written from being read."""
    top_k: int | None = None
    """Read only this many slots for each key; none reads all."""
    kl_cost: float | None = None
    """Weight of the KL divergence; none scales it to the entropy of the observations (see `Merlin`)."""
    kl_reference_nats: float = 350.0
    """Nats of observation from which on the automatic KL weight is the paper's 1."""
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
    return_gradient_to_latent: bool = True
    """Let the return loss shape the latent, as the paper does."""
    policy_gradient_to_latent: bool = False
    """Let the policy gradient shape the latent, as the paper does not."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class MerlinState(NamedTuple):
    """What MERLIN carries from step to step: h, c, m; h~, c~, m~; the memory; a_{t-1}, encoded."""

    predictor: LSTMState
    read_words: Float[Tensor, "B KW"]
    policy: LSTMState
    policy_read_words: Float[Tensor, "B W"]
    memory: MemoryState
    previous_action: Float[Tensor, "B E"]


class Thought(NamedTuple):
    """What MERLIN makes of one observation, before it acts."""

    prior: DiagonalGaussian
    posterior: DiagonalGaussian
    latent: Float[Tensor, "*batch Z"]


class Merlin(Agent[MerlinConfig, MerlinState]):
    """MERLIN, by the equations of Wayne et al. 2018 (arXiv:1803.10760), Algorithm 1, one time step in order:

        prior      = prior_network(h, m)
        posterior  = prior + posterior_network(e, h, m, prior)          e encodes o_t, a_{t−1}, r_{t−1}
        z          ~ posterior
        h~, c~     = policy_lstm([sg(z), m~]);   m~ = read(M, key~(h~))
        log π      = log softmax(policy_head([sg(z), h~, m~]));   a ~ π
        V          = value_head([z, sg(log π)]);   A = advantage_head([z, a]);   R^ = sg(V) + A
        h, c       = lstm([z, a, m]);   m, w = read(M, keys(h))
        M          = write(M, sg(z), w)                                 least used slot, retroactive half

    and the loss, with KL in nats and R the bootstrapped n-step return of the window:

        Σ cost · reconstruction nats + kl_cost · KL[posterior ‖ prior]
        + return_cost · ½ ((R − V)² + (R − R^)²)  −  advantage · log π(a)  −  entropy_cost · entropy

    Differences from the paper:

    1. The KL weight defaults to min(1, observation nats / `kl_reference_nats`), where the observation's nats are measured:
       how much better than the best constant guess a perfect reconstruction would be. The paper's weight of 1 stands against
       thousands of nats of pixels; against a few nats of symbols it collapses the posterior onto the prior.
    2. Slots that were never written cannot be read (`mask_unwritten`), a re-used slot is erased first, and the retroactive
       discount is separate from the return's. The paper is silent or cannot mean otherwise.
    3. Losses are averaged over the steps of a window rather than summed; Adam does not notice.
    4. Encoders and decoders follow the observation space. Categories, vectors and rewards are decoded linearly.
    """

    groups = ("predictor", "policy")

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: MerlinConfig) -> None:
        super().__init__(spaces, action_space, config)
        latent_size, action_size = config.latent_size, self.actions.encoding_size
        self.word_size = latent_size * (1 if config.retroactive_discount is None else 2)
        context_size = config.num_layers * config.hidden_size + config.num_read_keys * self.word_size

        self.encoder = Encoder(spaces, config.encoder)
        self.prior_network = mlp(context_size, (2 * latent_size, 2 * latent_size), 2 * latent_size)
        # The first layer of the posterior network, split: what depends on the observation alone, and the rest.
        self.posterior_input = nn.Linear(self.encoder.output_size + action_size + 1, 2 * latent_size, bias=False)
        self.posterior_context = nn.Linear(context_size + 2 * latent_size, 2 * latent_size)
        self.posterior_network = nn.Sequential(nn.Tanh(), mlp(2 * latent_size, (2 * latent_size,), 2 * latent_size))
        self.lstm = LSTM(latent_size + action_size + config.num_read_keys * self.word_size, config.hidden_size, config.num_layers)
        self.reader = Reader(self.lstm.output_size, self.word_size, config.num_read_keys)
        self.value_head = mlp(latent_size + self.actions.num_parameters, (200,), 1)
        self.advantage_head = mlp(latent_size + action_size, (50,), 1)
        self.decoder = Decoder(spaces, latent_size, config.decoder)
        self.action_decoder = nn.Linear(latent_size, action_size)
        self.reward_decoder = nn.Linear(latent_size, 1)
        self.register_buffer("observation_nats", torch.tensor(0.0))

        self.policy = nn.ModuleDict(
            {
                "lstm": LSTM(latent_size + self.word_size, config.policy_hidden_size, 1),
                "reader": Reader(config.policy_hidden_size, self.word_size, 1),
                "head": mlp(
                    latent_size + config.policy_hidden_size + self.word_size, (200,), self.actions.num_parameters, 0.1
                ),
            }
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the policy's parameters, and all others, which the policy gradient never reaches."""
        policy = set(self.policy.parameters())
        return {
            "predictor": [parameter for parameter in self.parameters() if parameter not in policy],
            "policy": list(self.policy.parameters()),
        }

    def initial_state(self, batch_size: int) -> MerlinState:
        """Return zeros: nothing seen, nothing remembered."""
        zeros = self.observation_nats.new_zeros
        return MerlinState(
            predictor=self.lstm.initial_state(batch_size),
            read_words=zeros(batch_size, self.config.num_read_keys * self.word_size),
            policy=self.policy["lstm"].initial_state(batch_size),
            policy_read_words=zeros(batch_size, self.word_size),
            memory=memories.initial_state(
                batch_size, self.config.memory_size, self.word_size, device=self.observation_nats.device
            ),
            previous_action=zeros(batch_size, self.actions.encoding_size),
        )

    @torch.no_grad()
    def step(
        self,
        observation: Any,
        state: MerlinState,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, MerlinState]:
        """Return the action and the next state. See `Agent.step`."""
        state = reset_state(state, is_first)
        if reward is None:
            reward = torch.zeros_like(is_first, dtype=state.previous_action.dtype)
        code = self._encode(flatten_observation(observation), state.previous_action, reward.masked_fill(is_first, 0))
        noise = torch.randn(
            (is_first.shape[0], self.config.latent_size), generator=generator, device=code.device, dtype=code.dtype
        )
        thought = self._perceive(code, noise, state)
        state, policy_weights = self._recall_for_policy(thought.latent, state)
        parameters = self._policy_parameters(thought.latent, state.policy.hidden, state.policy_read_words)
        action = self.actions.mode(parameters) if greedy else self.actions.sample(parameters, generator)
        state, weights = self._predict(thought.latent, self.actions.encode(action), state)
        output = StepOutput(
            action=action,
            log_prob=self.actions.log_prob(parameters, action),
            value=self._value(thought.latent, parameters),
            policy_parameters=parameters,
            noise=noise,
            latent=thought.latent,
            read_weights=weights,
            policy_read_weights=policy_weights,
        )
        return output, state

    def losses(self, unroll: Unroll, state: MerlinState, entropy_scale: float = 1.0) -> tuple[Losses, MerlinState]:
        """Return the loss of a window that starts from `state`, and the state after it. See `Agent.losses`."""
        config = self.config
        actions, previous_actions = self._action_codes(unroll, state.previous_action)
        codes = self._encode(unroll.observation, previous_actions, unroll.previous_reward)
        thoughts, policy_hiddens, policy_words = [], [], []
        for t in range(codes.shape[0]):
            state = reset_state(state, unroll.is_first[t])
            thought = self._perceive(codes[t], unroll.noise[t], state)
            state, _ = self._recall_for_policy(thought.latent, state)
            thoughts.append(thought)
            policy_hiddens.append(state.policy.hidden)
            policy_words.append(state.policy_read_words)
            state, _ = self._predict(thought.latent, actions[t], state)
        prior, posterior, latent = (
            map_state(lambda *rows: torch.stack(rows), *parts) for parts in zip(*thoughts, strict=True)
        )
        parameters = self._policy_parameters(latent, torch.stack(policy_hiddens), torch.stack(policy_words))

        advantages, returns = advantages_and_returns(unroll, config)
        log_prob = self.actions.log_prob(parameters, unroll.action)
        entropy = self.actions.entropy(parameters)
        actor = policy_loss(log_prob, unroll.log_prob, advantages, config.clip_ratio)
        actor = actor - config.entropy_cost * entropy_scale * entropy

        judged = latent if config.return_gradient_to_latent else latent.detach()
        value = self._value(judged, parameters)
        advantage = self.advantage_head(torch.cat([judged, actions], -1)).squeeze(-1)
        critic = 0.5 * ((returns - value).square() + (returns - value.detach() - advantage).square())

        kl_cost = self._kl_cost(unroll)
        reconstruction, metrics = self._reconstruction(latent, unroll)
        kl = kl_nats(posterior, prior)
        predictor = reconstruction + config.return_cost * critic + kl_cost * (kl - config.free_nats).clamp(min=0)

        mean = lambda x: masked_mean(x, unroll.is_valid)  # noqa: E731
        total = mean(actor) + mean(predictor)
        metrics |= {"kl_nats": mean(kl), "kl_cost": kl_cost, "observation_nats": self.observation_nats}
        metrics |= self._actor_critic_metrics(unroll, log_prob, entropy, value, returns)
        return Losses(total, {name: x.detach() for name, x in metrics.items()}), map_state(Tensor.detach, state)

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor]:
        """Return the observation that the latent stands for, entry by entry in the observation's units."""
        return self.decoder.mode(self.decoder(latent))

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell of a collapsed posterior: next to no nats beyond the prior, and observations decoded no better than by chance."""
        kl, chance, explained = (metrics[name] for name in ("kl_nats", "observation_nats", "observation_explained"))
        if kl > 0.05 * chance or explained > 0.5:
            return {}
        return {
            "collapse": f"The posterior has collapsed onto the prior (KL {kl:.3f} nats, {explained:.0%} of {chance:.2f} nats of "
            f"observation explained), so that the memory holds nothing: lower the weight of the KL divergence, "
            f"as with --set model.kl_cost={0.1 * metrics['kl_cost']:.2g}"
        }

    def _encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return what the posterior network makes of the observation before it knows the context."""
        encoding = torch.cat([self.encoder(observation), previous_action, previous_reward.unsqueeze(-1)], -1)
        return self.posterior_input(encoding)

    def _perceive(self, code: Float[Tensor, "B C"], noise: Float[Tensor, "B Z"], state: MerlinState) -> Thought:
        context = torch.cat([state.predictor.hidden, state.read_words], -1)
        prior = self.prior_network(context)
        correction = self.posterior_network(code + self.posterior_context(torch.cat([context, prior], -1)))
        posterior = DiagonalGaussian(*(prior + correction).chunk(2, -1))
        return Thought(DiagonalGaussian(*prior.chunk(2, -1)), posterior, posterior.sample(noise))

    def _recall_for_policy(
        self, latent: Float[Tensor, "B Z"], state: MerlinState
    ) -> tuple[MerlinState, Float[Tensor, "B 1 N"]]:
        """Return the state after the policy's LSTM and read, which sees the memory before this step's write."""
        seen = self._for_policy(latent)
        lstm = self.policy["lstm"].step(torch.cat([seen, state.policy_read_words], -1), state.policy)
        words, weights = self._read(self.policy["reader"], lstm.hidden, state.memory)
        return state._replace(policy=lstm, policy_read_words=words), weights

    def _predict(
        self, latent: Float[Tensor, "B Z"], action: Float[Tensor, "B E"], state: MerlinState
    ) -> tuple[MerlinState, Float[Tensor, "B K N"]]:
        """Return the state after the predictor's LSTM, read and write."""
        lstm = self.lstm.step(torch.cat([latent, action, state.read_words], -1), state.predictor)
        words, weights = self._read(self.reader, lstm.hidden, state.memory)
        memory = memories.write(state.memory, latent.detach(), weights.detach(), self.config.retroactive_discount)
        return state._replace(predictor=lstm, read_words=words, memory=memory, previous_action=action), weights

    def _read(
        self, reader: Reader, hidden: Float[Tensor, "B H"], memory: MemoryState
    ) -> tuple[Float[Tensor, "B KW"], Float[Tensor, "B K N"]]:
        readable = memories.written(memory) if self.config.mask_unwritten else None
        words, weights = memories.read(memory.memory, *reader(hidden), readable, self.config.top_k)
        return words.flatten(1), weights

    def _for_policy(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        return latent if self.config.policy_gradient_to_latent else latent.detach()

    def _policy_parameters(
        self,
        latent: Float[Tensor, "*batch Z"],
        hidden: Float[Tensor, "*batch H"],
        read_words: Float[Tensor, "*batch W"],
    ) -> Float[Tensor, "*batch A"]:
        return self.policy["head"](torch.cat([self._for_policy(latent), hidden, read_words], -1))

    def _value(
        self, latent: Float[Tensor, "*batch Z"], parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        return self.value_head(torch.cat([latent, self.actions.log_probs(parameters).detach()], -1)).squeeze(-1)

    def _reconstruction(
        self, latent: Float[Tensor, "T B Z"], unroll: Unroll
    ) -> tuple[Float[Tensor, "T B"], dict[str, Tensor]]:
        """Return the weighted reconstruction loss in nats, and each entry's nats and accuracy."""
        config, mean = self.config, lambda x: masked_mean(x, unroll.is_valid)
        decoded = self.decoder(latent)
        nats = self.decoder.nats(decoded, unroll.observation)
        accuracy = self.decoder.accuracy(decoded, unroll.observation)
        metrics = {f"{name}_nats": mean(x) for name, x in nats.items()}
        metrics |= {f"{name}_accuracy": mean(x) for name, x in accuracy.items()}
        total = sum(getattr(config, f"{kind(self.spaces[name])}_cost") * x for name, x in nats.items())
        floor = self.decoder.floor_nats(unroll.observation)
        excess = sum(mean(x - floor[name]) for name, x in nats.items())
        metrics["observation_explained"] = 1 - excess / self.observation_nats.clamp(min=1e-6)

        if config.action_cost and unroll.action.shape[0] > 1:
            # Where an episode starts there is no previous action; the window's first row knows it only as an encoding.
            parameters, previous = self.action_decoder(latent[1:]), unroll.action[:-1]
            known = unroll.is_valid[1:] & ~unroll.is_first[1:]
            action_nats = self.actions.reconstruction_nats(parameters, previous)
            total = torch.cat([total[:1], total[1:] + config.action_cost * action_nats.masked_fill(~known, 0)])
            metrics["action_nats"] = masked_mean(action_nats, known)
            metrics["action_accuracy"] = masked_mean(self.actions.reconstruction_accuracy(parameters, previous), known)
        if config.reward_cost:
            reward_nats = 0.5 * (self.reward_decoder(latent).squeeze(-1) - unroll.previous_reward).square()
            total = total + config.reward_cost * reward_nats
            metrics["reward_nats"] = mean(reward_nats)
        return total, metrics

    def _kl_cost(self, unroll: Unroll) -> Tensor:
        """Return the weight of the KL divergence, from the observations' measured entropy unless configured."""
        if self.training:
            rate = torch.where(self.observation_nats == 0, 1.0, 0.01)
            self.observation_nats.lerp_(sum(self.decoder.chance_nats(unroll.observation).values()), rate)
        if self.config.kl_cost is not None:
            return torch.as_tensor(self.config.kl_cost)
        return (self.observation_nats / self.config.kl_reference_nats).clamp(1e-3, 1.0)
