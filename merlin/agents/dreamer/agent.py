"""DreamerV2: a world model, and a policy that learns in what it imagines. Hafner et al. 2021, arXiv:2010.02193."""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from gymnasium import Space
from jaxtyping import Bool, Float
from torch import Tensor, nn

from merlin import distributed
from merlin.agents.agent import Advanced, Agent, Perceived
from merlin.agents.dreamer.learner import DreamerLearner
from merlin.agents.dreamer.world_model import WorldModel, WorldModelConfig
from merlin.agents.learner import Learner, LearnerConfig
from merlin.errors import option
from merlin.experience import Losses, Unroll
from merlin.networks.constant import as_constant
from merlin.networks.heads import mlp
from merlin.networks.initialization import start_glorot, start_neutral
from merlin.objectives.columns import mean, spread
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.objectives.returns import lambda_returns
from merlin.ranges import COST, COUNT, Range, above
from merlin.states import reset_state

LEAST_SPREAD = 0.05
"""Of advantages, in rewards, below which they are not made larger: a policy must not settle on noise before rewards are
found."""
SPREAD_DECAY = 0.99
"""Of the running spread of advantages."""
UNEXPLAINED = 0.05
"""Below this part, as good as nothing is predicted."""


@dataclass(frozen=True, kw_only=True)
class DreamerConfig(WorldModelConfig, ActorCriticConfig):
    """The world model's configuration, that of imagination, and that of the replay. What is given is the paper's."""

    discount_factor: Annotated[float, Range(0, 1)] = 0.995
    """Of the return, per step."""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """λ of imagined returns."""
    entropy_cost: Annotated[float, COST] = 1e-3
    """Weight of the policy's entropy, in nats, against its advantages."""
    imagination_length: Annotated[int, Range(1, 1000)] = 15
    """H, steps imagined from each start."""
    imagination_starts: Annotated[int | None, COUNT] = None
    """Rows of a batch that imagination starts from, drawn at random; none takes all."""
    reinforce_fraction: Annotated[float, Range(0, 1)] = 1.0
    """ρ, the part of REINFORCE in the policy's gradient; the rest passes through the world model. The paper has 1 for
    choices and 0 for numbers."""
    scale_advantages: bool = False
    """Divide advantages by their running spread, so that `entropy_cost` means the same in all tasks."""
    target_updates: Annotated[int, COUNT] = 100
    """Updates after which the value function that returns are bootstrapped by becomes the one that learns."""
    replay_rows: Annotated[int, COUNT] = 2_000_000
    """Rows that the replay holds, of all environments."""
    replay_windows: Annotated[int, COUNT] = 50
    """Windows that each update learns from, each of `training.unroll_length` rows."""
    replay_ratio: Annotated[float, above(0, 100_000)] = 625.0
    """Rows learnt from per row experienced. The paper makes an update of 50 windows of 50 rows every 4 steps."""
    replay_state: Literal["stored", "zero"] = "zero"
    """What a replayed window starts from: the state that acting began it with, or nothing, as in the paper."""
    prefill_steps: Annotated[int, Range(0, 2**62)] = 50_000
    """Environment steps before the first update."""
    weight_decay: Annotated[float, Range(0, 1)] = 1e-6
    """Part of every parameter that an update takes off, whatever the learning rate."""


class DreamerState(NamedTuple):
    """z, h; a_{t-1}, encoded."""

    latent: Float[Tensor, "B Z"]
    hidden: Float[Tensor, "B D"]
    previous_action: Float[Tensor, "B E"]


class DreamerActivations(NamedTuple):
    """The posterior's parameters, and s = [z, h], which is what can be decoded."""

    posterior: Float[Tensor, "*batch Y"]
    latent: Float[Tensor, "*batch F"]


class DreamerExtras(NamedTuple):
    """What the latent was sampled with."""

    noise: Float[Tensor, "*batch Z"]


