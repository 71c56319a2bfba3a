"""The training loop: collect a window, learn from it, report, save."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from merlin import distributed
from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.networks.lstm import map_state
from merlin.training.checkpoint import from_plain, to_plain
from merlin.training.rollout import Episodes, Rollout

_POSITIVE = ("unroll_length", "passes", "policy_passes", "minibatches", "num_threads", "learning_rate",
             "policy_learning_rate", "max_grad_norm", "report_steps", "checkpoint_seconds", "evaluation_steps",
             "evaluation_episodes")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an agent is trained, whichever it is."""

    unroll_length: int = 20
    """T, steps of a window: how far gradients reach back. State is carried across windows."""
    truncation_ends: bool = False
    """An episode that was cut (truncated) is worth nothing more, rather than what V says of its last observation: right
    where time is part of the task, in which else never to finish is worth as much as to finish. Both cases: Pardo et
    al. 2018, arXiv:1712.00378."""
    passes: int = 1
    """Times that each window is learnt from; more pay where the environment is slow."""
    policy_passes: int = 1
    """Times that MERLIN's policy learns from each window, on what it acted with; more save steps of the environment,
    and pay where it is slow."""
    minibatches: int = 1
    """Parts, by environment, that a window is learnt from in turn."""
    learning_rate: float = 1e-3
    """Of Adam, for everything but MERLIN's policy."""
    policy_learning_rate: float | None = None
    """Of Adam, for MERLIN's policy; none takes `learning_rate`."""
    final_learning_rate_fraction: float = 1.0
    """Learning rates fall linearly to this fraction over the run."""
    final_entropy_fraction: float = 1.0
    """`entropy_cost` falls linearly to this fraction over the run."""
    adam_epsilon: float = 1e-8
    """Of Adam."""
    max_grad_norm: float | None = 10.0
    """Gradients of each optimiser are clipped to this norm; none leaves them alone."""
    report_steps: int | None = None
    """Environment steps between reports; none makes about 100 of the run, and at most 50,000 steps between two."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    evaluation_steps: int | None = None
    """Environment steps between evaluations on held-out episodes while training; none leaves them out."""
    evaluation_episodes: int = 100
    """Episodes of each of them."""
    num_threads: int = 1
    """PyTorch's threads on the CPU; small networks run fastest on one."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 products, by PyTorch's names: highest is exact, high takes TF32 on GPUs, medium bfloat16 on CPUs too.
    On CPUs bfloat16 pays for LSTMs of 256 units and hundreds of environments, and costs where a memory is read."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, but is {value}.")

    def set_torch(self, device: torch.device | None = None) -> str | None:
        """Let PyTorch compute in this process as configured; return a sentence if the device cannot."""
        torch.set_num_threads(self.num_threads)
        torch.set_float32_matmul_precision(self.matmul_precision)
        if self.matmul_precision == "medium" and device == torch.device("cpu"):
            if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return "this processor does not multiply bfloat16: its products are float32's"
        return None


