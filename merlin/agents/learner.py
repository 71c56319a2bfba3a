"""Learners: what owns an agent's optimisers, learning rates, schedules and phases, and learns from windows."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from merlin import distributed
from merlin.errors import MerlinError
from merlin.experience import Losses, Unroll
from merlin.ranges import Range, Settings, above
from merlin.states import map_state


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(Settings):
    """How an agent learns from each window."""

    passes: Annotated[int, Range(1, 10_000)] = 1
    """Times that each window is learnt from; more pay where the environment is slow."""
    policy_passes: Annotated[int, Range(1, 10_000)] = 1
    """Times that MERLIN's policy learns from each window, on what it acted with; more save steps of the environment,
    and pay where it is slow."""
    minibatches: Annotated[int, Range(1, 1_048_576)] = 1
    """Parts, by environment, that a window is learnt from in turn."""
    learning_rate: Annotated[float, above(0, 100)] = 1e-3
    """Of Adam, for everything that has no rate of its own."""
    policy_learning_rate: Annotated[float | None, above(0, 100)] = None
    """Of Adam, for the policy of an agent whose policy learns apart from the rest; none takes `learning_rate`."""
    value_learning_rate: Annotated[float | None, above(0, 100)] = None
    """Of Adam, for a value function that learns apart from the rest, as Dreamer's; none takes `learning_rate`."""
    final_learning_rate_fraction: Annotated[float, Range(0, 1)] = 1.0
    """Learning rates fall linearly to this fraction over the run."""
    final_entropy_fraction: Annotated[float, Range(0, 1)] = 1.0
    """`entropy_cost` falls linearly to this fraction over the run."""
    adam_epsilon: Annotated[float, above(0, 1)] = 1e-8
    """Of Adam."""
    max_grad_norm: Annotated[float | None, above(0)] = 10.0
    """Gradients of each optimiser are clipped to this norm; none leaves them alone."""


class Window(NamedTuple):
    """Experience to learn from: T steps, the agent's state before them, and what acted in them, if it was recorded."""

    unroll: Unroll
    state: Any
    acting: Any = None


