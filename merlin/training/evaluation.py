"""Scores of a player: the returns, lengths and successes of its episodes."""

import math
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from merlin.environments.batch import Environment
from merlin.ranges import COUNT, check
from merlin.training.play import Moment, Observer, Player, play

HELD_OUT_SEED = 1_000_000_007
"""Added to a run's seed for evaluation, so that no episode begins as one in training did."""
CHOOSING_SEED = 2_000_000_011
"""Added to it for evaluations in training, which choose the best weights: they are evaluated on other episodes."""

MAX_STEPS = 10_000
"""Steps after which an evaluation gives an episode up, unless told, or unless the task declares a longer limit."""


def most_steps(environment: Environment) -> int:
    """Return after how many steps an episode is given up: `MAX_STEPS`, or the task's own limit if that is longer."""
    spec = environment.vector_env.spec
    return max(MAX_STEPS, (None if spec is None else spec.max_episode_steps) or 0)


class Evaluation(Observer):
    """Scores of `episodes` episodes.

    Every environment plays the same number of episodes, one more for the first ones if need be, so that short episodes
    are not counted more often than long ones. An environment whose episode takes more than `max_steps` plays no more:
    that episode, and those that should have followed it there, are unfinished.

    Args:
        skip: Episodes that each environment plays before any counts.
        max_steps: Of an episode; none takes `most_steps`.
        tell: Is called after each step.
    """

    def __init__(
        self,
        environment: Environment,
        episodes: int,
        skip: int = 0,
        max_steps: int | None = None,
        tell: Callable[["Evaluation"], object] | None = None,
    ) -> None:
        check("episodes", episodes, Annotated[int, COUNT])
        check("max_steps", max_steps, Annotated[int | None, COUNT])
        self.episodes, self.max_steps, self.tell = episodes, max_steps or most_steps(environment), tell
        self.num_steps, self.unfinished = 0, 0
        self.unfinished_returns: list[float] = []
        num_envs, device = environment.num_envs, environment.device
        self.wanted = torch.full((num_envs,), episodes // num_envs, device=device)
        self.wanted[: episodes % num_envs] += 1
        self.skipped = torch.full_like(self.wanted, skip)
        self.running, self.length = (torch.zeros(num_envs, device=device) for _ in range(2))
        self.environment, names = environment, environment.event_names
        self.happening = torch.zeros(num_envs, len(names), device=device)
        self.happened = torch.zeros(len(names), device=device, dtype=torch.float64)
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
        if (events := self.environment.events) is not None and events.shape == self.happening.shape:
            self.happening = self.happening + events
            self.happened += self.happening[ended].double().sum(0)
            self.happening = self.happening.masked_fill(is_end.unsqueeze(1), 0)
        self.returns += self.running[ended].tolist()
        self.lengths += self.length[ended].tolist()
        self.successes += following.success[ended].tolist()
        self.running, self.length = self.running.masked_fill(is_end, 0), self.length.masked_fill(is_end, 0)
        self.wanted = self.wanted - ended.to(self.wanted.dtype)
        self.skipped = (self.skipped - is_end.to(self.skipped.dtype)).clamp(min=0)
        self.num_steps += 1
        if self.num_steps >= self.max_steps:
            self._give_up((self.length >= self.max_steps) & (self.wanted > 0))
        self.is_done = not bool((self.wanted > 0).any())
        if self.tell is not None:
            self.tell(self)

    def _give_up(self, late: Tensor) -> None:
        """Play no more where an episode takes too long."""
        self.unfinished += int(self.wanted[late].sum())
        self.unfinished_returns += self.running[late & (self.skipped == 0)].tolist()
        self.wanted = self.wanted.masked_fill(late, 0)

    def result(self) -> dict[str, Any]:
        """Return mean, spread and length of the episodes, and the success rate where the task defines success.

        `event_NAME` is how often an event happened in an episode, of a task that names its events. What no episode
        ended for is NaN. The share of drawn games, which are half a success, is in it where there are
        any. Where some episodes are unfinished, their number is in it, and the mean of what was earned in those that
        were begun, when they were given up.
        """
        result = {
            "episode_return_mean": _mean(self.returns),
            "episode_return_std": statistics.pstdev(self.returns) if self.returns else math.nan,
            "episode_length_mean": _mean(self.lengths),
            "episodes": len(self.returns),
            "env_steps": self.env_steps,
        }
        if self.unfinished:
            result |= {
                "unfinished_episodes": self.unfinished,
                "unfinished_return_mean": _mean(self.unfinished_returns),
                "max_steps": self.max_steps,
            }
        told = [success for success in self.successes if not math.isnan(success)]
        if told:  # an episode that does not tell, where others do, has not succeeded
            result["success_rate"] = sum(told) / len(self.successes)
            if draws := told.count(0.5):
                result["draw_rate"] = draws / len(self.successes)
        if self.returns:
            means = (self.happened / len(self.returns)).tolist()
            result |= {f"event_{x}": mean for x, mean in zip(self.environment.event_names, means, strict=True)}
        return result


def standard_error(std: float, count: int) -> float:
    """Return that of a mean of numbers whose standard deviation this is; NaN of a single one."""
    return std / math.sqrt(count - 1) if count > 1 else math.nan


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def evaluate(
    agent: Player,
    environment: Environment,
    *,
    episodes: int,
    seed: int,
    greedy: bool = False,
    skip: int = 0,
    max_steps: int | None = None,
    tell: Callable[[Evaluation], object] | None = None,
) -> dict[str, Any]:
    """Return the mean, spread and length of `episodes` episodes, and the success rate where the task defines success.

    See `Evaluation`.

    Args:
        seed: Of environments, actions and latents.
        greedy: Take the most probable actions rather than samples.
        skip: Episodes that each environment plays before any counts.
        max_steps: Of an episode, which is then given up: see `Evaluation`.
        tell: Is called after each step, to show progress.
    """
    evaluation = Evaluation(environment, episodes, skip, max_steps, tell)
    play(agent, environment, evaluation, seed=seed, greedy=greedy)
    return evaluation.result()
