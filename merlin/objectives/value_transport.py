"""Temporal value transport: what a memory is read for is credited to the step that wrote it, however long ago.

Hung et al. 2019, arXiv:1810.06721, Supplement, Algorithms 1 and 2. Pure functions of `[T, B]` tensors.

Axes: T time, B batch, K read keys, S steps that wrote (S = T).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.experience import Reads, Unroll

UNDISCOUNTED_STEPS = 25
"""Steps that are too near where nothing is discounted, so that there is no horizon: those of the authors' program."""


def horizon_steps(discount_factor: float) -> int:
    """Return the steps that discounted rewards reach back by themselves: 1 / (1 − γ), rounded down."""
    if discount_factor == 1:
        return UNDISCOUNTED_STEPS
    return math.floor(1 / (1 - discount_factor) + 1e-9)  # 1 / (1 − 0.9) is 10, and a little less in floats


def read_events(
    strengths: Float[Tensor, "T B K"], is_first: Bool[Tensor, "T B"], threshold: float
) -> Bool[Tensor, "T B K"]:
    """Return where each key asks most sharply, once in every run of steps in which its strength is above `threshold`.

    A run ends with its episode. Of equal strengths the first counts.
    """
    is_above = strengths > threshold
    goes_on = torch.cat([torch.zeros_like(is_above[:1]), is_above[:-1]]) & ~is_first.unsqueeze(-1)
    run = (is_above & ~goes_on).cumsum(0)  # numbered from 1 for each key
    strengths = strengths.masked_fill(~is_above, 0)
    runs = strengths.new_zeros(len(strengths) + 1, *strengths.shape[1:])
    is_peak = is_above & (strengths == runs.scatter_reduce(0, run, strengths, "amax").gather(0, run))
    peaks = is_peak.cumsum(0)
    before = torch.where(is_above & ~goes_on, peaks - is_peak.long(), 0).cummax(0).values  # peaks of earlier runs
    return is_peak & (peaks - before == 1)


def transported_rewards(
    reads: Reads,
    following_value: Float[Tensor, "T B"],
    is_first: Bool[Tensor, "T B"],
    alpha: float,
    threshold: float,
    min_steps: int,
) -> Float[Tensor, "T B"]:
    """Return what each step is credited with because its word was read later: a reward besides its own.

        reward[s] += α · Σ  weights[t, k, s] · V[t+1]       over read events t of key k with t − s > min_steps
                       t, k

    An event is the step at which a key's strength is the largest while it stays above `threshold`. A read whose
    heaviest word is `min_steps` old at most is of the present, and no part of any event, as in the authors' program.

    Args:
        following_value: V[t+1], that of what row t's action led to; 0 where it terminated the episode.
        alpha: α. The paper's is 0.9.
        threshold: The paper's is 2.
        min_steps: The paper's is `horizon_steps`.
    """
    steps = torch.arange(len(is_first), device=is_first.device)
    is_far = steps.unsqueeze(1) - steps > min_steps  # of the reading step and the one that wrote
    far = reads.weights * is_far[:, None, None]
    near = reads.weights - far
    is_of_the_past = torch.maximum(far.amax(-1), reads.earlier) > near.amax(-1)
    is_event = read_events(reads.strengths.masked_fill(~is_of_the_past, 0), is_first, threshold)
    return alpha * torch.einsum("tbk,tbks,tb->sb", is_event.to(far.dtype), far, following_value)


def transported(
    unroll: Unroll, discount_factor: float, alpha: float, threshold: float, min_steps: int | None
) -> Float[Tensor, "T B"]:
    """Return `transported_rewards` of a window that was acted in.

    Args:
        min_steps: None takes `horizon_steps`.
    """
    following_value = unroll.next_value.masked_fill(unroll.discount == 0, 0)
    assert unroll.reads is not None, "value is transported in windows that were acted in with it"
    reads = unroll.reads._replace(strengths=unroll.reads.strengths * unroll.is_valid.unsqueeze(-1))
    min_steps = horizon_steps(discount_factor) if min_steps is None else min_steps
    return transported_rewards(reads, following_value, unroll.is_first, alpha, threshold, min_steps)