class Trainer:
    """Trains an agent in an environment. `run` is the loop; `state_dict` is all that it takes to go on exactly.

    Where several processes train together (`merlin.distributed`), each has a trainer with environments of its own, and
    all make the same steps with the same weights.

    Args:
        environment: This process's share of the environments.
        total_steps: Environment steps, of all processes, over which schedules run and at which training ends.
        seed: Of the environments and of every random choice; environments of other processes get seeds of their own.
    """

    def __init__(
        self, agent: Agent, environment: Environment, config: TrainingConfig, *, total_steps: int, seed: int
    ) -> None:
        if environment.num_envs < config.minibatches:
            raise MerlinError(
                f"A window is split by environment, so minibatches must be at most num_envs, "
                f"but they are {config.minibatches} and {environment.num_envs}: lower minibatches."
            )
        if config.policy_passes > 1 and not hasattr(agent, "policy_losses"):
            raise MerlinError(
                f"Only a policy that learns apart from the rest, as MERLIN's, has policy_passes of its own, "
                f"but {type(agent).__name__}'s does not: use training.passes."
            )
        self.agent = agent
        self.environment = environment
        self.config = config
        self.total_steps = total_steps
        self.env_steps = 0
        seed += distributed.rank() * environment.num_envs
        self.generator = torch.Generator(environment.device).manual_seed(seed)
        self.rollout = Rollout(agent, environment, agent.config.discount_factor, self.generator, seed)
        rates = {} if config.policy_learning_rate is None else {"policy": config.policy_learning_rate}
        self.optimizers = {
            name: torch.optim.Adam(
                parameters, lr=rates.get(name, config.learning_rate), eps=config.adam_epsilon, fused=True
            )
            for name, parameters in agent.parameter_groups().items()
        }
        self._learner = distributed.share(_Learner(agent))
        self._base_rates = {name: x.param_groups[0]["lr"] for name, x in self.optimizers.items()}
        self.seconds = {"rollout": 0.0, "learning": 0.0}

    def update(self) -> tuple[dict[str, Tensor], Episodes]:
        """Collect one window and learn from it; return its losses and the episodes that ended in it."""
        begin = time.perf_counter()
        unroll, state, episodes = self.rollout.collect(self.config.unroll_length)
        middle = time.perf_counter()
        self._check(unroll)
        metrics = self._learn(unroll, state)
        self.env_steps += int(distributed.total(unroll.is_valid.sum()))
        self.seconds["rollout"] += middle - begin
        self.seconds["learning"] += time.perf_counter() - middle
        return metrics, episodes

    def _check(self, unroll: Unroll) -> None:
        if not unroll.reward.isfinite().all():
            raise MerlinError(
                f"Rewards must be finite, but {self.environment.task} returned one that is not: correct the task."
            )
        for name, x in unroll.observation.items():
            if x.is_floating_point() and not x.isfinite().all():
                raise MerlinError(
                    f"Observations must be finite, but {name!r} of {self.environment.task} held a number that is not: "
                    f"correct the environment."
                )
        # Those that truncated episodes end with are in no row; only their value is.
        if not unroll.next_value.isfinite().all() and unroll.value.isfinite().all():
            raise MerlinError(
                f"Observations must be finite, but one with which {self.environment.task} truncated an episode held a "
                f"number that is not: correct the environment."
            )

    def _learn(self, unroll: Unroll, state: Any) -> dict[str, Tensor]:
        left = max(0.0, 1.0 - self.env_steps / self.total_steps)
        entropy_scale = _interpolate(self.config.final_entropy_fraction, left)
        for name, optimizer in self.optimizers.items():
            rate = self._base_rates[name] * _interpolate(self.config.final_learning_rate_fraction, left)
            optimizer.param_groups[0]["lr"] = rate
        metrics: dict[str, Tensor] = {}
        acting, self.rollout.acting = self.rollout.acting, None  # it holds a window's worth of memory
        if self.config.minibatches > 1:
            acting = None
        for _ in range(self.config.passes):
            for part, part_state in self._minibatches(unroll, state):
                loss, metrics = self._learner(part, part_state, entropy_scale, acting)
                acting = None  # the parameters are about to change
                for optimizer in self.optimizers.values():
                    optimizer.zero_grad(set_to_none=True)
                loss.backward(_weight(part))
                metrics |= {"loss": loss.detach()} | self._step(*self.optimizers)
                del loss  # before the next window's graph is built
        for _ in range(self.config.policy_passes - 1):
            for part, part_state in self._minibatches(unroll, state):
                losses = self.agent.policy_losses(part, part_state, entropy_scale)
                self.optimizers["policy"].zero_grad(set_to_none=True)
                losses.total.backward(_weight(part))
                distributed.average_gradients(self.optimizers["policy"].param_groups[0]["params"])
                metrics |= losses.metrics | self._step("policy")
        return metrics

    def _step(self, *names: str) -> dict[str, Tensor]:
        """Let some optimisers step, and return the norms of their gradients."""
        norms = {}
        for name in names:
            parameters = self.optimizers[name].param_groups[0]["params"]
            limit = self.config.max_grad_norm or math.inf
            norms[f"{name}_grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not all(norm.isfinite() for norm in norms.values()):
            raise MerlinError(
                f"Gradients must be finite, but after {self.env_steps} steps they are not: "
                f"resume from the last checkpoint with a lower training.learning_rate."
            )
        for name in names:
            self.optimizers[name].step()
        return norms

    def _minibatches(self, unroll: Unroll, state: Any) -> list[tuple[Unroll, Any]]:
        if self.config.minibatches == 1:
            return [(unroll, state)]
        order = torch.randperm(self.environment.num_envs, generator=self.generator, device=self.environment.device)
        return [
            (_columns(unroll, columns), map_state(lambda x, columns=columns: x[columns], state))
            for columns in order.chunk(self.config.minibatches)
        ]

    def run(
        self,
        report: Callable[[dict[str, Tensor], Episodes], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until `total_steps`, or until `should_stop` says so, calling `report` after each window."""
        while self.env_steps < self.total_steps and not distributed.any_of(should_stop()):
            report(*self.update())

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the agent's weights, as plain containers of tensors and numbers.

        What processes do not have in common is in `shares`, one entry for each, which only the first process gets.
        """
        native = self.environment.is_native
        share = {
            "generator": self.generator.get_state(),
            "rollout": to_plain(self.rollout.state) if native else None,
            "environment": self.environment.state_dict() if native else None,
        }
        return {
            "env_steps": self.env_steps,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "shares": distributed.gather(share),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Episodes of environments that cannot be saved begin anew.

        Raises:
            MerlinError: It is of another number of processes or environments.
        """
        if len(state["shares"]) != distributed.world_size():
            raise MerlinError(
                f"A run continues with as many processes as it began with, which were {len(state['shares'])}, "
                f"but there are {distributed.world_size()}: start as many, as with torchrun --nproc-per-node."
            )
        share = state["shares"][distributed.rank()]
        self.env_steps = state["env_steps"]
        self.generator.set_state(share["generator"].cpu())
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if share["environment"] is not None:
            self.environment.load_state_dict(share["environment"])
            self.rollout.state = from_plain(share["rollout"], self.rollout.state)
        else:  # other episodes than those that the run began with
            device = self.generator.device
            self.rollout.restart(int(torch.randint(2**31, (), generator=self.generator, device=device)))


class _Learner(nn.Module):
    """An agent whose forward pass is its loss, which is what PyTorch's engine for several processes needs."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses, _ = self.agent.losses(*arguments)
        return losses.total, losses.metrics


def _weight(unroll: Unroll) -> Tensor:
    """Return what this process's mean over valid rows counts, for the mean over processes to be that over all rows."""
    rows = unroll.is_valid.sum().to(unroll.reward.dtype)
    return rows * distributed.world_size() / distributed.total(rows).clamp(min=1)


def _interpolate(final_fraction: float, left: float) -> float:
    return final_fraction + (1.0 - final_fraction) * left


def _columns(unroll: Unroll, columns: Tensor) -> Unroll:
    """Return the window of some of its environments."""
    observation = {name: x[:, columns] for name, x in unroll.observation.items()}
    rest = {
        field: None if x is None else x[:, columns] for field, x in unroll._asdict().items() if field != "observation"
    }
    return Unroll(observation=observation, **rest)
