"""Losses of actor-critic agents: pure functions of `[T, B]` tensors, and the configuration that they share.

Axes: T time, B batch.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin import distributed
from merlin.experience import Unroll
from merlin.networks.actions import ActionDistribution
from merlin.objectives.columns import check_shapes
from merlin.objectives.columns import masked_mean as masked_mean
from merlin.objectives.returns import generalized_advantages, n_step_returns
from merlin.objectives.value_transport import transported
from merlin.ranges import COST, Range, Settings, above


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(Settings):
    """What every agent trained by advantages is configured with."""

    discount_factor: Annotated[float, Range(0, 1)] = 0.96
    """Of the return, per step."""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.9
    """Of the generalised advantage estimates: 0 trusts the value function, 1 the window's returns."""
    entropy_cost: Annotated[float, COST] = 0.01
    """Weight of the policy's entropy, in nats, against its advantages."""
    return_cost: Annotated[float, COST] = 1.0
    """Weight of the return (value) loss."""
    clip_ratio: Annotated[float, above(0)] = 0.2
    """PPO's clipping range; it acts only when a window is learnt from more than once."""
    policy_hidden_gain: Annotated[float | None, above(0, 1000)] = None
    """Start the policy head's tanh layer orthogonal and this large, bent enough to learn what depends on two inputs
    together, such as a cue and an object; PyTorch's almost linear start unless given."""
    normalize_advantages: bool = False
    """Divide advantages by their standard deviation over the window's batch, that of all processes."""
    least_advantage_spread: Annotated[float, Range(0, 1000)] = 0.0
    """Normalised advantages are divided by no less than this, in units of returns. Where no reward is in sight they are
    errors of V alone, however small: made as large as any, they teach the policy something, and its entropy is gone
    before the first success."""
    running_scales: bool = False
    """Standardise vectors by their running mean and spread, see rewards in units of their size, and learn V in units of
    the returns' spread (PopArt), so that costs and rates mean the same in whatever units an environment is."""
    value_transport: Annotated[float, COST] = 0.0
    """α of temporal value transport: this part of the value ahead of a sharp read is a reward of the step whose word is
    read, if both are in one window (Hung et al. 2019, arXiv:1810.06721). The paper's is 0.9; 0 leaves it out."""
    transport_read_strength: Annotated[float, Range(0, 1000)] = 2.0
    """Strength that a read must exceed for value to be transported; the paper's."""
    transport_min_steps: Annotated[int | None, Range(0, 100_000)] = None
    """Value is transported over more steps than these; none takes 1 / (1 − discount_factor), as the paper."""
    box_actions: Literal["gaussian", "beta"] = "gaussian"
    """Distribution of a Box's numbers that have two finite bounds: a Gaussian, clipped by the environment; or a Beta
    between the bounds, of which what is drawn is executed as it is, and whose entropy is the same in all units."""


def policy_loss(
    log_prob: Float[Tensor, "T B"],
    behaviour_log_prob: Float[Tensor, "T B"],
    advantages: Float[Tensor, "T B"],
    clip_ratio: float,
) -> Float[Tensor, "T B"]:
    """Return PPO's clipped surrogate, whose gradient in a window's first pass is the policy gradient −A ∇log π(a).

        ratio = π(a) / π_behaviour(a)
        loss  = −min(ratio · A, clip(ratio, 1 − ε, 1 + ε) · A)

    Schulman et al. 2017, arXiv:1707.06347, Eq 7.
    """
    check_shapes(log_prob=log_prob, behaviour_log_prob=behaviour_log_prob, advantages=advantages)
    ratio = torch.exp(log_prob - behaviour_log_prob)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages)


