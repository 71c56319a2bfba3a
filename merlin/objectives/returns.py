"""Returns and advantages: pure functions of `[T, B]` tensors.

Every function takes columns of an `Unroll` (`merlin.experience` draws the time axis). Row t's action earns `reward[t]`;
`discount[t]` is 0 after termination; `next_value[t]` is the value of what the action led to: the next row's value, the
value of the final observation after a truncation, the bootstrap value in the last row. `is_end[t]` says that the
episode ended with row t's action, in either way, so that nothing of row t + 1 may reach row t. It may be bools, or
numbers that are not 0. Columns of other shapes than the rewards' are refused.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from merlin.objectives.columns import check_shapes


def n_step_returns(
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    next_value: Float[Tensor, "T B"],
    is_end: Shaped[Tensor, "T B"],
) -> Float[Tensor, "T B"]:
    """Return the window's returns, bootstrapped where it or an episode is cut.

    R[t] = reward[t] + discount[t] · (next_value[t] if t ends the episode or the window else R[t+1])
    """
    return lambda_returns(reward, discount, next_value, is_end, 1.0)


def lambda_returns(
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    next_value: Float[Tensor, "T B"],
    is_end: Shaped[Tensor, "T B"],
    gae_lambda: float,
) -> Float[Tensor, "T B"]:
    """Return the λ-returns of the window.

        G[t] = reward[t] + discount[t] · ((1 − λ) next_value[t] + λ G[t+1])

    with G[t+1] replaced by next_value[t] at the end of an episode or of the window. λ = 1 gives `n_step_returns`, λ = 0
    the one-step target. Sutton and Barto 2018, Eq 12.20.
    """
    check_shapes(reward=reward, discount=discount, next_value=next_value, is_end=is_end)
    mixing = gae_lambda * _goes_on(is_end).to(torch.promote_types(reward.dtype, torch.float32))
    base = reward + discount * (1 - mixing) * next_value
    decay = discount * mixing
    return _backwards(base, decay)


def generalized_advantages(
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    value: Float[Tensor, "T B"],
    next_value: Float[Tensor, "T B"],
    is_end: Shaped[Tensor, "T B"],
    gae_lambda: float,
) -> Float[Tensor, "T B"]:
    """Return the generalised advantage estimates of the window.

        δ[t] = reward[t] + discount[t] · next_value[t] − value[t]
        A[t] = δ[t] + discount[t] · λ · A[t+1]         (A[t+1] = 0 at the end of an episode or of the window)

    which is G[t] − value[t] with the λ-return G. Schulman et al. 2016, arXiv:1506.02438, Eq 16.
    """
    check_shapes(reward=reward, value=value)
    return lambda_returns(reward, discount, next_value, is_end, gae_lambda) - value


class VTrace(NamedTuple):
    """Targets of the value function, and advantages of the policy, both constants where they were made of constants."""

    returns: Float[Tensor, "T B"]
    advantages: Float[Tensor, "T B"]


def vtrace(
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    value: Float[Tensor, "T B"],
    next_value: Float[Tensor, "T B"],
    is_end: Shaped[Tensor, "T B"],
    ratio: Float[Tensor, "T B"],
    vtrace_lambda: float = 1.0,
) -> VTrace:
    """Return V-trace's targets: returns of a policy, of experience that another made.

        ρ[t] = min(1, ratio[t]);   c[t] = λ · ρ[t]
        δ[t] = ρ[t] · (reward[t] + discount[t] · next_value[t] − value[t])
        v[t] = value[t] + δ[t] + discount[t] · c[t] · (v[t+1] − next_value[t])
        A[t] = ρ[t] · (reward[t] + discount[t] · v[t+1] − value[t])

    with v[t+1] replaced by next_value[t] at the end of an episode or of the window. At ratio 1 or more and λ = 1 v is
    `n_step_returns`, and A `generalized_advantages` of λ = 1. Espeholt et al. 2018, arXiv:1802.01561, Eq 1.

    Args:
        ratio: π(a) / π_behaviour(a), of all parts of an action.
        vtrace_lambda: λ; at 0 targets look one step ahead.
    """
    check_shapes(reward=reward, discount=discount, value=value, next_value=next_value, is_end=is_end, ratio=ratio)
    rho, goes_on = ratio.clamp(max=1.0), _goes_on(is_end)
    decay = discount * vtrace_lambda * rho * goes_on
    base = value + rho * (reward + discount * next_value - value) - decay * next_value
    targets = _backwards(base, decay)
    following_targets = torch.where(goes_on, targets.roll(-1, 0), next_value)
    return VTrace(targets, rho * (reward + discount * following_targets - value))


def _backwards(base: Float[Tensor, "T B"], decay: Float[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return y[t] = base[t] + decay[t] · y[t+1], nothing following the last row."""
    results: list[Tensor] = []
    for row, factor in zip(reversed(base.unbind()), reversed(decay.unbind()), strict=True):
        results.append(torch.addcmul(row, factor, results[-1]) if results else row)
    return torch.stack(results[::-1]) if results else base


def _goes_on(is_end: Tensor) -> Bool[Tensor, "T B"]:
    """Return the rows that the next one follows, in the window and in the episode."""
    goes_on = is_end == 0
    goes_on[-1:] = False
    return goes_on
