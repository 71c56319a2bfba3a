"""MERLIN: a memory-based predictor and a read-only policy. Wayne et al. 2018, arXiv:1803.10760."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin.agents.agent import Advanced, Agent, Perceived
from merlin.agents.learner import Learner, LearnerConfig
from merlin.agents.merlin.policy import Policy, PolicyConfig
from merlin.agents.merlin.predictor import Inference, Predictor, PredictorConfig, PredictorState
from merlin.errors import MerlinError, option
from merlin.experience import Losses, StepOutput, Unroll
from merlin.memory import Memory
from merlin.networks.encoders import Encoder
from merlin.networks.lstm import LSTMState
from merlin.networks.spaces import flatten_observation, kind
from merlin.networks.window_linear import in_window
from merlin.objectives.policy_gradient import (
    ActorLoss,
    actor_critic_metrics,
    actor_loss,
    advantages_and_returns,
    masked_mean,
    policy_kl_nats,
)
from merlin.objectives.reconstruction import metric_name
from merlin.states import reset_state

COLLAPSED_NATS = 0.1
"""KL below which a posterior is the prior."""
UNEXPLAINED = 0.05
"""Below this part of an entry, as good as nothing of it is decoded."""


@dataclass(frozen=True, kw_only=True)
class MerlinConfig(PredictorConfig, PolicyConfig):
    """The predictor's configuration, and the policy's. Sizes are the paper's."""


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
    policy_encoding: Float[Tensor, "*batch S"] | None = None


class MerlinExtras(NamedTuple):
    """What the latent was sampled with, what it was, and the slot that it was written to.

    `read_weights` are those of the predictor that it was written with, of a memory that names no slot.
    """

    noise: Float[Tensor, "*batch Z"]
    latent: Float[Tensor, "*batch Z"]
    slots: Int[Tensor, "*batch"] | None
    read_weights: Float[Tensor, "*batch K _"] | None = None


