"""A run as a function: from a configuration to a trained agent and a run directory.

RUN_DIR/config.json           the whole configuration; enough to rebuild the agent
        metrics.jsonl         one object per report
        checkpoints/          the last few and the best
        learning_curve.png    written at the end
"""

import json
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merlin import processes
from merlin.agents import AGENTS, Agent
from merlin.config import from_dict, to_dict
from merlin.errors import MerlinError
from merlin.presets import RunConfig
from merlin.training import checkpoint
from merlin.training.environment import Environment, make_environment
from merlin.training.evaluation import HELD_OUT_SEED, evaluate
from merlin.training.reporting import Reporter
from merlin.training.rollout import Episodes
from merlin.training.tracking import Tracker
from merlin.training.trainer import Trainer


class Summary(NamedTuple):
    """How a run ended."""

    env_steps: int
    wall_seconds: float
    episode_return_mean: float
    interrupted: bool


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MerlinError("Device cuda needs a GPU that PyTorch can use, and there is none here: take --device cpu.")
    try:
        device = torch.device(name)
        return torch.device("cuda", processes.index_on_machine()) if device == torch.device("cuda") else device
    except RuntimeError as error:
        raise MerlinError(f"A device is auto, cpu or cuda, but {name!r} came: choose one of them.") from error


def build_environment(config: RunConfig, num_envs: int | None = None, render_mode: str | None = None) -> Environment:
    """Return the run's environments, or this process's share of them."""
    return make_environment(
        config.task,
        num_envs or config.num_envs // processes.number(),
        device=resolve_device(config.device),
        env_kwargs=config.env_kwargs,
        vectorization=config.vectorization,
        render_mode=render_mode,
    )


def build_agent(config: RunConfig, environment: Environment) -> Agent:
    """Return the run's agent with fresh weights, drawn from the run's seed without touching PyTorch's global one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        agent = AGENTS[config.agent].agent_class(environment.spaces, environment.action_space, config.model)
    return agent.to(environment.device)


def load_config(run_dir: Path) -> RunConfig:
    """Return the configuration of a run directory."""
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MerlinError(
            f"A run directory holds a config.json, but {run_dir} has none: give one that train made."
        ) from error
    except (OSError, ValueError) as error:
        raise MerlinError(
            f"{path} must hold a run's configuration, but cannot be read: restore it or train anew."
        ) from error
    name = values.get("agent") if isinstance(values, dict) else None
    if name not in AGENTS:
        raise MerlinError(f"{path} must name one of the agents {', '.join(AGENTS)}, but names {name!r}: restore it.")
    return from_dict(RunConfig, values, {"model": AGENTS[name].config_class})


def load_agent(run_dir: Path, environment: Environment, config: RunConfig, which: str = "best") -> Agent:
    """Return the run's agent with the weights of its best or last checkpoint."""
    agent = build_agent(config, environment).eval()
    if which == "last" or checkpoint.load_best(run_dir, agent) is None:
        checkpoint.load_latest(run_dir, agent)
    return agent


def start(config: RunConfig, run_dir: Path) -> None:
    """Make the run directory, which must not hold a run already, and write its configuration."""
    if (run_dir / "config.json").exists() or (run_dir / "checkpoints").exists():
        raise MerlinError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose another --run-dir."
        )
    write_config(config, run_dir)


def write_config(config: RunConfig, run_dir: Path) -> None:
    """Write the configuration, under another name first, so that a kill leaves the old one or the new one."""
    temporary = run_dir / ".config.json"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, run_dir / "config.json")
    except OSError as error:
        raise MerlinError(
            f"The run directory {run_dir} must be writable, but {error}: choose another --run-dir."
        ) from error


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    wandb: str = "disabled",
    max_seconds: float = math.inf,
    stream: Any = None,
) -> Summary:
    """Train as configured and leave a complete run directory behind, also when interrupted.

    Started by torchrun, all its processes train one agent, each in its share of the environments; the first of them
    reports and writes, and what it returns counts.

    Args:
        resume: Go on from the last checkpoint of `run_dir`, whose configuration this must be.
        wandb: auto, online, offline or disabled.
        max_seconds: Stop after this long, counted from this call, as if `steps` had been reached.
        stream: Where progress is shown; standard error unless told.
    """
    with processes.joined(resolve_device(config.device)):
        return _train(config, Path(run_dir), resume, wandb, max_seconds, stream)


