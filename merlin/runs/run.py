"""A run as a function: from a configuration to a trained agent and a run directory.

RUN_DIR/config.json           the whole configuration and the agent's spaces; enough to rebuild the agent
        metrics.jsonl         one object per report
        checkpoints/          the last few and the best
        learning_curve.png    written at the end
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from merlin import distributed
from merlin.agents import Agent, find_agent
from merlin.environments.batch import Environment, make_environment
from merlin.errors import MerlinError
from merlin.runs.agent_spaces import AgentSpaces, check_spaces, to_config
from merlin.runs.monitor import Monitor
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.settings import from_dict, to_dict
from merlin.runs.tracking import Tracker
from merlin.training import checkpoint
from merlin.training.evaluation import CHOOSING_SEED, evaluate
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
        return torch.device("cuda", distributed.local_rank()) if device == torch.device("cuda") else device
    except RuntimeError as error:
        raise MerlinError(f"A device is auto, cpu or cuda, but {name!r} came: choose one of them.") from error


def build_environment(config: RunConfig, num_envs: int | None = None, render_mode: str | None = None) -> Environment:
    """Return the run's environments, or this process's share of them."""
    return make_environment(
        config.task,
        num_envs or config.num_envs // distributed.world_size(),
        device=resolve_device(config.device),
        env_kwargs=config.env_kwargs,
        vectorization=config.vectorization,
        render_mode=render_mode,
        truncation_ends=config.training.truncation_ends,
        config=config.environment,
    )


def build_agent(config: RunConfig, environment: Environment) -> Agent:
    """Return the run's agent with fresh weights, drawn from the run's seed without touching PyTorch's global one."""
    return build_agent_of(config, AgentSpaces(environment.spaces, environment.action_space)).to(environment.device)


def build_agent_of(config: RunConfig, spaces: AgentSpaces) -> Agent:
    """Return `build_agent`'s agent, on the CPU, of spaces alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return find_agent(config.agent).agent_class(*spaces, config.model)


def load_config(run_dir: Path) -> RunConfig:
    """Return the configuration of a run directory.

    Raises:
        MerlinError: There is none, it was changed, or its agent's module cannot be imported.
    """
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
    values = {key: value for key, value in values.items() if key != "spaces"} if name else values
    if not isinstance(name, str):
        raise MerlinError(f"{path} must name the agent that was trained, but names {name!r}: restore it.")
    try:
        return from_dict(RunConfig, values, {"model": find_agent(name).config_class})
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error


def existing_checkpoint(run_dir: Path, which: str) -> str:
    """Return `which` weights are loaded, best or last: of a run too short to tell which are best, the last."""
    return "last" if which == "best" and checkpoint.read_best(run_dir) is None else which


def load_agent(run_dir: Path, environment: Environment, config: RunConfig, which: str = "best") -> Agent:
    """Return the run's agent with the weights of its best or last checkpoint.

    Raises:
        MerlinError: The environment has other spaces than the run's, or the weights cannot be read.
    """
    check_spaces(run_dir, config.task, environment)
    agent = build_agent(config, environment).eval()
    load_weights(run_dir, agent, which)
    return agent


def load_weights(run_dir: Path, agent: Agent, which: str) -> None:
    """Load the weights of the run's best or last checkpoint."""
    load = checkpoint.load_latest if existing_checkpoint(run_dir, which) == "last" else checkpoint.load_best
    load(run_dir, agent)


def evaluate_held_out(agent: Agent, config: RunConfig) -> dict[str, Any]:
    """Return what the agent earns in episodes that choose the run's best weights, as many as its evaluations take."""
    episodes = config.training.evaluation_episodes
    with build_environment(config, min(config.num_envs, episodes)) as environment:
        return evaluate(agent, environment, episodes=episodes, seed=config.seed + CHOOSING_SEED)