class PolicyLoss(NamedTuple):
    """The policy's loss in each row, what it is made from, and V if the policy has its own."""

    loss: Float[Tensor, "T B"]
    actor: ActorLoss
    parameters: Float[Tensor, "T B A"]
    returns: Float[Tensor, "T B"]
    value: Float[Tensor, "T B"] | None


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
    8. The policy may have an encoder and a value function of its own, and see latents and words read only faintly
       (`policy_encoder`, `policy_value_cost`, `policy_latent_scale`, `policy_read_scale`); e~ encodes what e does:

           h~, c~ = policy_lstm([latent_scale · sg(z), read_scale · m~, e~])
           log π  = log softmax(policy_head(f));   V = policy_value_head(f)
           f      = [latent_scale · sg(z), h~, read_scale · m~, e~]

       and the loss has policy_value_cost · ½ (R − V)² besides. The policy's gradients, V's among them, reach e~, and
       nothing of the predictor, whose own V and R^ go on shaping the latent. The paper's policy sees what the
       predictor made of an observation, and nothing else.
    9. The policy may have up to four read keys that are not learnt (`policy_reward_keys`). They ask for what was
       rewarded, the same where it looked like now, what led to reward, and that where it looked like now; a slot is
       [z, trace]:

           [â, 0],  [â + ẑ / 2, 0],  [b̂, â],  [b̂ + ẑ / 2, â]

       â, b̂, ẑ are directions from the mean latent: to latents that came with reward, to latents whose action earned
       it, and to the present one. `RewardKeys` has the sums.
    """

    config_class = MerlinConfig
    predictor_class: ClassVar[type[Predictor]] = Predictor
    memory: Memory

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: MerlinConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.predictor = self.predictor_class(spaces, self.actions, config)
        self.memory = self.predictor.memory
        encoder = Encoder(spaces, config.encoder, config.running_scales) if config.policy_encoder else None
        sizes = self.predictor.latents.size, self.memory.slot_size, config.memory_size
        self.policy = Policy(config, self.actions, *sizes, encoder)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the policy's parameters, and all others, which the policy gradient never reaches."""
        policy = list(self.policy.parameters())
        others = [x for x in self.parameters() if all(x is not y for y in policy)]
        return {"predictor": others, "policy": policy}

    def learner(self, config: LearnerConfig, generator: torch.Generator) -> Learner:
        """Return what learns from windows. See `Agent.learner`.

        Raises:
            MerlinError: The policy is to take its steps again, which are other steps than those of `policy_losses`.
        """
        kinds = (type(self), Merlin), (type(self.predictor), Predictor)
        if config.policy_passes > 1 and type(self).policy_losses is Merlin.policy_losses:
            for kind, base in kinds:
                if own := [x for x in ("perceive", "advance") if getattr(kind, x) is not getattr(base, x)]:
                    raise MerlinError(
                        f"policy_losses takes the policy's steps again as MERLIN does, but {kind.__name__} has its own "
                        f"{' and '.join(own)}: override policy_losses too, or take training.policy_passes=1."
                    )
        return super().learner(config, generator)

    def initial_state(self, batch_size: int) -> MerlinState:
        """Return zeros: nothing seen, nothing remembered."""
        policy = self.policy.lstm.initial_state(batch_size)
        words = policy.hidden.new_zeros(batch_size, self.policy.words_size)
        return MerlinState(self.predictor.initial_state(batch_size), policy, words)

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
        """Return e, as the posterior's first layer sees it, and behind it the policy's own encoding, if it has one."""
        code = self.predictor.encode(observation, previous_action, previous_reward)
        encoding = self.policy.encode(observation, previous_action, self.predictor.return_scale.reward(previous_reward))
        return code if encoding is None else torch.cat([code, encoding], -1)

    def perceive(
        self,
        code: Float[Tensor, "B C"] | None,
        state: MerlinState,
        extras: MerlinExtras | None = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return prior, posterior and latent, and what the policy recalls. See `Agent.perceive`.

        Args:
            code: None where nothing is seen, as in imagination: the latent is a sample of the prior then, and the
                policy's own encoding is of what is decoded from it.
        """
        extras = self.draw_extras(state, generator) if extras is None else extras
        noise, slots = extras.noise, extras.slots
        encoding = None
        if code is not None and self.policy.encoder is not None:
            code, encoding = code.split([code.shape[-1] - self.policy.encoding_size, self.policy.encoding_size], -1)
        inference = self.predictor.perceive(code, noise, state.predictor)
        if code is None:
            latent = inference.latent
            reward = self.predictor.reward_decoder(latent).squeeze(-1)
            encoding = self.policy.encode(self.reconstruct(latent), state.previous_action, reward)
        state, weights = self.recall(inference.latent, state, encoding)
        activations = MerlinActivations(*inference, state.policy_hidden, state.policy_read_words, encoding)
        return Perceived(activations, state, MerlinExtras(noise, inference.latent, slots), weights)

    def draw_extras(self, state: MerlinState, generator: torch.Generator | None = None) -> MerlinExtras:
        """Return the noise of a new latent. See `Agent.draw_extras`."""
        like = state.policy_read_words
        noise = self.predictor.latents.draw_noise(len(like), like, generator)
        return MerlinExtras(noise, noise, None)

    def likeliest_extras(self, state: MerlinState) -> MerlinExtras:
        """Return noise of 0, which makes the latent the posterior's mode. See `Agent.likeliest_extras`."""
        noise = torch.zeros_like(state.policy_read_words[:, :1]).expand(-1, self.predictor.latents.size)
        return MerlinExtras(noise, noise, None)

    def recall(
        self, latent: Float[Tensor, "B Z"], state: MerlinState, encoding: Float[Tensor, "B S"] | None = None
    ) -> tuple[MerlinState, Float[Tensor, "B K _"]]:
        """Return the state after the policy's LSTM and read, which sees the memory before this step's write.

        Args:
            encoding: The policy's own, if it has one.
        """
        inputs = self.policy.inputs(self.seen(latent), state.policy_read_words, encoding)
        lstm = self.policy.lstm.step(torch.cat(inputs, -1), state.policy)
        keys, strengths = self.policy.reader(lstm.hidden)
        if self.policy.reward_keys is not None:
            pairs = zip((keys, strengths), self.policy.reward_keys(latent, keys.shape[2]), strict=True)
            keys, strengths = (torch.cat(pair, 1) for pair in pairs)
        words, weights = self.memory.read(state.predictor.memory, keys, strengths)
        return state._replace(policy=lstm, policy_read_words=words.flatten(1)), weights

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Return the predictor's recurrence, read and write. See `Agent.advance`."""
        latent, extras = perceived.activations.latent, perceived.extras
        state: MerlinState = perceived.state
        predictor, weights, slots = self.predictor.advance(latent, action, state.predictor, extras.slots)
        strengths = self.predictor.read_strengths(predictor) if self.config.value_transport else None
        extras = extras._replace(slots=slots, read_weights=weights.detach() if slots is None else None)
        return Advanced(state._replace(predictor=predictor), extras, weights, strengths)

    def policy_features(self, activations: MerlinActivations) -> Float[Tensor, "*batch F"]:
        """Return what the policy's heads read: [sg(z), h~, m~], and its own encoding, if it has one."""
        latent, words = self.seen(activations.latent), activations.policy_words
        latent, *rest = self.policy.inputs(latent, words, activations.policy_encoding)
        return torch.cat([latent, activations.policy_hidden, *rest], -1)

    def policy_parameters(self, activations: MerlinActivations) -> Float[Tensor, "*batch A"]:
        """Return log π, not normalised."""
        return self.policy.head(self.policy_features(activations))

    def value(
        self, activations: MerlinActivations, policy_parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Return V: the predictor's, of [z, sg(log π)], unless the policy has its own."""
        if self.policy.value_head is None:
            return self.predictor.value(activations.latent, policy_parameters)
        value = self.policy.value_head(self.policy_features(activations)).squeeze(-1)
        return self.predictor.return_scale.value(value)

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
        policy = self.policy_loss(activations, unroll, entropy_scale)
        inferences = Inference(activations.prior, activations.posterior, activations.latent)
        predictor, value, metrics = self.predictor.loss(
            inferences, unroll, policy.parameters, actions, previous_actions, policy.returns
        )
        if policy.value is not None:
            metrics["latent_return_loss"] = 0.5 * masked_mean((policy.returns - value).square(), unroll.is_valid)
            value = policy.value
        metrics |= actor_critic_metrics(unroll, policy.actor, value, policy.returns, self.config)
        total = masked_mean(policy.loss, unroll.is_valid) + masked_mean(predictor, unroll.is_valid)
        return Losses(total, {name: x.detach() for name, x in metrics.items()})

    def policy_loss(self, activations: MerlinActivations, unroll: Unroll, entropy_scale: float) -> PolicyLoss:
        """Return the policy's loss, in which its own V has a part where it has one."""
        unit = self.predictor.return_scale.unit
        parameters = self.actions.restrict(self.policy_parameters(activations), unroll.observation)
        advantages, returns = advantages_and_returns(unroll, self.config, unit)
        actor = actor_loss(self.actions, parameters, unroll, advantages, self.config, entropy_scale)
        if self.policy.value_head is None:
            return PolicyLoss(actor.loss, actor, parameters, returns, None)
        value = self.value(activations, parameters)
        loss = actor.loss + self.config.policy_value_cost * 0.5 * ((returns - value) / unit).square()
        return PolicyLoss(loss, actor, parameters, returns, value)

    def policy_losses(self, unroll: Unroll, state: MerlinState, entropy_scale: float = 1.0) -> Losses:
        """Return the loss of the policy alone, of a window that starts from `state`, on what it acted with.

        It reaches no other parameter, so that the policy may learn from a window more often (`policy_passes`).
        """
        extras: MerlinExtras = unroll.extras
        reward = self.predictor.return_scale.reward(unroll.previous_reward)
        encodings = self.policy.encode(unroll.observation, self.action_codes(unroll, state)[1], reward)
        stepping = in_window(self)
        state = self.begin_window(state, len(unroll.is_first))
        rows = []
        for t, (latent, is_first) in enumerate(zip(extras.latent, unroll.is_first, strict=True)):
            encoding = None if encodings is None else encodings[t]
            state, weights = stepping.recall(latent, reset_state(state, is_first), encoding)
            slot = None if extras.slots is None else extras.slots[t]
            rows.append((state.policy_hidden, state.policy_read_words))
            weights = weights.detach() if extras.read_weights is None else extras.read_weights[t]
            memory, _ = self.memory.write(self.memory_state(state), latent, weights, slot)
            state = self.with_memory(state, memory)
        hidden, words = map(torch.stack, zip(*rows, strict=True))
        activations = MerlinActivations(extras.latent, extras.latent, extras.latent, hidden, words, encodings)
        policy = self.policy_loss(activations, unroll, entropy_scale)
        policy_kl = policy_kl_nats(unroll, policy.actor.log_prob.detach())
        return Losses(masked_mean(policy.loss, unroll.is_valid), {"policy_kl_nats": policy_kl})

    @property
    def scales_are_new(self) -> bool:
        return self.predictor.return_scale.is_new

    def update_scales(self, unroll: Unroll) -> None:
        """Take in a window. See `Agent.update_scales`."""
        unroll = unroll._replace(next_value=self.predictor.return_scale.known(unroll.next_value))
        own_value = [] if self.policy.value_head is None else [(self.policy.value_head[-1], True)]
        self.predictor.update_scales(unroll, advantages_and_returns(unroll, self.config)[1], own_value)
        if self.policy.encoder is not None:
            self.policy.encoder.update_scales(unroll.observation, unroll.is_valid)
        if self.policy.reward_keys is not None:
            previous, reward = map(self.predictor.return_scale.reward, (unroll.previous_reward, unroll.reward))
            self.policy.reward_keys.update(unroll.extras.latent, previous, reward, unroll.is_valid)

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
        seen = flatten_observation(observation)
        own = {} if self.policy.encoder is None else {"policy's encoding": self.policy.encoder(seen)}
        return {
            "encoding": self.predictor.encoder(seen),
            "latent": output.latent,
            "recurrent state": state.predictor.lstm.hidden,
            "reads": state.predictor.read_words,
            "policy's recurrent state": state.policy_hidden,
            "policy's reads": state.policy_read_words,
            **own,
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
            cost, key = f"{kind(space)}_cost", f"{metric_name(name, self.spaces)}_explained"
            if getattr(config, cost) and (explained := known.get(key, 1.0)) < UNEXPLAINED:
                remedy = option("set", f"model.{cost}={10 * getattr(config, cost):g}")
                if kind(space) == "vector" and not config.running_scales:
                    remedy = f"{option('set', 'model.running_scales=true')}, as its numbers may be small, or {remedy}"
                found[key] = (
                    f"entry {name!r} is not decoded ({max(0, explained):.0%} explained, at a KL of {kl:.3g} nats; a "
                    f"constant guess has 0%), so the memory holds next to nothing of it: if it matters, try {remedy}; "
                    f"if it is noise, leave it out with a wrapper ({option('wrap', 'module:Wrapper')})"
                )
        return found
