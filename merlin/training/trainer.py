"""The training loop: collect a window, learn from it, report, save."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from merlin import distributed
from merlin.agents.agent import Agent
from merlin.agents.learner import LearnerConfig
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.experience import Unroll
from merlin.objectives.value_transport import horizon_steps
from merlin.ranges import COUNT, Range, above
from merlin.training.inspection import Inspection
from merlin.training.plain import from_plain, is_state_of, to_plain
from merlin.training.rollout import Episodes, Rollout, Source


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LearnerConfig):
    """How an agent is trained, whichever it is."""

    unroll_length: Annotated[int, Range(1, 100_000)] = 20
    """T, steps of a window: how far gradients reach back. State is carried across windows."""
    truncation_ends: bool = False
    """An episode that was cut (truncated) is worth nothing more, rather than what V says of its last observation: right
    where time is part of the task, in which else never to finish is worth as much as to finish. Both cases: Pardo et
    al. 2018, arXiv:1712.00378."""
    staggered_episodes: bool = False
    """Cut one early episode of each environment after a random number of steps, which counts in no statistics, so that
    environments do not stay at the same point of their episodes and every window has all of them in it."""
    report_steps: Annotated[int | None, COUNT] = None
    """Environment steps between reports; none makes about 100 of the run, and at most 50,000 steps between two."""
    checkpoint_seconds: Annotated[float, above(0)] = 60.0
    """Seconds between checkpoints."""
    evaluation_steps: Annotated[int | None, COUNT] = None
    """Environment steps between evaluations on held-out episodes while training; none leaves them out."""
    evaluation_episodes: Annotated[int, Range(1, 1_000_000_000)] = 100
    """Episodes of each of them; without any, of the comparison of weights at the end."""
    num_threads: Annotated[int, Range(1, 1024)] = 1
    """PyTorch's threads on the CPU; small networks run fastest on one."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 products, by PyTorch's names: highest is exact, high takes TF32 on GPUs, medium bfloat16 on CPUs too.
    On CPUs bfloat16 pays for LSTMs of 256 units and hundreds of environments, and costs where a memory is read."""

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
        self.agent = agent
        self.environment = environment
        self.config = config
        self.total_steps = total_steps
        self.env_steps = 0
        seed += distributed.rank() * environment.num_envs
        self.generator = torch.Generator(environment.device).manual_seed(seed)
        self.rollout = Rollout(
            agent, environment, agent.config.discount_factor, self.generator, seed, config.staggered_episodes
        )
        self.source: Source = agent.source(self.rollout)
        self.learner = agent.learner(config, self.generator)
        check_transport(agent, config)
        self.inspection = Inspection(environment)
        self.seconds = {"rollout": 0.0, "learning": 0.0}

    def update(self) -> tuple[dict[str, Tensor], Episodes]:
        """Collect one window and learn from it; return its losses and the episodes that ended in it."""
        begin = time.perf_counter()
        window, episodes = self.source.collect(self.config.unroll_length, self.learner.records)
        middle = time.perf_counter()
        steps = self.inspection.check(window.unroll)
        left = max(0.0, 1.0 - self.env_steps / self.total_steps)
        try:
            metrics = self.learner.update(window, left)
        except FloatingPointError as error:
            raise MerlinError(
                f"Gradients must be finite, but after {self.env_steps} steps they are not, and "
                f"{self.inspection.blame(window.unroll)}."
            ) from error
        if metrics:  # of a window that was learnt from
            metrics |= _reward_range(window.unroll)
        self.env_steps += distributed.total_count(steps)
        self.seconds["rollout"] += middle - begin
        self.seconds["learning"] += time.perf_counter() - middle
        return metrics, episodes

    def run(
        self,
        report: Callable[[dict[str, Tensor], Episodes], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until `total_steps`, or until `should_stop` says so, calling `report` after each window."""
        while self.env_steps < self.total_steps and not distributed.any_of(should_stop()):
            report(*self.update())

    def enter(self, environment: Environment) -> None:
        """Go on in other environments, as many and with the same spaces, where episodes begin; close the former."""
        self.environment.close()
        self.environment = self.rollout.environment = environment
        self._restart()

    def _restart(self) -> None:
        """Begin an episode everywhere, with a new seed."""
        device = self.generator.device
        self.rollout.restart(int(torch.randint(2**31, (), generator=self.generator, device=device)))

    def state_dict(self, directory: Path | None = None) -> dict[str, Any]:
        """Return everything but the agent's weights, as plain containers of tensors and numbers.

        What processes do not have in common is in `shares`, one entry for each, which only the first process gets.

        Args:
            directory: Where the learner may write what is too much to be written again each time, as a replay is.
        """
        native = self.environment.is_native
        share = {
            "generator": self.generator.get_state(),
            "rollout": to_plain(self.rollout.state) if native else None,
            "environment": self.environment.state_dict() if native else None,
            "learner": self.learner.share_dict(directory),
        }
        return {
            "env_steps": self.env_steps,
            "optimizers": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "shares": distributed.gather(share),
        }

    def load_state_dict(self, state: dict[str, Any], directory: Path | None = None) -> bool:
        """Go on from a `state_dict`, and return whether episodes and random choices go on too.

        They begin anew where the environment cannot be saved, or was on another kind of device.

        Args:
            directory: That of the `state_dict`.

        Raises:
            MerlinError: It is of another number of processes or environments.
        """
        if "source" not in state and "env_steps" in state:  # any other is none of a trainer
            raise MerlinError(
                "The training state was saved by version 0.1.0, which this version cannot go on from: "
                "evaluate, watch or analyse the run, or train anew."
            )
        if (began_with := len(state["shares"])) != distributed.world_size():
            how = "without torchrun" if began_with == 1 else f"by torchrun --nproc-per-node {began_with}"
            raise MerlinError(
                f"A run continues with as many processes as it began with, which were {began_with}, but there are "
                f"{distributed.world_size()}: start it {how}."
            )
        share = state["shares"][distributed.rank()]
        self.env_steps = state["env_steps"]
        drawn, goes_on = share["generator"].cpu(), share["environment"] is not None
        if is_state_of(self.generator, drawn):
            self.generator.set_state(drawn)
        else:  # of a GPU there and a CPU here, or the other way round
            goes_on = False
            self.generator.manual_seed(self.generator.initial_seed() + self.env_steps)
        self.learner.load_state_dict(state["optimizers"])
        self.learner.load_share_dict(share.get("learner", {}), directory)
        self.source.load_state_dict(state.get("source", {}))
        if goes_on:
            self.environment.load_state_dict(share["environment"])
            known = to_plain(self.rollout.state) | share["rollout"]  # what was not kept yet begins empty
            self.rollout.state = from_plain(known, self.rollout.state)
        else:  # other episodes than those that the run began with
            self._restart()
        return goes_on


def check_transport(agent: Agent, config: TrainingConfig) -> None:
    """Refuse value transport where there is nothing to transport along, or no window that it fits into."""
    settings = agent.config
    if not settings.value_transport:
        return
    if agent.memory is None or not agent.writes_once:
        raise MerlinError(
            f"Value is transported along the reads of an agent whose every step writes one word to a memory, "
            f"but {type(agent).__name__} is none: take model.value_transport=0, or MERLIN or RL-MEM."
        )
    steps = settings.transport_min_steps
    steps = horizon_steps(settings.discount_factor) if steps is None else steps
    if config.unroll_length < steps + 2:
        raise MerlinError(
            f"Value is transported within a window, over more than {steps} steps, so unroll_length must be at least "
            f"{steps + 2}, better the length of an episode, but is {config.unroll_length}: raise it, or lower "
            f"model.transport_min_steps."
        )


def _reward_range(unroll: Unroll) -> dict[str, Tensor]:
    """Return the lowest and the highest reward of a window; infinite if none of its rows counts."""
    lowest, highest = (unroll.reward.masked_fill(~unroll.is_valid, x) for x in (torch.inf, -torch.inf))
    return {"reward_min": lowest.amin(), "reward_max": highest.amax()}
