"""Which weights of a run are the best, told from the episodes of training."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from merlin.training.rollout import Episodes

EPISODES = 100
"""Episodes, at least, by which weights are scored."""


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
        self.weights = {name: x.detach().clone() for name, x in agent.state_dict().items()} if keep else {}
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
