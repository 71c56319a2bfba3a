"""Plays episodes with a trained agent and counts."""

import math
from typing import Any

import torch

from merlin.agents.agent import Agent
from merlin.training.environment import Environment

HELD_OUT_SEED = 1_000_000_007
"""Added to a run's seed for evaluation, so that no episode begins as one in training did."""


@torch.no_grad()
def evaluate(
    agent: Agent, environment: Environment, *, episodes: int, seed: int, greedy: bool = False
) -> dict[str, Any]:
    """Return the mean, spread and length of `episodes` episodes, and the success rate where the task defines success.

    Every environment plays the same number of episodes, one more for the first ones if need be, so that short episodes
    are not counted more often than long ones.

    Args:
        seed: Of environments, actions and latents.
        greedy: Take the most probable actions rather than samples.
    """
    count, device = environment.num_envs, environment.device
    generator = torch.Generator(device).manual_seed(seed)
    wanted = torch.full((count,), episodes // count, device=device)
    wanted[: episodes % count] += 1
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
        ended = (timestep.terminated | timestep.truncated) & (wanted > 0)
        env_steps += int((acting & (wanted > 0)).sum())
        returns += running[ended].tolist()
        lengths += length[ended].tolist()
        successes += timestep.success[ended].tolist()
        over = timestep.terminated | timestep.truncated
        running, length = running.masked_fill(over, 0), length.masked_fill(over, 0)
        wanted = wanted - ended.to(wanted.dtype)
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
