"""An agent of a population, with all that it learns by and all that evolves of it."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.agents.learner import ActorCriticLearner, Window, base_rates
from merlin.errors import MerlinError
from merlin.population.evolution import RATES, Hyperparameters
from merlin.population.participant import TICK_STEPS, Participant, within
from merlin.training.trainer import TrainingConfig


class Member(Participant):
    """An agent that learns from the games that it plays, by a learner of its own, and evolves."""

    def __init__(self, agent: Agent, config: TrainingConfig, device: torch.device, seed: int) -> None:
        super().__init__(agent, device, seed)
        learner = agent.learner(config, self.generator)
        if not isinstance(learner, ActorCriticLearner):
            raise MerlinError(
                f"An agent of a population learns from each window that it plays, but {type(agent).__name__} learns "
                "otherwise: take another agent, such as ftw or rl-lstm."
            )
        self.learner = learner
        self.records = learner.records
        self.hyperparameters = self._settings()
        self.env_steps = 0

    def _settings(self) -> Hyperparameters:
        """Return the hyperparameters that the configuration has."""
        names = getattr(getattr(self.agent, "hyperparameters", None), "_fields", ("entropy_cost",))
        rates = {name: rate for name in RATES if (rate := getattr(self.learner.config, name)) is not None}
        costs = {name: float(getattr(self.agent.config, name)) for name in names if name != TICK_STEPS}
        return Hyperparameters(rates, costs, getattr(self.agent.config, TICK_STEPS, None), None)

    def adopt(self, hyperparameters: Hyperparameters) -> None:
        rates = within(type(self.learner.config), hyperparameters.rates)
        super().adopt(hyperparameters._replace(rates=rates))
        self.learner.config = replace(self.learner.config, **rates)
        self.learner.base_rates = base_rates(self.learner.config, self.learner.groups)

    def become(self, other: "Member") -> None:
        """Become a copy of another member: its weights, buffers and optimisers. Nothing is shared.

        What the learner keeps of experience, as sequences to predict rewards of, stays the agent's own.
        """
        self.agent.load_state_dict(other.agent.state_dict())
        self.learner.load_state_dict(copy.deepcopy(other.learner.state_dict()))

    def update(self, window: Window, left: float) -> dict[str, Tensor]:
        """Learn from a window, and return its losses."""
        return self.learner.update(window, left)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "optimizers": self.learner.state_dict(),
            "learner": self.learner.share_dict(),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any], goes_on: bool) -> None:
        super().load_state_dict(state, goes_on)
        self.learner.load_state_dict(state["optimizers"])
        self.learner.load_share_dict(state["learner"])
        self.env_steps = state["env_steps"]
