"""V, as the agent acted, against the discounted return that the rest of the episode then earned.

    G[t] = reward[t] + discount_factor · G[t+1]            to the episode's end, where nothing follows
    explained = 1 − mean (G − V)² / variance of G          over all steps of episodes that terminated

G is known only when the episode ends, windows later. No step need be kept until then. Of a running episode, with
P[t] what step t has earned so far, e[t] = P[t] − V[t], and d[t] what the next reward weighs in P[t], a reward r makes

    P += d · r      e += d · r      d *= discount_factor

so that sums over its steps follow from sums: Σe² += 2r Σed + r² Σd², and so on. An episode of any length is eight
numbers. A truncated episode would have gone on, so that its returns are unknown: its sums are NaN.

Axes: T time, B batch.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.experience import Unroll
from merlin.objectives.returns import n_step_returns

NUM_SUMS = 4
"""Of an episode that ended: its steps, Σ(G − V)², ΣG, ΣG²."""


def initial_sums(num_envs: int, device: torch.device) -> Float[Tensor, "B 8"]:
    """Return the sums of episodes that have no steps: n, Σe², ΣP, ΣP², Σd, Σd², Σed, ΣPd."""
    return torch.zeros(num_envs, 2 * NUM_SUMS, dtype=torch.float64, device=device)


def sum_window(
    unroll: Unroll, sums: Float[Tensor, "B 8"], truncated: Bool[Tensor, "T B"], discount_factor: float
) -> tuple[Float[Tensor, "T B 4"], Float[Tensor, "B 8"]]:
    """Return the sums of the episodes that a window ends, in the rows that end them, and those that run on.

    Args:
        sums: Of the episodes that run when the window begins.
        truncated: Rows with which an episode was cut.
    """
    is_end, is_valid = unroll.is_end, unroll.is_valid.double()
    length = len(is_end)
    reward = unroll.reward.double()
    discount = torch.full_like(reward, discount_factor)
    # What rows earn in the window; and those of episodes that it does not end, for as many steps as are left of it.
    earned = n_step_returns(reward, discount, torch.zeros_like(reward), is_end)
    left = torch.arange(length, 0, -1, device=reward.device)
    runs_on = is_end.flip(0).cumsum(0).flip(0) == 0
    sums = _earn(sums, earned[0], discount_factor**length)
    weight = is_valid * discount_factor ** left.double().unsqueeze(1)
    rows = _products(is_valid, earned - unroll.value.double(), earned, weight)

    goes_on = (~is_end).double().unsqueeze(-1)
    so_far = [sums[:, :NUM_SUMS] + rows[0, :, :NUM_SUMS]]
    for row, goes in zip(rows[1:, :, :NUM_SUMS].unbind(), goes_on[:-1].unbind(), strict=True):
        so_far.append(torch.addcmul(row, so_far[-1], goes))
    weights = sums[:, NUM_SUMS:] * runs_on[:1].T + (rows[..., NUM_SUMS:] * runs_on.unsqueeze(-1)).sum(0)
    following = torch.cat([so_far[-1] * goes_on[-1], weights], 1)
    return torch.stack(so_far).masked_fill(truncated.unsqueeze(-1), math.nan), following


def explained(sums: Float[Tensor, "E 4"]) -> float:
    """Return the fraction of the return's variance that V explained in episodes; NaN where there is none to explain."""
    known = sums[~sums[:, 0].isnan()]
    if not len(known):
        return math.nan
    steps, squared_error, total, squared = known.sum(0).tolist()
    variance = squared / steps - (total / steps) ** 2 if steps else 0.0
    # What rounding leaves of the variance of returns that are all the same is nothing to explain.
    return 1 - squared_error / steps / variance if variance > 1e-12 * max(squared / steps, 1e-300) else math.nan


def _earn(sums: Float[Tensor, "B 8"], reward: Float[Tensor, "B"], decay: float) -> Float[Tensor, "B 8"]:
    """Return the sums after what is worth `reward` at their next step, and decays what comes later."""
    n, ee, p, pp, d, dd, ed, pd = sums.unbind(1)
    ee, p, pp = ee + reward * (2 * ed + reward * dd), p + reward * d, pp + reward * (2 * pd + reward * dd)
    ed, pd = ed + reward * dd, pd + reward * dd
    return torch.stack([n, ee, p, pp, decay * d, decay**2 * dd, decay * ed, decay * pd], 1)


def _products(
    n: Float[Tensor, "T B"], e: Float[Tensor, "T B"], p: Float[Tensor, "T B"], d: Float[Tensor, "T B"]
) -> Float[Tensor, "T B 8"]:
    """Return what a row adds to the sums: nothing where n is 0."""
    return torch.stack([n, n * e.square(), n * p, n * p.square(), d, d.square(), e * d, p * d], -1)
