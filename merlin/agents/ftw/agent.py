"""FTW, the For-The-Win agent: two timescales that share a memory. Jaderberg et al. 2019, arXiv:1807.01281."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin.agents.actor_critic import ActorCritic, HeadConfig
from merlin.agents.agent import Advanced, Perceived
from merlin.agents.ftw.auxiliary import PixelControl, RewardPrediction, Sequences, make_pixel_controls, sequences_of
from merlin.agents.ftw.hyperparameters import Hyperparameters
from merlin.agents.ftw.learner import FTWLearner
from merlin.agents.ftw.two_timescales import INITIAL_STD, CoreState, SingleCore, TwoTimescales, gaussian
from merlin.agents.learner import Learner, LearnerConfig
from merlin.errors import option
from merlin.experience import Losses, StepOutput, Unroll
from merlin.latents import DiagonalGaussian, GaussianFamily
from merlin.memory import MemoryConfig, make_memory
from merlin.networks.initialization import start_balanced
from merlin.networks.products import Linear
from merlin.networks.scales import ReturnScale, RunningMoments
from merlin.networks.spaces import flatten_observation
from merlin.objectives.policy_gradient import (
    ActorLoss,
    actor_critic_metrics,
    advantages_and_returns,
    masked_mean,
    normalized,
    policy_loss,
)
from merlin.objectives.returns import vtrace
from merlin.ranges import COST, COUNT, WIDTH, Range, SettingError, above

COLLAPSED_NATS = 0.1
"""KL below which a posterior is the prior."""
UNEXPLAINED = 0.05
"""Below this part of the returns' variance V explains as good as nothing."""


