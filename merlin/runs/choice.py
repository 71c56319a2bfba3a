"""Which weights of a run are the best: the episodes of training tell while it trains, held-out ones at its end."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.training.evaluation import most_steps
from merlin.training.play import Moment, Observer, play
from merlin.training.rollout import Episodes

EPISODES = 100
"""Episodes, at least, by which weights are scored."""
COMPARISON_FRACTION = 0.1
"""Of a run's training time, which the comparison at its end may take."""


def copied(agent: nn.Module) -> dict[str, Tensor]:
    """Return the agent's weights as they are now, whatever becomes of it."""
    return {name: x.detach().clone() for name, x in agent.state_dict().items()}


class Candidate:
    """A copy of weights, and the returns of the episodes that training began after it was taken.

    Every environment counts as many episodes, its first ones, so that those that end soon do not count more often than
    long ones; with the score, the next candidate is taken. Episodes that began before say nothing of these weights,
    however few have ended since: where episodes are long, they are of weights from many updates ago.

    Args:
        num_envs: Environments of all processes, of which `share` are this one's.
    """

    def __init__(self, num_envs: int, share: int) -> None:
        self.each, self.share = math.ceil(EPISODES / num_envs), share
        self.weights: dict[str, Tensor] | None = None
        self.step = self.row = 0
        self.left = torch.full((share,), self.each)
        self.total = 0.0

    def take(self, agent: nn.Module, step: int, row: int, keep: bool) -> None:
        """Begin with the agent's weights as they are.

        Args:
            row: Steps that each environment has made.
            keep: Copy the weights, as only the process that saves them has to.
        """
        self.weights = copied(agent) if keep else {}
        self.step, self.row = step, row
        self.left, self.total = torch.full((self.share,), self.each), 0.0

    def count(self, episodes: Episodes) -> None:
        """Count episodes that ended, on the CPU; their `begins` are on the axis of `row`."""
        if self.weights is None:
            return
        order = episodes.environments.argsort(stable=True)
        order = order[episodes.begins[order] >= self.row]
        environments = episodes.environments[order]
        earlier = torch.arange(len(order)) - torch.searchsorted(environments, environments)  # of the same environment
        counts = earlier < self.left[environments]
        self.total += float(episodes.returns[order][counts].double().sum())
        self.left -= torch.bincount(environments[counts], minlength=self.share)

    @property
    def is_scored(self) -> bool:
        """Whether all episodes of this process's environments have ended."""
        return self.weights is not None and not bool(self.left.any())

    def state_dict(self) -> dict[str, Any]:
        """Return all that counting goes on from."""
        return {name: getattr(self, name) for name in ("weights", "step", "row", "left", "total")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; of another number of environments, from the next candidate."""
        if len(state["left"]) == self.share:
            self.weights, self.step, self.row = state["weights"], state["step"], state["row"]
            self.left, self.total = state["left"], state["total"]


class FirstReturns(Observer):
    """Return of each environment's first episode; NaN until that has ended.

    Args:
        number: Environments, the first ones, that are waited for.
        should_stop: Whether not to wait any longer.
    """

    def __init__(self, environment: Environment, number: int, should_stop: Callable[[], bool]) -> None:
        self.number, self.should_stop = number, should_stop
        self.running = torch.zeros(environment.num_envs, dtype=torch.float64, device=environment.device)
        self.returns = torch.full_like(self.running, math.nan)

    def observe(self, moment: Moment) -> None:
        """Count a step, and the first episodes that it ended."""
        following = moment.next_timestep
        self.running = self.running + following.reward
        self.returns = torch.where(following.is_end & self.returns.isnan(), self.running, self.returns)
        self.is_done = not bool(self.returns[: self.number].isnan().any()) or self.should_stop()


def compare(
    agent: Agent,
    environment: Environment,
    contenders: Sequence[Mapping[str, Tensor]],
    *,
    episodes: int,
    seed: int,
    seconds: int | float = math.inf,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], int | float] = time.monotonic,
) -> Float[Tensor, "contenders episodes"]:
    """Return what each of several weights earns in each of the same episodes; NaN where it did not end one in time.

    Each environment plays one episode with each of the weights, from the same reset and with the same noise, then the
    next. Weights whose turn is to come have an equal share of the time that is left, so that where it is short, all of
    them end some.

    Args:
        agent: Is given the weights, and keeps the last of them.
        seed: Of each environment's first episode, as in `merlin.training.play.play`; later ones count on from it.
        seconds: After which playing stops; the episodes that were not begun are left out.
        should_stop: Whether to stop at once.
        clock: Returns seconds.
    """
    end, rounds = clock() + seconds, []
    for first in range(0, episodes, environment.num_envs):
        number, returns = min(environment.num_envs, episodes - first), []
        for waiting, weights in zip(range(len(contenders), 0, -1), contenders, strict=True):
            agent.load_state_dict(weights)
            now = clock()
            deadline = now + (end - now) / waiting
            found = FirstReturns(environment, number, lambda deadline=deadline: clock() >= deadline or should_stop())
            play(agent, environment, found, seed=seed + first, max_steps=most_steps(environment))
            returns.append(found.returns[:number].cpu())
        rounds.append(torch.stack(returns))
        if clock() >= end or should_stop():
            break
    return torch.cat(rounds, 1)
