"""What may change while an agent of a population learns: numbers that no shape depends on."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Hyperparameters(NamedTuple):
    """Weights of losses and the like, which an agent reads at every step and loss. See `FTWConfig` for each."""

    tick_steps: int
    slow_gradient_scale: float
    entropy_cost: float
    kl_cost: float
    prior_kl_cost: float
    reward_prediction_cost: float
    pixel_control_cost: float


def internal_reward(events: Float[Tensor, "*batch V"], weights: Float[Tensor, "V"]) -> Float[Tensor, "*batch"]:
    """Return the reward that an agent makes itself of a game's events: Σᵥ weights[v] · events[v], without gradient.

    What it gives takes the place of the environment's reward, in what an agent sees and in what it learns from alike.
    Jaderberg et al. 2019, arXiv:1807.01281.

    Args:
        events: How often each happened in a step.
    """
    with torch.no_grad():
        return events @ weights
