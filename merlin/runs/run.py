"""A run as a function: from a configuration to a trained agent and a run directory."""

import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from merlin import distributed
from merlin.agents import Agent, find_agent
from merlin.environments.batch import Environment, make_environment
from merlin.environments.make import find_spec, rows_per_game
from merlin.errors import EnvironmentFailure, MerlinError, describe, is_out_of_memory, quote, tell
from merlin.runs.advice import describe_run
from merlin.runs.agent_spaces import AgentSpaces, check_spaces, to_config
from merlin.runs.choice import compare
from merlin.runs.curriculum import Curriculum
from merlin.runs.directory import changes, check_unchanged, claimed, tell_changes
from merlin.runs.directory import load_config as load_config
from merlin.runs.directory import start as start
from merlin.runs.directory import write_config as write_config
from merlin.runs.monitor import Monitor
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.settings import to_dict
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
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise MerlinError(f"A device is auto, cpu, cuda or cuda:N, but {quote(name)} came: choose one of them.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MerlinError("Device cuda needs a GPU that PyTorch can use, and there is none here: take --device cpu.")
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise MerlinError(
            f"Device {name} must be there, but PyTorch counts {torch.cuda.device_count()} GPUs: take another."
        )
    return torch.device("cuda", distributed.local_rank()) if device == torch.device("cuda") else device


def build_environment(config: RunConfig, num_envs: int | None = None, render_mode: str | None = None) -> Environment:
    """Return the run's environments, or this process's share of them.

    Args:
        num_envs: So many instead, or the few more that make whole games, of tasks with several players: 1 is one game.
    """
    if num_envs is None:
        num_envs = config.num_envs // distributed.world_size()
    else:
        rows = rows_per_game(find_spec(config.task), config.env_kwargs, config.environment)
        num_envs = -(-num_envs // rows) * rows
    return make_environment(
        config.task,
        num_envs,
        device=resolve_device(config.device),
        env_kwargs=config.env_kwargs,
        vectorization=config.vectorization,
        render_mode=render_mode,
        truncation_ends=config.training.truncation_ends,
        config=config.environment,
    )


def build_judged(config: RunConfig, num_envs: int, note: Callable[[str], object] = lambda _: None) -> Environment:
    """Return environments in which an agent is judged: those of training, or in self-play games against bots.

    In self-play what one row wins another loses, so that returns say nothing. A task says by `judged_by` with which
    settings they do.

    Args:
        note: Is told of these.
    """
    environment = build_environment(config, num_envs)
    settings = environment.judged_by
    if not settings:
        return environment
    environment.close()
    named = ", ".join(f"{name}={value}" for name, value in settings.items())
    note(f"games against itself would say nothing of the agent, so it plays with {named}")
    return build_environment(replace(config, env_kwargs=config.env_kwargs | settings), num_envs)


def build_agent(config: RunConfig, environment: Environment) -> Agent:
    """Return the run's agent with fresh weights, drawn from the run's seed without touching PyTorch's global one."""
    return build_agent_of(config, AgentSpaces(environment.spaces, environment.action_space)).to(environment.device)


def build_agent_of(config: RunConfig, spaces: AgentSpaces) -> Agent:
    """Return `build_agent`'s agent, on the CPU, of spaces alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        agent_class = find_agent(config.agent).agent_class
        try:
            agent = agent_class(*spaces, config.model)
            state = agent.initial_state(1)
            assert hasattr(state, "previous_action"), "its state must have an entry previous_action"
        except Exception as error:  # whatever an agent of anybody's file does
            if isinstance(error, MerlinError) or is_out_of_memory(error):
                raise
            raise MerlinError(
                f"The agent {config.agent!r} cannot be built for {config.task}: {describe(error)}: correct it."
            ) from error
    return agent


def existing_checkpoint(run_dir: Path, which: str) -> str:
    """Return `which` weights are loaded, best or last: where it is not known which are best, the last."""
    return "last" if which == "best" and checkpoint.read_best(run_dir) is None else which


def load_agent(
    run_dir: Path,
    environment: Environment,
    config: RunConfig,
    which: str = "best",
    note: Callable[[str], object] = tell,
) -> Agent:
    """Return the run's agent with the weights of its best or last checkpoint.

    Args:
        note: Is told of damage for which other weights are taken, and of settings that the run was not trained with,
            but for those of the task.

    Raises:
        MerlinError: The environment has other spaces than the run's, or the weights cannot be read.
    """
    tell_changes(config, run_dir, note, but="env_kwargs")
    check_spaces(run_dir, config.task, environment)
    agent = build_agent(config, environment).eval()
    load_weights(run_dir, agent, which, note)
    return agent


def load_weights(run_dir: Path, agent: Agent, which: str, note: Callable[[str], object] = tell) -> None:
    """Load the weights of the run's best or last checkpoint; the last where there are no best ones."""
    if which != "best" or checkpoint.load_best(run_dir, agent, note) is None:
        checkpoint.load_last_weights(run_dir, agent, note)


def _load_start(agent: Agent, config: RunConfig, note: Callable[[str], object]) -> None:
    """Load the weights that a new run starts from."""
    assert config.started_from is not None
    run_dir = Path(config.started_from)
    saved = load_config(run_dir, note=lambda _: None)
    try:
        best = checkpoint.load_best(run_dir, agent, note) if config.started_from_checkpoint == "best" else None
        step = checkpoint.load_last_weights(run_dir, agent, note) if best is None else best.step
    except MerlinError as error:
        differing = [f"{path}={then}" for path, _, then in changes(config, to_dict(saved)) if path.startswith("model.")]
        hint = f", as with --set {' '.join(sorted(differing))}" if differing else ""
        raise MerlinError(
            f"{str(error).rpartition(': ')[0]}: a run that starts from weights needs the same agent, model settings "
            f"and spaces{hint}"
        ) from error
    note(f"starts from the {'last' if best is None else 'best'} weights of {run_dir}, of {step:,} steps")


def evaluate_held_out(agent: Agent, config: RunConfig) -> dict[str, Any]:
    """Return what the agent earns in episodes that choose the run's best weights, as many as its evaluations take."""
    episodes = config.training.evaluation_episodes
    with build_judged(config, min(config.num_envs, episodes)) as environment:
        return evaluate(agent, environment, episodes=episodes, seed=config.seed + CHOOSING_SEED)


def compare_held_out(
    config: RunConfig, is_interrupted: Callable[[], bool], contenders: Sequence[Mapping[str, Tensor]], seconds: float
) -> Float[Tensor, "contenders episodes"]:
    """Return what each of several weights of the run's agent earns in episodes that choose the best weights.

    See `merlin.runs.choice.compare`.
    """
    episodes = config.training.evaluation_episodes
    with build_environment(config, min(config.num_envs, episodes)) as environment:
        environment.stop_waiting_when(is_interrupted)
        agent, seed = build_agent(config, environment).eval(), config.seed + CHOOSING_SEED
        return compare(
            agent, environment, contenders, episodes=episodes, seed=seed, seconds=seconds, should_stop=is_interrupted
        )


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
        resume: Go on from the last checkpoint of `run_dir`, whose configuration this must be, but for steps, training,
            device and vectorization; from the beginning where there is no checkpoint yet.
        wandb: auto, online, offline or disabled.
        max_seconds: Stop after this long, counted from this call, but not before the first window is learnt from.
        stream: Where progress is shown; standard error unless told.
        film: Films an episode of the finished run for Weights & Biases, such as `merlin.watch`; none leaves it out.
    """
    run_dir = Path(run_dir).absolute()  # whatever an environment makes the working directory
    if resume and not (run_dir / "config.json").exists() and not checkpoint.steps(run_dir):
        raise MerlinError(f"Only a run can be resumed, but {run_dir} holds none: give a directory that train made.")
    with distributed.joined(resolve_device(config.device)):
        return _train(config, run_dir, resume, wandb, max_seconds, stream, film)


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
    notes = [sentence] if (sentence := config.training.set_torch(resolve_device(config.device))) else []
    curriculum = Curriculum(config.curriculum)
    if config.curriculum.values:
        _check_stages(config)
    with ExitStack() as stack:
        environment = stack.enter_context(build_environment(_staged(config, curriculum)))
        agent = build_agent(config, environment)
        if config.started_from is not None and not (resume and checkpoint.steps(run_dir)):
            _load_start(agent, config, notes.append)
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)
        before, reporter, tracker, monitors, is_here = 0.0, None, None, None, lambda: True
        interrupted: list[int] = []

        def enter() -> None:
            following = stack.enter_context(build_environment(_staged(config, curriculum)))
            following.stop_waiting_when(lambda: bool(interrupted))
            trainer.enter(following)
            if reporter is not None:
                stage = ", ".join(f"{name} {value}" for name, value in curriculum.env_kwargs.items())
                reporter.note(f"stage {curriculum.stage}: {stage or 'the task as it is'}")

        if leads:
            is_here = stack.enter_context(claimed(run_dir, resume, notes.append))
        if resume:
            check_unchanged(config, run_dir)
            check_spaces(run_dir, config.task, environment)
        if resume and checkpoint.steps(run_dir):
            rest = _load_training(run_dir, trainer, config, notes.append, curriculum, enter)
            before, monitors = rest["wall_seconds"], rest.get("monitors")
        elif resume:
            notes.append(f"{run_dir} has no checkpoint yet: it trains from the beginning")
        if leads:
            # on resuming, what may change may have, and the next resume starts from it
            write_config(config, run_dir, to_config(environment))
            reported_step = trainer.env_steps if monitors is None else monitors[0]["reported_at"]
            reporter = Reporter(run_dir, config.steps, trainer.env_steps, stream, reported_step)
            stack.enter_context(reporter)
            for sentence in (*describe_run(config, environment), *notes):
                reporter.note(sentence)
            tracker = Tracker(wandb, run_dir, to_dict(config), run_dir.name, config.task, note=reporter.note)
        evaluation = partial(evaluate_held_out, agent, config)
        offset = before - begin
        monitor = Monitor(
            config, run_dir, trainer, reporter, tracker, offset, evaluation, film, is_here, curriculum, enter
        )
        if monitors is not None:
            monitor.load_state_dict(monitors[distributed.rank()])
        code = 1
        try:
            with interrupts() as interrupted:
                first = trainer.env_steps

                def should_stop() -> bool:  # late or not, one window is learnt from
                    is_late = trainer.env_steps > first and time.monotonic() - begin >= max_seconds
                    return bool(interrupted) or is_late

                environment.stop_waiting_when(lambda: bool(interrupted))
                try:
                    trainer.run(monitor.report, should_stop)
                except (EnvironmentFailure, KeyboardInterrupt):
                    # What was learnt until then is sound; but a native environment has gone on from there.
                    if reporter is None or environment.is_native or distributed.world_size() > 1:
                        raise
                    monitor.save()
                    if not interrupted:
                        reporter.note(f"{run_dir} has a checkpoint of {trainer.env_steps:,} steps, to --resume from")
                        raise
            monitor.finish()
            was_interrupted = distributed.any_of(bool(interrupted))
            if leads:  # the others are done, and wait for nothing more
                if trainer.env_steps >= config.steps and not was_interrupted:
                    with interrupts() as interrupted:
                        is_interrupted = lambda: bool(interrupted)  # noqa: E731
                        monitor.choose(partial(compare_held_out, config, is_interrupted), is_interrupted)
                    was_interrupted = bool(interrupted)
                monitor.draw()
            code = 130 if was_interrupted else 0
        finally:
            if tracker is not None:
                tracker.close(code)
    return Summary(trainer.env_steps, monitor.wall_seconds(), monitor.last_return, was_interrupted)


def _staged(config: RunConfig, curriculum: Curriculum) -> RunConfig:
    """Return the configuration with the task of a curriculum's stage."""
    return replace(config, env_kwargs=config.env_kwargs | curriculum.env_kwargs)


def _check_stages(config: RunConfig) -> None:
    """Refuse a curriculum with a stage whose environment cannot be built, or has other spaces than the task's."""
    curriculum = Curriculum(config.curriculum)
    with build_environment(config, 1) as environment:
        expected = to_config(environment)
    while not curriculum.is_over:
        with build_environment(_staged(config, curriculum), 1) as environment:
            if to_config(environment) != expected:
                ((name, value),) = curriculum.env_kwargs.items()
                raise MerlinError(
                    f"Stages of a curriculum must have the spaces of the task, but those of {config.task} are others "
                    f"with {name} {value}: take an argument that changes no space."
                )
        curriculum.move_on(0)


def _load_training(
    run_dir: Path,
    trainer: Trainer,
    config: RunConfig,
    note: Callable[[str], object],
    curriculum: Curriculum,
    enter: Callable[[], object],
) -> dict[str, Any]:
    """Let a trainer go on from the run's last intact checkpoint, and return all of it but the weights.

    Args:
        enter: Lets it go on in the environments of the curriculum's stage.
    """
    step, rest = checkpoint.load_latest(run_dir, trainer.agent, note)
    stands = rest["monitors"][0].get("curriculum") if rest.get("monitors") else None  # all processes' are the same
    if stands is not None and stands["stage"]:
        curriculum.load_state_dict(stands)
        enter()
    try:
        goes_on, _ = trainer.load_state_dict(rest["trainer"], run_dir / checkpoint.REPLAY), float(rest["wall_seconds"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise MerlinError(
            f"The checkpoint of {step:,} steps in {run_dir} must hold the training state of {config.agent}, but holds "
            f"another ({describe(error)}): resume with the agent and the settings that the run began with."
        ) from error
    if not goes_on:
        note(f"the state of {config.task} cannot be gone on from: its episodes begin anew, with a new seed")
    distributed.any_of(False)  # all processes have read
    if distributed.rank() == 0:
        checkpoint.set_aside(run_dir, beyond=step)
    return rest


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
