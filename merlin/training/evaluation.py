"""Plays episodes with a trained agent and counts."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.environments.batch import Environment
from merlin.experience import StepOutput

HELD_OUT_SEED = 1_000_000_007
"""Added to a run's seed for evaluation, so that no episode begins as one in training did."""
CHOOSING_SEED = 2_000_000_011
"""Added to it for evaluations in training, which choose the best weights: they are evaluated on other episodes."""


@runtime_checkable
class Player(Protocol):
    """What can play: an agent, or whatever acts as one. See `merlin.agents.Agent`."""

    def initial_state(self, batch_size: int) -> Any:
        """Return the state before anything was seen."""

    def step(
        self,
        observation: Any,
        state: Any,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, Any]:
        """Return the action and the next state."""


@torch.no_grad()
def evaluate(
    agent: Player, environment: Environment, *, episodes: int, seed: int, greedy: bool = False, skip: int = 0
) -> dict[str, Any]:
    """Return the mean, spread and length of `episodes` episodes, and the success rate where the task defines success.

    Every environment plays the same number of episodes, one more for the first ones if need be, so that short episodes
    are not counted more often than long ones.

    Args:
        seed: Of environments, actions and latents.
        greedy: Take the most probable actions rather than samples.
        skip: Episodes that each environment plays before any counts.
    """
    count, device = environment.num_envs, environment.device
    generator = torch.Generator(device).manual_seed(seed)
    wanted = torch.full((count,), episodes // count, device=device)
    wanted[: episodes % count] += 1
    skipped = torch.full_like(wanted, skip)
    timestep, state = environment.reset(seed), agent.initial_state(count)
    running, length = torch.zeros(count, device=device), torch.zeros(count, device=device)
    returns, lengths, successes = [], [], []
    env_steps = 0
    while (wanted > 0).any():
        output, state = agent.step(
            timestep.observation, state, timestep.is_first, timestep.reward, generator=generator, greedy=greedy
        )
        acting = ~timestep.is_last
        timestep = environment.step(output.action)
        running, length = running + timestep.reward, length + acting
        over, counts = timestep.terminated | timestep.truncated, (wanted > 0) & (skipped == 0)
        ended = over & counts
        env_steps += int((acting & counts).sum())
        returns += running[ended].tolist()
        lengths += length[ended].tolist()
        successes += timestep.success[ended].tolist()
        running, length = running.masked_fill(over, 0), length.masked_fill(over, 0)
        wanted = wanted - ended.to(wanted.dtype)
        skipped = (skipped - over.to(skipped.dtype)).clamp(min=0)
    scores = torch.tensor(returns, dtype=torch.float64)
    result = {
        "episode_return_mean": scores.mean().item(),
        "episode_return_std": scores.std(correction=0).item(),
        "episode_length_mean": sum(lengths) / len(lengths),
        "episodes": len(returns),
        "env_steps": env_steps,
    }
    defined = [success for success in successes if not math.isnan(success)]
    if defined:
        result["success_rate"] = sum(defined) / len(defined)
    return result
