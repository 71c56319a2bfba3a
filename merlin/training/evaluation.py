"""Scores of a player: the returns, lengths and successes of its episodes."""

import math
from typing import Any

import torch

from merlin.environments.batch import Environment
from merlin.training.play import Moment, Observer, Player, play

HELD_OUT_SEED = 1_000_000_007
"""Added to a run's seed for evaluation, so that no episode begins as one in training did."""
CHOOSING_SEED = 2_000_000_011
"""Added to it for evaluations in training, which choose the best weights: they are evaluated on other episodes."""


class Evaluation(Observer):
    """Scores of `episodes` episodes.

    Every environment plays the same number of episodes, one more for the first ones if need be, so that short episodes
    are not counted more often than long ones.

    Args:
        skip: Episodes that each environment plays before any counts.
    """

    def __init__(self, environment: Environment, episodes: int, skip: int = 0) -> None:
        num_envs, device = environment.num_envs, environment.device
        self.wanted = torch.full((num_envs,), episodes // num_envs, device=device)
        self.wanted[: episodes % num_envs] += 1
        self.skipped = torch.full_like(self.wanted, skip)
        self.running, self.length = (torch.zeros(num_envs, device=device) for _ in range(2))
        self.returns: list[float] = []
        self.lengths: list[float] = []
        self.successes: list[float] = []
        self.env_steps = 0

    def observe(self, moment: Moment) -> None:
        """Count a step, and the episodes that it ended."""
        acting, following = ~moment.timestep.is_last, moment.next_timestep
        self.running, self.length = self.running + following.reward, self.length + acting
        is_end, counts = following.is_end, (self.wanted > 0) & (self.skipped == 0)
        ended = is_end & counts
        self.env_steps += int((acting & counts).sum())
        self.returns += self.running[ended].tolist()
        self.lengths += self.length[ended].tolist()
        self.successes += following.success[ended].tolist()
        self.running, self.length = self.running.masked_fill(is_end, 0), self.length.masked_fill(is_end, 0)
        self.wanted = self.wanted - ended.to(self.wanted.dtype)
        self.skipped = (self.skipped - is_end.to(self.skipped.dtype)).clamp(min=0)
        self.is_done = not bool((self.wanted > 0).any())

    def result(self) -> dict[str, Any]:
        """Return mean, spread and length of the episodes, and the success rate where the task defines success."""
        scores = torch.tensor(self.returns, dtype=torch.float64)
        result = {
            "episode_return_mean": scores.mean().item(),
            "episode_return_std": scores.std(correction=0).item(),
            "episode_length_mean": sum(self.lengths) / len(self.lengths),
            "episodes": len(self.returns),
            "env_steps": self.env_steps,
        }
        told = [success for success in self.successes if not math.isnan(success)]
        if told:  # an episode that does not tell, where others do, has not succeeded
            result["success_rate"] = sum(told) / len(self.successes)
        return result


def evaluate(
    agent: Player, environment: Environment, *, episodes: int, seed: int, greedy: bool = False, skip: int = 0
) -> dict[str, Any]:
    """Return the mean, spread and length of `episodes` episodes, and the success rate where the task defines success.

    See `Evaluation`.

    Args:
        seed: Of environments, actions and latents.
        greedy: Take the most probable actions rather than samples.
        skip: Episodes that each environment plays before any counts.
    """
    evaluation = Evaluation(environment, episodes, skip)
    play(agent, environment, evaluation, seed=seed, greedy=greedy)
    return evaluation.result()