def _train(config: RunConfig, run_dir: Path, resume: bool, wandb: str, max_seconds: float, stream: Any) -> Summary:
    begin, leads = time.monotonic(), processes.index() == 0
    if config.num_envs % processes.number():
        raise MerlinError(
            f"Environments are shared out evenly, so num_envs must be a multiple of the {processes.number()} "
            f"processes, but is {config.num_envs}: take another."
        )
    shortfall = config.training.set_torch()
    with build_environment(config) as environment, ExitStack() as stack:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)
        before, reporter, tracker = 0.0, None, None
        if resume:
            _, rest = checkpoint.load_latest(run_dir, agent)
            trainer.load_state_dict(rest["trainer"])
            before = rest["wall_seconds"]
        if leads:
            # On resuming, steps and training.* may have changed, and the next resume starts from them.
            (write_config if resume else start)(config, run_dir)
            reporter = stack.enter_context(Reporter(run_dir, config.steps, trainer.env_steps, stream))
            if shortfall is not None:
                reporter.note(shortfall)
            if resume and not environment.is_native:
                reporter.note(f"{config.task} cannot save its state: its episodes begin anew, with a new seed")
            tracker = Tracker(wandb, run_dir, to_dict(config), run_dir.name, config.task, note=reporter.note)
        session = Session(config, run_dir, trainer, reporter, tracker, before - begin)
        code = 1
        try:
            with interrupts() as interrupted:
                trainer.run(session.report, lambda: bool(interrupted) or time.monotonic() - begin >= max_seconds)
            session.save()
            was_interrupted = processes.any_of(bool(interrupted))
            if leads:
                session.draw()
            code = 130 if was_interrupted else 0
        finally:
            if tracker is not None:
                tracker.close(code)
    return Summary(trainer.env_steps, session.wall_seconds(), session.last_return, was_interrupted)