class Learner(ABC):
    """What changes an agent's parameters.

    Attributes:
        records: Whether it learns from the graph that acting recorded.
    """

    records: bool = False

    @abstractmethod
    def update(self, window: Window, left: float) -> dict[str, Tensor]:
        """Learn from a window, and return metrics by name.

        Args:
            left: Fraction of the run that is ahead, for schedules.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that learning goes on from, but for the agent's parameters."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""

    def share_dict(self, directory: Path | None = None) -> dict[str, Any]:
        """Return what else this process alone goes on from; where several train together each has its own.

        Args:
            directory: Where it may write what is too much to be written again with every checkpoint.
        """
        return {}

    def load_share_dict(self, share: dict[str, Any], directory: Path | None = None) -> None:  # noqa: B027
        """Go on from a `share_dict`, and from what it wrote into `directory`. Most have none."""


class ActorCriticLearner(Learner):
    """Learns from each window by the agent's `losses`, with one Adam for each of its groups of parameters.

    A window is learnt from in `passes` passes, each over `minibatches` parts of its environments. The first pass over a
    whole window takes the graph that acting recorded.

    Args:
        generator: Of the order of environments in minibatches.
    """

    def __init__(self, agent: Any, config: LearnerConfig, generator: torch.Generator) -> None:
        if config.policy_passes > 1 and not hasattr(agent, "policy_losses"):
            raise MerlinError(
                f"Only a policy that learns apart from the rest, as MERLIN's, has policy_passes of its own, "
                f"but {type(agent).__name__}'s does not: use training.passes."
            )
        self.agent, self.config, self.generator = agent, config, generator
        self.records = config.minibatches == 1
        self.groups = groups_of(agent)
        self.base_rates = base_rates(config, self.groups)
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=self.base_rates[name], eps=config.adam_epsilon, fused=True)
            for name, parameters in self.groups.items()
        }

    def update(self, window: Window, left: float) -> dict[str, Tensor]:
        """Learn from a window, and return its losses."""
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.base_rates[name] * self._scheduled("learning_rate", left)
        entropy_scale = self._scheduled("entropy", left)
        metrics: dict[str, Tensor] = {}
        acting = window.acting if self.records else None
        passes = 0 if self.agent.scales_are_new else self.config.passes
        for _ in range(passes):
            for unroll, state in self._minibatches(window):
                losses = self.losses(unroll, state, entropy_scale, acting)
                acting = None  # the parameters are about to change
                metrics = losses.metrics | {"loss": losses.total.detach()}
                metrics |= self._descend(losses.total, unroll, tuple(self.groups))
                del losses  # before the next window's graph is built
        for _ in range(self.config.policy_passes - 1 if passes else 0):
            for unroll, state in self._minibatches(window):
                losses = self.agent.policy_losses(unroll, state, entropy_scale)
                metrics |= losses.metrics | self._descend(losses.total, unroll, ("policy",))
        self.agent.update_scales(window.unroll)
        return metrics | window.acting.read_metrics() if metrics and window.acting is not None else metrics

    def losses(self, unroll: Unroll, state: Any, entropy_scale: float, acting: Any) -> Losses:
        """Return the loss of a window, or of a part of its environments; unless overridden, the agent's."""
        return self.agent.losses(unroll, state, entropy_scale, acting)[0]

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state[name])

    def _descend(self, loss: Tensor, unroll: Unroll, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Let the optimisers of some groups step down the loss, and return the norms of their gradients."""
        groups = [self.groups[name] for name in names]
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward(_weight(unroll))
        distributed.average_gradients(parameter for group in groups for parameter in group)
        limit = self.config.max_grad_norm or math.inf
        norms = [torch.nn.utils.clip_grad_norm_(group, limit) for group in groups]
        if not torch.stack(norms).isfinite().all():
            raise FloatingPointError("gradients must be finite")
        for name in names:
            self.optimizers[name].step()
        return {f"{name}_grad_norm": norm for name, norm in zip(names, norms, strict=True)}

    def _minibatches(self, window: Window) -> list[tuple[Unroll, Any]]:
        if self.config.minibatches == 1:
            return [(window.unroll, window.state)]
        valid = window.unroll.is_valid
        order = torch.randperm(valid.shape[1], generator=self.generator, device=valid.device)
        return [
            (columns_of(window.unroll, columns), map_state(lambda x, columns=columns: x[columns], window.state))
            for columns in order.chunk(self.config.minibatches)
        ]

    def _scheduled(self, name: str, left: float) -> float:
        return scheduled(getattr(self.config, f"final_{name}_fraction"), left)


def groups_of(agent: Any) -> dict[str, list[nn.Parameter]]:
    """Return an agent's parameters by the optimiser that owns them.

    Raises:
        MerlinError: One that is to be learnt is in no group, which would leave it as it began, or in two.
    """
    groups: dict[str, list[nn.Parameter]] = agent.parameter_groups()
    owned = Counter(id(x) for group in groups.values() for x in group)
    for name, parameter in agent.named_parameters():
        if (count := owned[id(parameter)]) != 1 and (count or parameter.requires_grad):
            raise MerlinError(
                f"Every parameter must be in one of the parameter_groups of {type(agent).__name__}, but {name} is in "
                f"{count or 'none'}: put it into one"
                + (", or give it requires_grad_(False) if it is not to be learnt." if not count else " alone.")
            )
    return groups


def scheduled(final_fraction: float, left: float) -> float:
    """Return what is left of what falls linearly to a fraction of itself over the run."""
    return final_fraction + (1.0 - final_fraction) * left


def base_rates(config: LearnerConfig, groups: Iterable[str]) -> dict[str, float]:
    """Return the learning rate of each group of parameters, before any schedule."""
    own = {"policy": config.policy_learning_rate, "value": config.value_learning_rate}
    return {name: config.learning_rate if (rate := own.get(name)) is None else rate for name in groups}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Let an optimiser go on from a `state_dict`, but with the options that it has now: its rate, epsilon and so on."""
    options = [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


def columns_of(unroll: Unroll, columns: Tensor) -> Unroll:
    """Return the window of some of its environments."""
    observation = {name: x[:, columns] for name, x in unroll.observation.items()}
    rest = unroll._replace(observation=None)
    return map_state(lambda x: x[:, columns], rest)._replace(observation=observation)


def _weight(unroll: Unroll) -> Tensor:
    """Return what this process's mean over valid rows counts, for the mean over processes to be that over all rows."""
    rows = unroll.is_valid.sum().to(unroll.reward.dtype)
    return rows * distributed.world_size() / distributed.total(rows).clamp(min=1)