class Dream(NamedTuple):
    """H steps imagined from I states, as constants unless gradients pass through the model.

    Attributes:
        features: Those of the starts, then those that actions led to.
        weight: Probability of coming so far, the discounts of all steps before multiplied.
        values: What the target says that states are worth.
        returns: λ-returns of the steps.
    """

    features: Float[Tensor, "H+1 I F"]
    actions: Tensor
    reward: Float[Tensor, "H I"]
    weight: Float[Tensor, "H I"]
    values: Float[Tensor, "H+1 I"]
    returns: Float[Tensor, "H I"]


class Dreamer(Agent[DreamerConfig, DreamerState]):
    """DreamerV2, one time step in order:

        h      = gru(elu(W [z, a]), h);   z ~ posterior_network([h, encoder(o)]);   s = [z, h]
        a      ~ policy(s)

    The world model learns from replayed windows (`WorldModel.loss`). Policy and value learn from what it imagines, H
    steps from replayed states, r̂, ĝ being the reward and the discount expected of the state arrived at:

        G[k]     = r̂[k] + ĝ[k] · ((1 − λ) v'(s[k+1]) + λ G[k+1]);   w[k] = Π_{j<k} sg ĝ[j]
        L_value  = mean w · ½ (v(s) − sg G)²
        L_policy = mean w · (−ρ · log π(a) · sg(G − v'(s)) / scale − (1 − ρ) · G / scale − η · entropy)

    v' is a copy of v, made anew every `target_updates`. No gradient of policy and value reaches the model, and none of
    the model's them.

    Differences from the paper, each with the setting that leads back to it, and to which `--preset paper` does:

    1. The previous reward may be observed (`observe_reward`, the paper: false).
    2. Windows are replayed from the state that acting began them with (`replay_state`, the paper: zero), and as they
       were collected, across episodes; the paper's begin anywhere in an episode and end within it.
    3. Advantages are divided by their running spread (`scale_advantages`, the paper: false), which makes 1e-3 nats of
       `entropy_cost` too few: 0.05.
    4. Latents have 1% of the uniform distribution in them (`latent_uniform_mix`, the paper: 0).
    5. Fewer and smaller groups (`latent_groups`, `latent_classes`, the paper: 32 and 32), a KL weight of 1 (`kl_cost`,
       0.1), a weight of 20 for rewards (`reward_cost`, 1) as they are (`reward_transform`, tanh), fewer imagined steps
       from a part of the states (`imagination_length`, `imagination_starts`, 15 and all), larger rates
       (`training.learning_rate`, `policy_learning_rate`, `value_learning_rate`: 2e-4, 4e-5, 1e-4), fewer updates
       (`replay_ratio`, 625), no weight decay (`weight_decay`, 1e-6).
    6. Rewards and discounts are those of the state arrived at; where it was never seen, as at an episode's end, the
       model imagines it. The authors' code stores final observations in the replay.
    7. Numbers are Gaussian or Beta (`box_actions`), not truncated normals in [−1, 1].
    8. Returns are those of generalised advantages: the baseline of an action is the state that it is taken in, by v'
       rather than v.
    9. Behaviour is learnt in the same update as the model, with the model before it.
    10. Pixels are Bernoulli (`decoder.image_likelihood`, the paper: gaussian), and pictures go through MERLIN's
        residual convolutions rather than four plain ones.

    Settings of `ActorCriticConfig` that are PPO's have no effect: `clip_ratio`, `return_cost`,
    `normalize_advantages`, `least_advantage_spread`, `policy_hidden_gain`. In imagination there are no masks of
    actions.
    """

    config_class = DreamerConfig
    spread: Float[Tensor, ""]

    def __init__(self, spaces: dict[str, Space], action_space: Space, config: DreamerConfig) -> None:
        super().__init__(spaces, action_space, config)
        self.model = WorldModel(spaces, self.actions, config, config.running_scales)
        layers = (config.head_size,) * config.head_layers
        self.policy = mlp(self.model.feature_size, layers, self.actions.num_parameters, activation=nn.ELU)
        self.value_head = mlp(self.model.feature_size, layers, 1, activation=nn.ELU)
        for head in (self.policy, self.value_head):
            start_glorot(head)
            start_neutral(head)
        self.value_target = copy.deepcopy(self.value_head).requires_grad_(False)
        self.register_buffer("spread", torch.zeros(()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the world model, of the policy and of the value function."""
        parts = {"model": self.model, "policy": self.policy, "value": self.value_head}
        return {name: list(part.parameters()) for name, part in parts.items()}

    def learner(self, config: LearnerConfig, generator: torch.Generator) -> Learner:
        """Return what learns from replayed windows, and in imagination."""
        return DreamerLearner(self, config, generator)

    def initial_state(self, batch_size: int) -> DreamerState:
        """Return zeros: nothing seen."""
        sizes = self.model.latents.size, self.config.deterministic_size, self.actions.encoding_size
        return DreamerState(*(self.spread.new_zeros(batch_size, size) for size in sizes))

    def encode(
        self,
        observation: dict[str, Tensor],
        previous_action: Float[Tensor, "*batch E"],
        previous_reward: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch C"]:
        """Return what the posterior's first layer makes of the observation."""
        return self.model.encode(observation, previous_reward)

    def perceive(
        self,
        code: Float[Tensor, "B C"],
        state: DreamerState,
        extras: DreamerExtras | None = None,
        generator: torch.Generator | None = None,
    ) -> Perceived:
        """Return the recurrence, the posterior and a sample of it. See `Agent.perceive`."""
        hidden = self.model.recur(state.latent, state.previous_action, state.hidden)
        posterior = self.model.posterior(code, hidden)
        extras = self.draw_extras(state, generator) if extras is None else extras
        latent = self.model.latents.from_parameters(posterior).sample(extras.noise)
        activations = DreamerActivations(posterior, torch.cat([latent, hidden], -1))
        return Perceived(activations, state._replace(latent=latent, hidden=hidden), extras)

    def draw_extras(self, state: DreamerState, generator: torch.Generator | None = None) -> DreamerExtras:
        """Return the noise of a new latent. See `Agent.draw_extras`."""
        return DreamerExtras(self.model.latents.draw_noise(len(state.hidden), state.hidden, generator))

    def likeliest_extras(self, state: DreamerState) -> DreamerExtras:
        """Return noise of 0, which makes the latent the posterior's mode. See `Agent.likeliest_extras`."""
        return DreamerExtras(torch.zeros_like(state.latent))

    def advance(self, perceived: Perceived, action: Float[Tensor, "B E"]) -> Advanced:
        """Remember the action. See `Agent.advance`."""
        return Advanced(perceived.state._replace(previous_action=action), perceived.extras)

    def policy_parameters(self, activations: DreamerActivations) -> Float[Tensor, "*batch A"]:
        """Return the parameters of the action's distribution, of s, which they do not shape."""
        return self.policy(activations.latent.detach())

    def value(
        self, activations: DreamerActivations, policy_parameters: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Return V, of s, which it does not shape, in units of rewards as the environment gives them."""
        value = self.value_head(activations.latent.detach()).squeeze(-1)
        return self.model.reward_scale.restore_reward(value)

    def loss(
        self,
        activations: DreamerActivations,
        unroll: Unroll,
        actions: Float[Tensor, "T B E"],
        previous_actions: Float[Tensor, "T B E"],
        entropy_scale: float,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Return the loss of a window, and of behaviour imagined from its states. See `Agent.loss`.

        Args:
            generator: Of what is drawn in imagination.
        """
        model_loss, metrics = self.model.loss(activations.posterior, activations.latent, unroll, actions, generator)
        starts = activations.latent.detach()[unroll.is_valid]
        if self.config.imagination_starts is not None and len(starts):
            count = (self.config.imagination_starts,)
            starts = starts[torch.randint(len(starts), count, generator=generator, device=starts.device)]
        behaviour = self.behaviour_loss(self.dream(starts, generator), entropy_scale)
        return Losses(
            model_loss + behaviour.total, {name: x.detach() for name, x in (metrics | behaviour.metrics).items()}
        )

    def with_noise(self, unroll: Unroll, generator: torch.Generator | None = None) -> Unroll:
        """Return a window with fresh noise for its latents."""
        length, count = unroll.is_first.shape
        noise = self.model.latents.draw_noise(length * count, self.spread, generator)
        return unroll._replace(extras=DreamerExtras(noise.unflatten(0, (length, count))))

    def dream(self, starts: Float[Tensor, "I F"], generator: torch.Generator | None = None) -> Dream:
        """Return what follows from states, as the model imagines it where the policy acts."""
        config = self.config
        passes_gradients = config.reinforce_fraction < 1
        model, target = as_constant(self.model), as_constant(self.value_target)
        with torch.set_grad_enabled(passes_gradients and torch.is_grad_enabled()):
            features, actions = [starts.detach()], []
            for _ in range(config.imagination_length):
                parameters = self.policy(features[-1].detach())
                action, code = self.actions.sample_code(parameters, generator)
                features.append(model.imagine(features[-1], code, generator))
                actions.append(action)
            states = torch.stack(features)
            reward, discount = model.reward(states[1:]), torch.sigmoid(model.discount_logit(states[1:]))
            values = target(states).squeeze(-1)
            never = torch.zeros_like(reward, dtype=torch.bool)
            returns = lambda_returns(reward, discount, values[1:], never, config.gae_lambda)
        weight = torch.cat([torch.ones_like(discount[:1]), discount[:-1].detach()]).cumprod(0)
        return Dream(states, torch.stack(actions), reward, weight, values, returns)

    def behaviour_loss(self, dream: Dream, entropy_scale: float = 1.0) -> Losses:
        """Return L_policy + L_value of what was imagined, and metrics. See the class."""
        config, states, weight = self.config, dream.features[:-1].detach(), dream.weight
        advantages = (dream.returns - dream.values[:-1]).detach()
        scale = self._advantage_scale(advantages)
        parameters = self.policy(states)
        entropy = self.actions.entropy(parameters)
        objective = config.entropy_cost * entropy_scale * entropy
        rho = config.reinforce_fraction
        if rho > 0:
            objective = objective + rho * self.actions.log_prob(parameters, dream.actions) * advantages / scale
        if rho < 1:
            objective = objective + (1 - rho) * dream.returns / scale
        value = self.value_head(states).squeeze(-1)
        error = value - dream.returns.detach()
        losses = {"policy_loss": -mean(weight * objective), "return_loss": mean(weight * 0.5 * error.square())}
        metrics = losses | {
            "entropy_nats": mean(entropy),
            "imagined_return": self.model.reward_scale.restore_reward(mean(dream.returns)),
            "imagined_reward": self.model.reward_scale.restore_reward(mean(dream.reward)),
            "advantage_spread": spread(advantages),
        }
        return Losses(sum(losses.values(), weight.new_zeros(())), metrics)

    def _advantage_scale(self, advantages: Float[Tensor, "H I"]) -> Float[Tensor, ""] | float:
        if not self.config.scale_advantages:
            return 1.0
        if self.training:
            now = spread(advantages).to(self.spread.dtype)
            now, processes = distributed.total(torch.stack([now, now.new_full((), advantages.numel() > 0)]))
            now = now / processes.clamp(min=1)
            now = torch.where(self.spread == 0, now, torch.lerp(now, self.spread, SPREAD_DECAY))
            self.spread.copy_(torch.where(processes > 0, now, self.spread))
        return self.spread.clamp(min=LEAST_SPREAD)

    def update_target(self) -> None:
        """Let v' become v."""
        self.value_target.load_state_dict(self.value_head.state_dict())

    @property
    def scales_are_new(self) -> bool:
        return self.model.reward_scale.is_new

    def update_scales(self, unroll: Unroll) -> None:
        """Take in a window. See `Agent.update_scales`."""
        self.model.update_scales(unroll)

    @torch.no_grad()
    def expect(self, state: DreamerState, is_first: Bool[Tensor, "B"]) -> dict[str, Tensor]:
        """Return the observation that is decoded from the prior's mean, before anything is seen. See `Agent.expect`."""
        state = reset_state(state, is_first)
        hidden = self.model.recur(state.latent, state.previous_action, state.hidden)
        prior = self.model.latents.from_parameters(self.model.prior(hidden))
        return self.reconstruct(torch.cat([prior.mean, hidden], -1))

    @torch.no_grad()
    def imagine(
        self,
        state: DreamerState,
        length: int,
        generator: torch.Generator | None = None,
        actions: Float[Tensor, "A B E"] | None = None,
    ) -> Float[Tensor, "T B F"]:
        """Return the features of `length` steps after `state` in which nothing is seen, and the policy acts.

        Args:
            actions: Codes of what is done in these steps, in place of what the policy would do; as many as are known.
        """
        known = () if actions is None else actions
        features = self.model.imagine(torch.cat([state.latent, state.hidden], -1), state.previous_action, generator)
        found = [features]
        for i in range(length - 1):
            if i < len(known):
                code = known[i]
            else:
                code = self.actions.encode(self.actions.sample(self.policy(features), generator))
            features = self.model.imagine(features, code, generator)
            found.append(features)
        return torch.stack(found)

    def infer(self, activations: DreamerActivations) -> Float[Tensor, "*batch F"]:
        """Return [the posterior's mean, h]."""
        posterior = self.model.latents.from_parameters(activations.posterior)
        return torch.cat([posterior.mean, self.model.split(activations.latent)[1]], -1)

    def reconstruct(self, latent: Float[Tensor, "*batch F"]) -> dict[str, Tensor]:
        """Return the observation that s = [z, h] stands for, entry by entry in the observation's units."""
        return self.model.decoder.mode(self.model.decode(latent))

    def warnings(self, metrics: dict[str, int | float]) -> dict[str, str]:
        """Tell of a prior that has learnt nothing, of rewards that are not predicted, and of a policy too soon sure."""
        known = {name: x for name, x in metrics.items() if math.isfinite(x)}
        prior, reward = (known.get(name, 1.0) for name in ("prior_explained", "reward_explained"))
        found = {}
        if prior < UNEXPLAINED and self.config.kl_cost:
            found["prior_explained"] = (
                f"the prior has learnt nothing ({max(0, prior):.0%} of what the latent says of a step, at a KL of "
                f"{known.get('kl_nats', math.nan):.3g} nats), so that what is imagined is not what happens: "
                + (
                    option("set", "model.free_nats=0")
                    if self.config.free_nats
                    else f"raise its weight with {option('set', f'model.kl_cost={10 * self.config.kl_cost:g}')}"
                )
            )
        if reward < UNEXPLAINED:
            found["reward_explained"] = (
                f"rewards are not predicted ({max(0, reward):.0%} explained), so that imagination pays nothing: raise "
                f"their weight with {option('set', f'model.reward_cost={10 * self.config.reward_cost:g}')}"
                + ("" if self.config.observe_reward else f", or {option('set', 'model.observe_reward=true')}")
            )
        entropy, most = known.get("entropy_nats", math.inf), math.log(max(2, self.actions.num_choices))
        if self.actions.num_choices and entropy < 0.05 * most and reward < 0.5:
            found["entropy"] = (
                f"the policy is sure (entropy {entropy:.2g} nats) before rewards are predicted ({max(0, reward):.0%} "
                f"explained): raise {option('set', f'model.entropy_cost={5 * self.config.entropy_cost:g}')}"
            )
        return found