@dataclass(frozen=True, kw_only=True)
class FTWConfig(MemoryConfig, HeadConfig):
    """Sizes and costs. Sizes given here are the paper's, costs of their order."""

    core: Literal["two_timescales", "lstm"] = "two_timescales"
    """lstm takes one LSTM without latent or memory, the paper's UNREAL baseline."""
    hidden_size: Annotated[int, WIDTH] = 256
    """H, units of each core's LSTM, which has one layer."""
    latent_size: Annotated[int, WIDTH] = 256
    """Z, entries of the latent."""
    memory_size: Annotated[int, Range(0, 10_000_000)] = 450
    """N, slots that both cores write to; 0 leaves the memory out."""
    word_size: Annotated[int, WIDTH] = 32
    """W, width of a slot."""
    num_read_keys: Annotated[int, Range(1, 1024)] = 4
    """K, read keys of each core."""
    read_strength: Annotated[float | None, Range(1e-3, 500)] = None
    """Sharpness that reads start near; none takes ln N, a perfect match as heavy as all else together."""
    encoding_gain: Annotated[float | None, above(0, 1000)] = 1.6
    """Spread of what the encoding adds to the fast core's gates at first, every entry of an observation counting the
    same. PyTorch's initial weights (none) drown a cue in all else that the core reads: neither its words nor its latent
    then tell one cue from another."""
    word_scale: Annotated[float, Range(1e-3, 1000)] = 4.0
    """First weights of what both cores write, in PyTorch's usual ones."""
    posterior_scale: Annotated[float, Range(1e-3, 1000)] = 4.0
    """First weights of the posterior's mean, in PyTorch's usual ones."""
    retroactive_discount: Annotated[float | None, Range(0, 1)] = None
    """FTW's memory has no retroactive half: none."""
    head_size: Annotated[int, WIDTH] = 256
    """Units of the hidden layer of the policy and of the value head."""
    head_inputs: Literal["all", "latent"] = "all"
    """What policy and value read: the latent alone, as in the paper, or encoding, recurrent state and latent."""
    tick_steps: Annotated[int, COUNT] = 8
    """τ, steps from one tick of the slow core to the next, counted from the episode's start; the paper's evolve in 5
    to 20."""
    slow_gradient_scale: Annotated[float, Range(0, 1)] = 1.0
    """What the gradient that the slow core gets through the fast one is multiplied by; the paper's evolve in 0.1 to
    1."""
    objective: Literal["vtrace", "ppo"] = "vtrace"
    """How policy and value learn: by V-trace, as in the paper, or by PPO's clipped ratio, which allows more passes."""
    gae_lambda: Annotated[float, Range(0, 1)] = 1.0
    """λ of V-trace, or of PPO's advantages: 0 trusts the value function, 1 the window's returns."""
    discount_factor: Annotated[float, Range(0, 1)] = 0.99
    """Of the return, per step."""
    kl_cost: Annotated[float, COST] = 1e-3
    """Weight of KL[posterior ‖ prior], in nats, for returns of variance 1: it is multiplied by the returns' running
    variance, or no weight would mean the same in two tasks."""
    prior_kl_cost: Annotated[float, COST] = 1e-3
    """Weight of KL[prior ‖ N(0, 0.1²)] at ticks, likewise."""
    reward_prediction_cost: Annotated[float, COST] = 0.1
    """Weight of predicting the next reward's sign; 0 leaves it out."""
    replay_sequences: Annotated[int, Range(2, 10_000_000)] = 800
    """Sequences kept for it, half of them before a reward."""
    reward_prediction_sequences: Annotated[int, Range(2, 1_000_000)] = 64
    """Sequences that each update draws of them."""
    pixel_control_cost: Annotated[float, COST] = 0.0
    """Weight of learning to change what is seen, of pictures and symbolic grids; 0 leaves it out. The paper's begin in
    0.01 to 0.1."""
    pixel_control_discount: Annotated[float, Range(0, 1)] = 0.9
    """Of the changes, per step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retroactive_discount is not None:
            raise SettingError(
                f"retroactive_discount must be none, as FTW's memory has no retroactive half, but is "
                f"{self.retroactive_discount}: leave it out."
            )
        if self.core == "lstm" and self.head_inputs == "latent":
            raise SettingError(
                "head_inputs must be all where core is lstm, which has no latent, but is 'latent': set "
                "model.head_inputs=all."
            )

    def hyperparameters(self) -> Hyperparameters:
        """Return those settings that may change while an agent learns."""
        return Hyperparameters(*(getattr(self, name) for name in Hyperparameters._fields))


class FTWState(NamedTuple):
    """State of FTW: that of both cores; a_{t-1}, encoded."""

    core: CoreState
    previous_action: Float[Tensor, "B E"]


class FTWActivations(NamedTuple):
    """Activations of a step that heads and losses read; prior and posterior by means and standard deviations."""

    encoding: Float[Tensor, "*batch C"]
    hidden: Float[Tensor, "*batch H"]
    latent: Float[Tensor, "*batch Z"] | None
    prior: Float[Tensor, "*batch Y"]
    posterior: Float[Tensor, "*batch Y"]
    ticks: Bool[Tensor, "*batch"]


class FTWExtras(NamedTuple):
    """What the latent was sampled with, and the slots that both cores wrote to."""

    noise: Float[Tensor, "*batch Z"]
    slow_slots: Int[Tensor, "*batch"] | None
    slots: Int[Tensor, "*batch"] | None


class FTW(ActorCritic[FTWConfig, FTWState]):
    """FTW, the agent that learnt capture the flag, alone: no population, and the environment's reward.

        e        = [encoder(o_t), a_{t−1}, r_{t−1}]
        z        ~ posterior, of a fast core under the prior that a slow one holds          `TwoTimescales.step`
        a        ~ policy(features);   V = value(features)      features z, or [e, h_q, z]

    and the loss, with V-trace's v and A, KL in nats, and σ² the returns' running variance:

        −A · log π(a) − entropy_cost · entropy + return_cost · ½ (v − V)²
        + σ² · kl_cost · KL[posterior ‖ prior] + σ² · prior_kl_cost · KL[prior ‖ N(0, 0.1²)] at ticks
        + reward_prediction_cost · nats of the next reward's sign + pixel_control_cost · ½ (R − Q)²

    The KL's gradient reaches posterior and prior alike, and the prior through all steps that it is held for.

    Differences from the paper, each with the setting that leads back to it, if there is one:

    1. Policy and value read [e, h_q, z] (`head_inputs`, the paper: latent).
    2. The KL weights are multiplied by the returns' running variance, or with `running_scales` stand in losses that
       are in units of it: against small returns the paper's collapse the posterior.
    3. Losses are means over a window rather than sums, and Adam takes RMSProp's place.
    4. Memory is read by content and written to the least used slot, erased first; slots never written cannot be read
       (`mask_unwritten`). The paper's is a differentiable neural computer, of which it shows these two.
    5. Encodings, words written and the posterior's means start larger, and reads sharper, than PyTorch's initial
       weights would have them (`encoding_gain`, `word_scale`, `posterior_scale`, `read_strength`).
    6. The prior that a step uses is the one just updated, as in the paper's figure.
    7. The environment's reward is what is learnt from; a population may give another in its place
       (`merlin.agents.ftw.internal_reward`), and change `hyperparameters` while an agent learns.
    8. The next reward is predicted of three encodings of observations alone; it is a cross-entropy over half rewarded
       sequences, as far as there are any.
    """

    config_class = FTWConfig
    num_features = 3
    head_activation = nn.ReLU
    writes_once = False

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: FTWConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.hyperparameters = config.hyperparameters()
        self._build_encoder(spaces)
        is_single = config.core == "lstm"
        if config.memory_size and not is_single:
            self.memory = make_memory(config.word_size, config)
        self.latents = GaussianFamily(0 if is_single else config.latent_size)
        strength = config.read_strength
        if strength is None:
            strength = math.log(max(config.memory_size, 2))
        self.core = (
            SingleCore(self.encoding_size, config.hidden_size)
            if is_single
            else TwoTimescales(
                self.encoding_size,
                config.hidden_size,
                config.latent_size,
                config.num_read_keys,
                strength,
                self.memory,
            )
        )
        self._start_larger()
        feature_size = self.latents.size
        if config.head_inputs == "all":
            feature_size += self.encoding_size + config.hidden_size
        self._build_heads(feature_size)
        self.return_moments = RunningMoments(1, ReturnScale.HORIZON)
        self.reward_prediction = RewardPrediction(self.encoder.output_size) if config.reward_prediction_cost else None
        controls: dict[str, PixelControl] = {}
        if config.pixel_control_cost:
            controls = make_pixel_controls(spaces, feature_size, self.actions, config.pixel_control_discount)
        self.controlled = tuple(controls)
        # a list: names may be dotted paths, which a ModuleDict's keys cannot
        self.pixel_controls: list[PixelControl] = nn.ModuleList(controls.values())  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _start_larger(self) -> None:
        """Make first weights as large as configured."""
        core, config = self.core, self.config
        if config.encoding_gain is not None:
            balanced = Linear(self.encoding_size, 4 * config.hidden_size)
            parts = [*self.encoder.parts, (self.actions.encoding_size, 1), (1, 1)]  # e: observation, action, reward
            start_balanced(balanced, parts, config.encoding_gain)
            read = core.fast.cells[0].weight_ih
            assert isinstance(read, Tensor)
            read[:, : self.encoding_size] = balanced.weight
        if isinstance(core, TwoTimescales):
            core.posterior.weight[: config.latent_size] *= config.posterior_scale
            for writer in (core.slow_writer, core.fast_writer) if self.memory is not None else ():
                writer.weight *= config.word_scale

    def learner(self, config: LearnerConfig, generator: torch.Generator) -> Learner:
        """Return what learns from windows, and from sequences that it keeps."""
        return FTWLearner(self, config, generator)

    def initial_state(self, batch_size: int) -> FTWState:
        """Return zeros: nothing seen, nothing remembered."""
        core = self.core.initial_state(batch_size)
        return FTWState(core, core.latent.new_zeros(batch_size, self.actions.encoding_size))

    def memory_state(self, state: FTWState) -> Any:
        """Return the contents of the memory."""
        return state.core.memory

    def with_memory(self, state: FTWState, memory: Any) -> FTWState:
        """Return the state with other contents of the memory."""
        return state._replace(core=state.core._replace(memory=memory))

    def begin_window(self, state: FTWState, length: int) -> FTWState:
        """Return the state with room for two words a step, and for the one of a step that is only looked at."""
        state = super().begin_window(state, 2 * length + 1)
        return state._replace(core=self.core.begin_window(state.core, self.hyperparameters.slow_gradient_scale))

    def end_window(self, state: FTWState) -> FTWState:
        """Return the state without what is held inside a window alone."""
        return super().end_window(state._replace(core=state.core._replace(share=None)))

    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: FTWState,
        extras: FTWExtras | None = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return both cores' step and a sample of the posterior. See `Agent.perceive`."""
        if extras is None:
            extras = FTWExtras(self.latents.draw_noise(len(code), state.core.latent, generator), None, None)
        settings = self.hyperparameters
        step = self.core.step(
            code, state.core, extras.noise, settings.tick_steps, settings.slow_gradient_scale, extras.slow_slots
        )
        latent = step.state.latent if self.latents.size else None
        activations = FTWActivations(code, step.state.fast.hidden, latent, step.state.prior, step.posterior, step.ticks)
        extras = extras._replace(slow_slots=step.slow_slots)
        return Perceived(activations, state._replace(core=step.state), extras, step.read_weights)

    def likeliest_extras(self, state: FTWState) -> FTWExtras:
        """Return noise of 0, which makes the latent the posterior's mean. See `Agent.likeliest_extras`."""
        return FTWExtras(torch.zeros_like(state.core.latent), None, None)

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Write, and remember the action. See `Agent.advance`."""
        extras = perceived.extras
        core, slots = self.core.write(perceived.state.core, perceived.read_weights, extras.slots)
        return Advanced(FTWState(core, action), extras._replace(slots=slots))

    def features_of(self, activations: FTWActivations) -> Float[Tensor, "*batch F"]:
        """Return what policy and value read."""
        encoding, hidden, latent = activations[:3]
        if latent is None:
            return torch.cat([encoding, hidden], -1)
        return torch.cat([encoding, hidden, latent], -1) if self.config.head_inputs == "all" else latent

    def loss(
        self,
        activations: FTWActivations,
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        entropy_scale: float,
        sequences: Sequences | None = None,
    ) -> Losses:
        """Return the loss of a window. See `Agent.loss`.

        Args:
            sequences: What the next reward is predicted of; None takes the window's own.
        """
        config, costs, unit = self.config, self.hyperparameters, self.return_scale.unit
        features = self.features_of(activations)
        parameters = self.actions.restrict(self.policy_head(features), unroll.observation)
        value = self._value(features)
        log_prob, entropy = self.actions.log_prob(parameters, unroll.action), self.actions.entropy(parameters)
        if config.objective == "ppo":
            advantages, returns = advantages_and_returns(unroll, config, unit)
            surrogate = policy_loss(log_prob, unroll.log_prob, advantages, config.clip_ratio)
        else:
            advantages, returns = self._vtrace(unroll, value.detach(), log_prob.detach())
            surrogate = -advantages * log_prob
        actor = ActorLoss(surrogate - costs.entropy_cost * entropy_scale * entropy, log_prob, entropy)
        critic = 0.5 * ((returns - value) / unit).square()
        total = masked_mean(actor.loss + config.return_cost * critic, unroll.is_valid)
        metrics = actor_critic_metrics(unroll, actor, value, returns)
        for loss, found in (
            self._latent_loss(activations, unroll),
            self._reward_loss(sequences_of(unroll) if sequences is None else sequences),
            self._control_loss(features, unroll, actions),
        ):
            total, metrics = total + loss, metrics | found
        return Losses(total, {name: x.detach() for name, x in metrics.items()})

    def _vtrace(
        self, unroll: Unroll, value: Float[Tensor, "T B"], log_prob: Float[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
        """Return the policy's advantages, in units of returns, and the value's targets, by what the agent says now."""
        following = torch.cat([value[1:], unroll.next_value[-1:]])
        next_value = torch.where(unroll.is_end, unroll.next_value, following)
        ratio = torch.exp(log_prob - unroll.log_prob)
        follow = (unroll.reward, unroll.discount, value, next_value, unroll.is_end, ratio)
        returns, advantages = vtrace(*follow, self.config.gae_lambda)
        advantages = advantages / self.return_scale.unit
        if self.config.normalize_advantages:
            advantages = normalized(advantages, unroll.is_valid, self.config.least_advantage_spread)
        return advantages, returns

    def _latent_loss(self, activations: FTWActivations, unroll: Unroll) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the latent costs, and its nats."""
        if not self.latents.size:
            return unroll.reward.new_zeros(()), {}
        prior, posterior = gaussian(activations.prior), gaussian(activations.posterior)
        origin = DiagonalGaussian(torch.zeros_like(prior.mean), torch.full_like(prior.mean, 2 * math.log(INITIAL_STD)))
        kl = masked_mean(posterior.kl_nats(prior), unroll.is_valid)
        at_ticks = unroll.is_valid & activations.ticks
        prior_kl = torch.where(at_ticks, prior.kl_nats(origin), 0.0)
        weight = self.kl_weight.to(kl.dtype)
        costs = self.hyperparameters
        loss = weight * (costs.kl_cost * kl + costs.prior_kl_cost * masked_mean(prior_kl, unroll.is_valid))
        return loss, {
            "kl_nats": kl,
            "prior_kl_nats": masked_mean(prior_kl, at_ticks),
            "kl_cost": torch.as_tensor(costs.kl_cost * weight),
        }

    @property
    def kl_weight(self) -> Float[Tensor, ""]:
        """The running variance of returns, in the units that losses are in: what KL weights are multiplied by."""
        return self.return_moments.variance[0] / torch.as_tensor(self.return_scale.unit).double().square()

    def _reward_loss(self, sequences: Sequences) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what mistaking the next reward's sign costs."""
        if self.reward_prediction is None:
            return self.return_moments.mean.new_zeros(()), {}
        nats, accuracy = self.reward_prediction.loss(self.encoder(sequences.observation), sequences.sign)
        metrics = {"reward_prediction_nats": nats, "reward_prediction_accuracy": accuracy}
        return self.hyperparameters.reward_prediction_cost * nats, metrics

    def _control_loss(
        self, features: Float[Tensor, "T B F"], unroll: Unroll, actions: Float[Tensor, "T B E"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what mistaking changes of what is seen costs."""
        losses = {
            f"{name}_control_loss": control.loss(features, unroll.observation[name], actions, unroll)
            for name, control in zip(self.controlled, self.pixel_controls, strict=True)
        }
        return self.hyperparameters.pixel_control_cost * sum(losses.values(), features.new_zeros(())), losses

    def take_returns(self, unroll: Unroll, returns: Float[Tensor, "T B"]) -> None:
        """Take in a window's returns, whose variance the KL weights follow."""
        super().take_returns(unroll, returns)
        self.return_moments.update(returns.unsqueeze(-1), unroll.is_valid)

    @torch.no_grad()
    def features(self, observation: Any, output: StepOutput, state: FTWState) -> dict[str, Float[Tensor, "B _"]]:
        """Return the agent's knowledge after a step, by where it is held. See `Agent.features`."""
        found = {"encoding": self.encoder(flatten_observation(observation)), "recurrent state": state.core.fast.hidden}
        if output.latent is not None:
            found |= {"latent": output.latent, "slow recurrent state": state.core.slow_hidden}
        return found | ({} if self.memory is None else {"reads": state.core.fast_words})

    def slots_before_reads(self, output: StepOutput, state: FTWState) -> Int[Tensor, "B"] | None:
        """Return where the slow core wrote, −1 where it did not tick. See `Agent.slots_before_reads`."""
        if output.slots is None or output.extras.slow_slots is None:
            return None
        ticked = (state.core.num_steps - 1) % self.hyperparameters.tick_steps == 0
        return output.extras.slow_slots.masked_fill(~ticked, -1)

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell of a posterior that says nothing beyond the prior, where V explains nothing either."""
        kl, explained, cost = (metrics.get(x, math.nan) for x in ("kl_nats", "value_explained", "kl_cost"))
        if not (kl < COLLAPSED_NATS and explained < UNEXPLAINED and cost > 0):
            return {}
        return {
            "collapse": f"the posterior has collapsed onto the prior (KL {kl:.2g} nats), and V explains "
            f"{max(0, explained):.0%} of the variance of returns: lower the KL weight with "
            + option("set", f"model.kl_cost={0.1 * self.hyperparameters.kl_cost:.2g}")
        }
