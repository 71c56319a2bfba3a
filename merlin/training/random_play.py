"""Random play: what the score of an agent is held against where its task does not know."""

import copy
import math
import time
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.experience import StepOutput
from merlin.networks.action_spaces import open_action_space
from merlin.networks.actions import make_action_distribution
from merlin.networks.spaces import shape_of
from merlin.training.evaluation import Evaluation
from merlin.training.play import play

FEWEST_EPISODES = 30
"""That a mean is told of."""


class RandomPlayer:
    """Draws choices alike, of those that a mask allows, and numbers as their Box's `sample` does."""

    def __init__(self, environment: Environment, seed: int) -> None:
        self.actions = make_action_distribution(environment.action_space).to(environment.device)
        self._boxes: list[tuple[slice, Box]] = []
        begin = 0
        for _, part in open_action_space(environment.action_space):
            end = begin + math.prod(shape_of(part))
            if isinstance(part, Box):
                box = copy.deepcopy(part)
                box.seed(seed + begin)
                self._boxes.append((slice(begin, end), box))
            begin = end

    def initial_state(self, batch_size: int) -> None:
        """Return nothing, which is all that is remembered."""

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
        """Return a random action."""
        rows, zeros = len(is_first), torch.zeros(len(is_first), self.actions.num_parameters, device=is_first.device)
        parameters = self.actions.restrict(zeros, observation)
        action = self.actions.sample(parameters, generator)
        numbers = action.reshape(rows, -1)
        for columns, box in self._boxes:
            drawn = np.stack([box.sample() for _ in range(rows)]).reshape(rows, -1)
            numbers[:, columns] = torch.from_numpy(drawn.astype(np.float64)).to(numbers)
        none = torch.zeros(rows, device=is_first.device)
        return StepOutput(numbers.reshape(action.shape), none, none, parameters), state


def random_returns(environment: Environment, seed: int, seconds: float, most: int = FEWEST_EPISODES) -> list[float]:
    """Return the returns of as many random episodes as end in these seconds; none if fewer than `FEWEST_EPISODES` do.

    Every environment plays as many, as short episodes would count more often otherwise.

    Args:
        most: Episodes after which no more are played.
    """
    late, returns = time.monotonic() + seconds, []
    player, generator = RandomPlayer(environment, seed), torch.Generator(environment.device).manual_seed(seed)

    def stop(evaluation: Evaluation) -> None:
        evaluation.is_done |= time.monotonic() > late

    with suppress(MerlinError):  # an environment that fails now has not failed the agent
        while len(returns) < most and time.monotonic() <= late:
            evaluation = Evaluation(environment, min(environment.num_envs, most - len(returns)), tell=stop)
            play(player, environment, evaluation, seed=seed + len(returns), generator=generator)
            if len(evaluation.returns) < evaluation.episodes:
                break
            returns += evaluation.returns
    return returns if len(returns) >= FEWEST_EPISODES else []