class Session:
    """What happens around the training loop: reports, checkpoints, the picture at the end.

    Where several processes train together, each has one: those without a reporter and a tracker hand in what they saw.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        trainer: Trainer,
        reporter: Reporter | None,
        tracker: Tracker | None,
        offset: float,
    ) -> None:
        self.config, self.run_dir, self.trainer = config, run_dir, trainer
        self.reporter, self.tracker, self.offset = reporter, tracker, offset
        self.last_return = math.nan
        self.best = -math.inf if (best := checkpoint.read_best(run_dir)) is None else best.score
        # About a hundred reports, 10,000 steps each for a million, but more of a run too long to wait for the first.
        self.report_steps = config.training.report_steps or min(max(1, config.steps // 100), 50_000)
        self.next_report = trainer.env_steps + self.report_steps
        self.next_evaluation = trainer.env_steps + (config.training.evaluation_steps or 0)
        self.saved_at = time.monotonic()
        self._clear()

    def wall_seconds(self) -> float:
        """Return the run's training time, that of earlier sessions included."""
        return time.monotonic() + self.offset

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.windows = 0
        self.episodes: list[Episodes] = []
        self.since = (self.trainer.env_steps, self.wall_seconds(), dict(self.trainer.seconds))

    def report(self, losses: dict[str, Tensor], episodes: Episodes) -> None:
        """Take in one window; report and save when it is time."""
        for name, x in losses.items():
            self.sums[name] = self.sums[name] + x if name in self.sums else x
        self.windows += 1
        self.episodes.append(episodes)
        if self.trainer.env_steps >= min(self.next_report, self.config.steps):
            self.next_report = self.trainer.env_steps + self.report_steps
            self._report()
        if processes.any_of(time.monotonic() - self.saved_at >= self.config.training.checkpoint_seconds):
            self.save()

    def _report(self) -> None:
        steps, seconds, spent = self.since
        wall_seconds = self.wall_seconds()
        ended = [torch.cat(column).cpu() for column in zip(*self.episodes, strict=True)]
        means = {name: (x / self.windows).item() for name, x in self.sums.items()}
        seen = processes.gather((ended, means))
        if seen is None or self.reporter is None or self.tracker is None:
            self._clear()
            return
        returns, lengths, successes = (torch.cat(column) for column in zip(*(x for x, _ in seen), strict=True))
        metrics = {
            "env_steps": self.trainer.env_steps,
            "wall_seconds": wall_seconds,
            "env_steps_per_second": (self.trainer.env_steps - steps) / max(wall_seconds - seconds, 1e-9),
            "episode_return_mean": returns.mean().item(),
            "episode_return_std": returns.std(correction=0).item() if len(returns) else math.nan,
            "episode_length_mean": lengths.mean().item(),
            "episodes": len(returns),
        }
        if not successes.isnan().all():
            metrics["success_rate"] = successes.nanmean().item()
        for name, total in self.trainer.seconds.items():
            metrics[f"{name}_seconds"] = total - spent[name]
        metrics |= {name: statistics.fmean(x[name] for _, x in seen) for name in means}
        if len(returns):
            self.last_return = metrics["episode_return_mean"]
        score = self.last_return if len(returns) else -math.inf
        if self.config.training.evaluation_steps and self.trainer.env_steps >= self.next_evaluation:
            self.next_evaluation = self.trainer.env_steps + self.config.training.evaluation_steps
            evaluation = self._evaluate()
            metrics |= {f"evaluation_{name}": value for name, value in evaluation.items()}
            score = evaluation["episode_return_mean"]
        elif self.config.training.evaluation_steps:
            score = -math.inf
        if score > self.best:
            self.best = score
            checkpoint.save_best(self.run_dir, self.trainer.env_steps, score, self.trainer.agent)
        self.reporter.report(metrics)
        self.tracker.log(metrics, self.trainer.env_steps)
        if self.trainer.env_steps >= 0.1 * self.config.steps:  # before, an agent has not had the time
            for key, sentence in self.trainer.agent.warnings(metrics).items():
                self.reporter.warn_once(key, sentence)
        self._clear()

    def _evaluate(self) -> dict[str, Any]:
        episodes = self.config.training.evaluation_episodes
        with build_environment(self.config, min(self.config.num_envs, episodes)) as environment:
            return evaluate(self.trainer.agent, environment, episodes=episodes, seed=self.config.seed + HELD_OUT_SEED)

    def save(self) -> None:
        """Write a checkpoint."""
        rest = {"trainer": self.trainer.state_dict(), "wall_seconds": self.wall_seconds()}
        if self.reporter is not None:
            checkpoint.save(self.run_dir, self.trainer.env_steps, self.trainer.agent, rest)
        self.saved_at = time.monotonic()

    def draw(self) -> None:
        """Write the learning curve, and hand wandb a picture of it and an episode."""
        from merlin.analysis.curves import plot_learning_curve  # matplotlib takes a second to import

        if not (self.run_dir / "metrics.jsonl").stat().st_size:
            return
        path = self.run_dir / "learning_curve.png"
        plot_learning_curve([self.run_dir], path, self.trainer.environment.scores)
        self.tracker.log_media(path, "learning_curve")
        if self.tracker.is_on:
            from merlin.analysis.watching import watch

            try:
                self.tracker.log_media(watch(self.run_dir, note=self.reporter.note), "episode")
            except Exception as error:  # a picture for wandb is no reason to lose a finished run
                self.reporter.note(f"wandb gets no episode: {error}")


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising; a second one ends the process as usual."""
    caught: list[int] = []
    previous: dict[int, Callable | int | None] = {}

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass  # not in the main thread: whoever is there handles signals
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
