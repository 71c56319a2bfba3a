"""MERLIN: a memory-based predictor and a read-only policy. Wayne et al. 2018, arXiv:1803.10760."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin.agents.agent import Advanced, Agent, Perceived
from merlin.agents.merlin.initialization import start_associative
from merlin.agents.merlin.predictor import Inference, Predictor, PredictorConfig, PredictorState
from merlin.errors import option
from merlin.experience import Losses, StepOutput, Unroll
from merlin.memory import Memory, Reader
from merlin.networks.heads import mlp
from merlin.networks.lstm import LSTM, LSTMState
from merlin.networks.spaces import flatten_observation, kind
from merlin.networks.window_linear import in_window
from merlin.objectives.policy_gradient import (
    ActorCriticConfig,
    actor_critic_metrics,
    actor_loss,
    advantages_and_returns,
    masked_mean,
    policy_kl_nats,
)
from merlin.ranges import WIDTH, Range, above
from merlin.states import reset_state

COLLAPSED_NATS = 0.1
"""KL below which a posterior is the prior."""
UNEXPLAINED = 0.05
"""Below this part of an entry, as good as nothing of it is decoded."""


@dataclass(frozen=True, kw_only=True)
class MerlinConfig(PredictorConfig, ActorCriticConfig):
    """The predictor's configuration, that of learning from advantages, and the policy's own. Sizes are the paper's."""

    policy_hidden_size: Annotated[int, WIDTH] = 256
    """Units of the policy's LSTM, which has one layer."""
    policy_num_read_keys: Annotated[int, Range(1, 1024)] = 1
    """Read keys of the policy."""
    policy_read_strength: Annotated[float | None, above(0, 500)] = None
    """Sharpness that the policy's reads start near; none takes ln N, a perfect match as heavy as all else together."""
    policy_associative_start: bool = False
    """Let the policy's reads start with what is like the present, in place of PyTorch's random keys."""
    policy_gradient_to_latent: bool = False
    """Let the policy gradient shape the latent, as the paper does not."""


class MerlinState(NamedTuple):
    """State of MERLIN: the predictor's; h~, c~, m~ of the policy."""

    predictor: PredictorState
    policy: LSTMState
    policy_read_words: Float[Tensor, "B KW"]

    @property
    def policy_hidden(self) -> Float[Tensor, "B H"]:
        """h~."""
        return self.policy.hidden

    @property
    def previous_action(self) -> Float[Tensor, "B E"]:
        """a_{t-1}, encoded."""
        return self.predictor.action


class MerlinActivations(NamedTuple):
    """Activations of a step that heads and losses read; prior and posterior by their parameters."""

    prior: Float[Tensor, "*batch Y"]
    posterior: Float[Tensor, "*batch Y"]
    latent: Float[Tensor, "*batch Z"]
    policy_hidden: Float[Tensor, "*batch H"]
    policy_words: Float[Tensor, "*batch KW"]


class MerlinExtras(NamedTuple):
    """What the latent was sampled with, what it was, and the slot that it was written to."""

    noise: Float[Tensor, "*batch Z"]
    latent: Float[Tensor, "*batch Z"]
    slots: Int[Tensor, "*batch"] | None