def start(config: RunConfig, run_dir: Path, spaces: dict[str, Any] | None = None) -> None:
    """Make the run directory, which must not hold a run already, and write its configuration."""
    if (run_dir / "config.json").exists() or (run_dir / "checkpoints").exists():
        raise MerlinError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose another --run-dir."
        )
    write_config(config, run_dir, spaces)


def write_config(config: RunConfig, run_dir: Path, spaces: dict[str, Any] | None = None) -> None:
    """Write the configuration, under another name first, so that a kill leaves the old one or the new one.

    Args:
        spaces: What `agent_spaces.to_config` keeps of the agent's.
    """
    temporary = run_dir / ".config.json"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(to_dict(config) | (spaces or {}), indent=2) + "\n", encoding="utf-8")
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
    stream: TextIOBase | TextIO | None = None,
    film: Callable[[Path], Path] | None = None,
) -> Summary:
    """Train as configured and leave a complete run directory behind, also when interrupted.

    Started by torchrun, all its processes train one agent, each in its share of the environments; the first of them
    reports and writes, and what it returns counts.

    Args:
        resume: Go on from the last checkpoint of `run_dir`, whose configuration this must be.
        wandb: auto, online, offline or disabled.
        max_seconds: Stop after this long, counted from this call, but not before the first window is learnt from.
        stream: Where progress is shown; standard error unless told.
        film: Films an episode of the finished run for Weights & Biases, such as `merlin.watch`; none leaves it out.
    """
    with distributed.joined(resolve_device(config.device)):
        return _train(config, Path(run_dir), resume, wandb, max_seconds, stream, film)


def _train(
    config: RunConfig,
    run_dir: Path,
    resume: bool,
    wandb: str,
    max_seconds: float,
    stream: TextIOBase | TextIO | None,
    film: Callable[[Path], Path] | None,
) -> Summary:
    begin, leads = time.monotonic(), distributed.rank() == 0
    if config.num_envs % distributed.world_size():
        raise MerlinError(
            f"Environments are shared out evenly, so num_envs must be a multiple of the {distributed.world_size()} "
            f"processes, but is {config.num_envs}: take another."
        )
    shortfall = config.training.set_torch(resolve_device(config.device))
    with build_environment(config) as environment, ExitStack() as stack:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)
        before, reporter, tracker = 0.0, None, None
        if resume:
            check_spaces(run_dir, config.task, environment)
            _, rest = checkpoint.load_latest(run_dir, agent)
            trainer.load_state_dict(rest["trainer"])
            before = rest["wall_seconds"]
        if leads:
            # On resuming, steps and training.* may have changed, and the next resume starts from them.
            (write_config if resume else start)(config, run_dir, to_config(environment))
            reporter = stack.enter_context(Reporter(run_dir, config.steps, trainer.env_steps, stream))
            if shortfall is not None:
                reporter.note(shortfall)
            if resume and not environment.is_native:
                reporter.note(f"{config.task} cannot save its state: its episodes begin anew, with a new seed")
            tracker = Tracker(wandb, run_dir, to_dict(config), run_dir.name, config.task, note=reporter.note)
        evaluation = partial(evaluate_held_out, agent, config)
        monitor = Monitor(config, run_dir, trainer, reporter, tracker, before - begin, evaluation, film)
        code = 1
        try:
            with interrupts() as interrupted:
                first = trainer.env_steps

                def should_stop() -> bool:  # late or not, one window is learnt from
                    is_late = trainer.env_steps > first and time.monotonic() - begin >= max_seconds
                    return bool(interrupted) or is_late

                trainer.run(monitor.report, should_stop)
            monitor.finish()
            was_interrupted = distributed.any_of(bool(interrupted))
            if leads:
                monitor.draw()
            code = 130 if was_interrupted else 0
        finally:
            if tracker is not None:
                tracker.close(code)
    return Summary(trainer.env_steps, monitor.wall_seconds(), monitor.last_return, was_interrupted)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list instead of raising; a second one ends the process as usual."""
    caught: list[int] = []
    previous: dict[int, Callable | int | None] = {}

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    try:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass  # not in the main thread: whoever is there handles signals
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