def advantages_and_returns(
    unroll: Unroll, config: ActorCriticConfig, unit: Float[Tensor, ""] | float = 1.0
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """Return advantages for the policy and n-step returns for the value function, both constants.

    Both are of the rewards and of what value transport adds to them.

    Args:
        unit: Of returns; advantages are in it.
    """
    follow = (unroll.reward + transported_of(unroll, config), unroll.discount)
    advantages = generalized_advantages(*follow, unroll.value, unroll.next_value, unroll.is_end, config.gae_lambda)
    advantages = advantages / unit
    if config.normalize_advantages:
        advantages = normalized(advantages, unroll.is_valid, config.least_advantage_spread)
    return advantages, n_step_returns(*follow, unroll.next_value, unroll.is_end)


def transported_of(unroll: Unroll, config: ActorCriticConfig) -> Float[Tensor, "T B"]:
    """Return what value transport adds to the window's rewards; zeros unless configured."""
    if not config.value_transport:
        return torch.zeros_like(unroll.reward)
    settings = (config.value_transport, config.transport_read_strength, config.transport_min_steps)
    return transported(unroll, config.discount_factor, *settings)


def normalized(
    advantages: Float[Tensor, "T B"], is_valid: Bool[Tensor, "T B"], least: float = 0.0
) -> Float[Tensor, "T B"]:
    """Return advantages divided by their standard deviation over valid rows, those of all processes, or by `least`."""
    counted = torch.where(is_valid, advantages, 0.0)  # other rows may hold anything, NaN too
    sums = [x.sum() for x in (is_valid.to(advantages.dtype), counted, counted.square())]
    rows, first, second = distributed.total(torch.stack(sums))
    rows = rows.clamp(min=1)
    return advantages * torch.rsqrt((second / rows - (first / rows).square()).clamp(min=max(1e-8, least**2)))


class ActorLoss(NamedTuple):
    """The policy's loss in each row, the log-probability of what was done, and the policy's entropy in nats."""

    loss: Float[Tensor, "T B"]
    log_prob: Float[Tensor, "T B"]
    entropy: Float[Tensor, "T B"]


def actor_loss(
    actions: ActionDistribution,
    parameters: Float[Tensor, "T B A"],
    unroll: Unroll,
    advantages: Float[Tensor, "T B"],
    config: ActorCriticConfig,
    entropy_scale: float,
) -> ActorLoss:
    """Return the policy loss less the entropy's bonus: policy_loss − entropy_cost · entropy_scale · entropy.

    Both are of the policy restricted to what the window's masks allow, if there are any.
    """
    parameters = actions.restrict(parameters, unroll.observation)
    log_prob, entropy = actions.log_prob(parameters, unroll.action), actions.entropy(parameters)
    loss = policy_loss(log_prob, unroll.log_prob, advantages, config.clip_ratio)
    return ActorLoss(loss - config.entropy_cost * entropy_scale * entropy, log_prob, entropy)


def actor_critic_metrics(
    unroll: Unroll,
    actor: ActorLoss,
    value: Float[Tensor, "T B"],
    returns: Float[Tensor, "T B"],
    config: ActorCriticConfig | None = None,
) -> dict[str, Tensor]:
    """Return metrics that every actor-critic reports, with gradients.

    Args:
        config: Tells whether value is transported.
    """

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x, unroll.is_valid)

    metrics = {
        "entropy_nats": mean(actor.entropy),
        "return_loss": 0.5 * mean((returns - value).square()),
        "policy_kl_nats": policy_kl_nats(unroll, actor.log_prob),
    }
    if config is not None and config.value_transport:
        metrics["transported_reward"] = mean(transported_of(unroll, config))
    return metrics


def policy_kl_nats(unroll: Unroll, log_prob: Float[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Return an estimate of KL(π_behaviour ‖ π) from the actions taken: the mean of ratio − 1 − log ratio.

    Unlike the mean of −log ratio it is never negative, and of less variance: Schulman 2020,
    http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = log_prob - unroll.log_prob
    return masked_mean(log_ratio.exp() - 1 - log_ratio, unroll.is_valid)