class Policy(nn.Module):
    """The parts of the policy: an LSTM, what its reads are asked with, and the head of the action's distribution.

    Args:
        latent_size: Z.
        word_size: W, width of what a read returns.
        num_parameters: A, of the action's distribution.
    """

    def __init__(self, config: MerlinConfig, latent_size: int, word_size: int, num_parameters: int) -> None:
        super().__init__()
        hidden_size, num_keys = config.policy_hidden_size, config.policy_num_read_keys
        strength = config.policy_read_strength
        if strength is None:
            strength = math.log(max(config.memory_size, 2))
        words_size = num_keys * word_size
        head_input_size = latent_size + hidden_size + words_size
        self.lstm = LSTM(latent_size + words_size, hidden_size, 1)
        self.reader = Reader(hidden_size, word_size, num_keys, strength)
        self.head = mlp(head_input_size, (200,), num_parameters, 0.1, config.policy_hidden_gain)
        if config.policy_associative_start:
            start_associative(self.lstm, self.reader, latent_size)


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

        Σ cost · reconstruction nats of z + kl_cost · KL[posterior ‖ prior]
        + expectation_cost · Σ cost · reconstruction nats of the prior's mean
        + return_cost · ½ ((R − V)² + (R − R^)²)  −  advantage · log π(a)  −  entropy_cost · entropy

    Differences from the paper:

    1. The KL weight defaults to observation nats, at least 4.25, / `kl_reference_nats`, and is at most 1; the nats are
       measured: how much better than the best constant guess a perfect reconstruction would be. The paper's weight
       of 1 stands against thousands of nats of pixels; against a few nats of symbols it collapses the posterior, and
       a weight well short of that still makes latents so noisy that the policy cannot tell slots apart.
    2. Slots that were never written cannot be read (`mask_unwritten`), a re-used slot is erased first, and the
       retroactive discount is separate from the return's. The paper is silent or cannot mean otherwise.
    3. Losses are averaged over the steps of a window rather than summed; Adam does not notice.
    4. The posterior's means start larger (`posterior_scale`) and the policy's reads sharper (`policy_read_strength`)
       than PyTorch's initial weights would have them; `policy_associative_start` lets these reads begin with what is
       like the present.
    5. Encoders and decoders follow the observation space. Categories, vectors and rewards are decoded linearly, and so
       is what a symbolic grid shows anywhere; what is rare in grids may count more (`DecoderConfig.grid_rarity`).
    6. Latents may be one-hots (`latent="categorical"`), after Hafner et al. 2021: the posterior's logits are the
       prior's and a correction, memory holds the one-hots, and `prior_kl_cost` weighs what teaches the prior apart
       from what the posterior pays.
    7. What the prior expects may be decoded as well (`expectation_cost`, 0 unless set).
    """

    config_class = MerlinConfig
    memory: Memory

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: MerlinConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.predictor = Predictor(spaces, self.actions, config)
        self.memory = self.predictor.memory
        self.policy = Policy(config, self.predictor.latents.size, self.memory.slot_size, self.actions.num_parameters)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the policy's parameters, and all others, which the policy gradient never reaches."""
        return {"predictor": list(self.predictor.parameters()), "policy": list(self.policy.parameters())}

    def initial_state(self, batch_size: int) -> MerlinState:
        """Return zeros: nothing seen, nothing remembered."""
        policy = self.policy.lstm.initial_state(batch_size)
        words_size = self.config.policy_num_read_keys * self.memory.slot_size
        return MerlinState(
            self.predictor.initial_state(batch_size), policy, policy.hidden.new_zeros(batch_size, words_size)
        )

    def memory_state(self, state: MerlinState) -> Any:
        """Return the contents of the memory."""
        return state.predictor.memory

    def with_memory(self, state: MerlinState, memory: Any) -> MerlinState:
        """Return the state with other contents of the memory."""
        return state._replace(predictor=state.predictor._replace(memory=memory))

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return e, as the posterior's first layer sees it."""
        return self.predictor.encode(observation, previous_action, previous_reward)

    def perceive(
        self,
        code: Float[Tensor, "B C"] | None,
        state: MerlinState,
        extras: MerlinExtras | None = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return prior, posterior and latent, and what the policy recalls. See `Agent.perceive`.

        Args:
            code: None where nothing is seen, as in imagination: the latent is a sample of the prior then.
        """
        slots = None if extras is None else extras.slots
        if extras is None:
            like = state.policy_read_words
            noise = self.predictor.latents.draw_noise(len(like), like, generator)
        else:
            noise = extras.noise
        inference = self.predictor.perceive(code, noise, state.predictor)
        state, weights = self.recall(inference.latent, state)
        activations = MerlinActivations(*inference, state.policy_hidden, state.policy_read_words)
        return Perceived(activations, state, MerlinExtras(noise, inference.latent, slots), weights)

    def likeliest_extras(self, state: MerlinState) -> MerlinExtras:
        """Return noise of 0, which makes the latent the posterior's mode. See `Agent.likeliest_extras`."""
        noise = torch.zeros_like(state.policy_read_words[:, :1]).expand(-1, self.predictor.latents.size)
        return MerlinExtras(noise, noise, None)

    def recall(self, latent: Float[Tensor, "B Z"], state: MerlinState) -> tuple[MerlinState, Float[Tensor, "B K _"]]:
        """Return the state after the policy's LSTM and read, which sees the memory before this step's write."""
        lstm = self.policy.lstm.step(torch.cat([self.seen(latent), state.policy_read_words], -1), state.policy)
        words, weights = self.memory.read(state.predictor.memory, *self.policy.reader(lstm.hidden))
        return state._replace(policy=lstm, policy_read_words=words.flatten(1)), weights

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Return the predictor's recurrence, read and write. See `Agent.advance`."""
        latent, extras = perceived.activations.latent, perceived.extras
        state: MerlinState = perceived.state
        predictor, weights, slots = self.predictor.advance(latent, action, state.predictor, extras.slots)
        return Advanced(state._replace(predictor=predictor), extras._replace(slots=slots), weights)

    def policy_parameters(self, activations: MerlinActivations) -> Float[Tensor, "*batch A"]:
        """Return log π, not normalised, of [sg(z), h~, m~]."""
        latent = self.seen(activations.latent)
        return self.policy.head(torch.cat([latent, activations.policy_hidden, activations.policy_words], -1))

    def value(
        self, activations: MerlinActivations, policy_parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Return V, of [z, sg(log π)]."""
        return self.predictor.value(activations.latent, policy_parameters)

    def seen(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """Return the latent as the policy sees it: a constant, unless the policy gradient may shape it."""
        return latent if self.config.policy_gradient_to_latent else latent.detach()

    def loss(
        self,
        activations: MerlinActivations,
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        entropy_scale: float,
    ) -> Losses:
        """Return the loss of a window. See `Agent.loss`."""
        parameters = self.actions.restrict(self.policy_parameters(activations), unroll.observation)
        advantages, returns = advantages_and_returns(unroll, self.config, self.predictor.return_scale.unit)
        actor = actor_loss(self.actions, parameters, unroll, advantages, self.config, entropy_scale)
        inferences = Inference(activations.prior, activations.posterior, activations.latent)
        predictor, value, metrics = self.predictor.loss(
            inferences, unroll, parameters, actions, previous_actions, returns
        )
        metrics |= actor_critic_metrics(unroll, actor, value, returns)
        total = masked_mean(actor.loss, unroll.is_valid) + masked_mean(predictor, unroll.is_valid)
        return Losses(total, {name: x.detach() for name, x in metrics.items()})

    def policy_losses(self, unroll: Unroll, state: MerlinState, entropy_scale: float = 1.0) -> Losses:
        """Return the loss of the policy alone, of a window that starts from `state`, on what it acted with.

        It reaches no other parameter, so that the policy may learn from a window more often (`policy_passes`).
        """
        extras: MerlinExtras = unroll.extras
        stepping = in_window(self)
        state = self.begin_window(state, len(unroll.is_first))
        rows = []
        for t, (latent, is_first) in enumerate(zip(extras.latent, unroll.is_first, strict=True)):
            state, weights = stepping.recall(latent, reset_state(state, is_first))
            slot = None if extras.slots is None else extras.slots[t]
            rows.append((state.policy_hidden, state.policy_read_words))
            memory, _ = self.memory.write(self.memory_state(state), latent, weights.detach(), slot)
            state = self.with_memory(state, memory)
        hidden, words = map(torch.stack, zip(*rows, strict=True))
        parameters = self.policy_parameters(
            MerlinActivations(extras.latent, extras.latent, extras.latent, hidden, words)
        )
        advantages, _ = advantages_and_returns(unroll, self.config, self.predictor.return_scale.unit)
        actor = actor_loss(self.actions, parameters, unroll, advantages, self.config, entropy_scale)
        policy_kl = policy_kl_nats(unroll, actor.log_prob.detach())
        return Losses(masked_mean(actor.loss, unroll.is_valid), {"policy_kl_nats": policy_kl})

    @property
    def scales_are_new(self) -> bool:
        return self.predictor.return_scale.is_new

    def update_scales(self, unroll: Unroll) -> None:
        """Take in a window. See `Agent.update_scales`."""
        unroll = unroll._replace(next_value=self.predictor.return_scale.known(unroll.next_value))
        self.predictor.update_scales(unroll, advantages_and_returns(unroll, self.config)[1])

    @torch.no_grad()
    def expect(self, state: MerlinState, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor]:
        """Return the observation that is decoded from the prior's mean, before anything is seen. See `Agent.expect`."""
        prior = self.predictor.prior(reset_state(state, is_first).predictor)
        return self.reconstruct(self.predictor.latents.from_parameters(prior).mean)

    @torch.no_grad()
    def imagine(
        self,
        state: MerlinState,
        length: int,
        generator: torch.Generator | None = None,
        actions: Float[Tensor, "A B E"] | None = None,
    ) -> Float[Tensor, "T B Z"]:
        """Return the latents of `length` steps after `state` in which nothing is seen.

        Each is a sample of the prior; the policy acts on it, and it is remembered as if it had been inferred.

        Args:
            actions: Codes of what is done in these steps, in place of what the policy would do; as many as are known.
        """
        known = () if actions is None else actions
        latents = []
        for i in range(length):
            perceived = self.perceive(None, state, generator=generator)
            if i < len(known):
                code = known[i]
            else:
                action = self.actions.sample(self.policy_parameters(perceived.activations), generator)
                code = self.actions.encode(action)
            state = self.advance(perceived, code).state
            latents.append(perceived.activations.latent)
        return torch.stack(latents)

    def infer(self, activations: MerlinActivations) -> Float[Tensor, "*batch Z"]:
        """Return the posterior's mean."""
        return self.predictor.latents.from_parameters(activations.posterior).mean

    def reconstruct(self, latent: Float[Tensor, "*batch Z"]) -> dict[str, Tensor]:
        """Return the observation that the latent stands for, entry by entry in the observation's units."""
        return self.predictor.decoder.mode(self.predictor.decoder(latent))

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: MerlinState) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held. See `Agent.features`."""
        assert output.latent is not None
        return {
            "encoding": self.predictor.encoder(flatten_observation(observation)),
            "latent": output.latent,
            "recurrent state": state.predictor.lstm.hidden,
            "reads": state.predictor.read_words,
            "policy's recurrent state": state.policy_hidden,
            "policy's reads": state.policy_read_words,
        }

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell of what the latent does not hold: anything at all, or an entry of the observation."""
        config, known = self.config, {name: x for name, x in metrics.items() if math.isfinite(x)}
        kl, explained, kl_cost = (known.get(x, math.inf) for x in ("kl_nats", "observation_explained", "kl_cost"))
        if kl < COLLAPSED_NATS and explained < UNEXPLAINED and kl_cost > 0:
            return {
                "collapse": f"the posterior has collapsed onto the prior (KL {kl:.2g} nats, {max(0, explained):.0%} of "
                f"the observation explained), so the memory holds nothing: lower the KL weight with "
                + option("set", f"model.kl_cost={0.1 * kl_cost:.2g}")
            }
        found = {}
        for name, space in self.spaces.items():
            cost = f"{kind(space)}_cost"
            if getattr(config, cost) and (explained := known.get(f"{name}_explained", 1.0)) < UNEXPLAINED:
                remedy = option("set", f"model.{cost}={10 * getattr(config, cost):g}")
                if kind(space) == "vector" and not config.running_scales:
                    remedy = f"{option('set', 'model.running_scales=true')}, as its numbers may be small, or {remedy}"
                found[f"{name}_explained"] = (
                    f"entry {name!r} is not decoded ({max(0, explained):.0%} explained, at a KL of {kl:.3g} nats; a "
                    f"constant guess has 0%), so the memory holds next to nothing of it: if it matters, try {remedy}; "
                    f"if it is noise, leave it out with a wrapper ({option('wrap', 'module:Wrapper')})"
                )
        return found
