"""A run as a function: from a configuration to a trained agent and a run directory."""

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import TextIOBase
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, TextIO

from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from merlin import distributed
from merlin.agents import Agent
from merlin.environments.batch import Environment
from merlin.environments.make import find_spec
from merlin.environments.passed import Passed, find_instance, is_of_this_process, keep, no_task
from merlin.errors import EnvironmentFailure, MerlinError, counted, describe, launched, option
from merlin.precision import restoring_torch
from merlin.runs.advice import describe_run
from merlin.runs.agent_spaces import check_spaces, difference, read_spaces, to_config
from merlin.runs.build import build_agent as build_agent
from merlin.runs.build import build_environment as build_environment
from merlin.runs.build import build_judged
from merlin.runs.build import load_agent as load_agent
from merlin.runs.build import load_weights as load_weights
from merlin.runs.build import resolve_device as resolve_device
from merlin.runs.choice import compare
from merlin.runs.configure import Assignments, Wrappers, changed, configure, naming_settings
from merlin.runs.curriculum import Curriculum
from merlin.runs.directory import changes, check_unchanged, claimed, default_run_dir, no_run, saved_config
from merlin.runs.directory import load_config as load_config
from merlin.runs.directory import start as start
from merlin.runs.directory import write_config as write_config
from merlin.runs.monitor import Monitor
from merlin.runs.player import LoadedAgent, load
from merlin.runs.presets import RunConfig
from merlin.runs.reporting import Reporter
from merlin.runs.settings import to_dict
from merlin.runs.trackers import TensorBoard, Trackers, Tracks, summary_writer
from merlin.runs.tracking import Tracker
from merlin.training import checkpoint
from merlin.training.evaluation import CHOOSING_SEED, evaluate
from merlin.training.trainer import Trainer


@dataclass(frozen=True)
class Summary:
    """How a run ended, and what came of it."""

    env_steps: int
    wall_seconds: float
    episode_return_mean: float
    """Of the last `episodes`; NaN where none had ended."""
    interrupted: bool
    """Whether Ctrl-C or a signal ended it."""
    run_dir: Path
    """Where its files are."""
    episodes: int = 0
    """How many of the last episodes that mean is of: about a hundred, or those of the last five reports."""

    @cached_property
    def agent(self) -> LoadedAgent:
        """The trained agent, with the run's best weights: what `merlin.load(run_dir)` returns."""
        return load(self.run_dir)

    def evaluate(self, env: str | Passed | EllipsisType = ..., **options: Any) -> dict[str, Any]:
        """Return the agent's scores in held-out episodes: `LoadedAgent.evaluate`, whose arguments these are."""
        return self.agent.evaluate(env, **options)

    def plot(self) -> Image:
        """Return the learning curve as a picture, which a notebook shows."""
        from merlin.runs.learning_curve import plot_learning_curve  # matplotlib takes a second to import

        return plot_learning_curve([self.run_dir])


def _load_start(agent: Agent, config: RunConfig, note: Callable[[str], object]) -> None:
    """Load the weights that a new run starts from."""
    assert config.started_from is not None
    run_dir = Path(config.started_from)
    saved = load_config(run_dir, note=lambda _: None)
    try:
        best = checkpoint.load_best(run_dir, agent, note) if config.started_from_checkpoint == "best" else None
        step = checkpoint.load_last_weights(run_dir, agent, note) if best is None else best.step
    except MerlinError as error:
        kept = read_spaces(run_dir)
        if kept is not None and (what := difference(kept, agent)):
            raise MerlinError(
                f"A run that starts from weights needs the spaces that they were trained with, but {config.task} "
                f"differs from {saved.task} of {run_dir} in {what}: start from a run of a task like this one."
            ) from error
        differing = [f"{path}={then}" for path, _, then in changes(config, to_dict(saved)) if path.startswith("model.")]
        hint = f", as with {option('set', *sorted(differing))}" if differing else ""
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


@naming_settings
@restoring_torch()
def train(
    env: RunConfig | str | Passed | EllipsisType = ...,
    run_dir: str | Path | None = None,
    *,
    agent: str | type[Agent] | None = None,
    steps: int | float | None = None,
    seed: int | None = None,
    num_envs: int | None = None,
    device: str | None = None,
    preset: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrap: Wrappers = (),
    vectorization: Literal["sync", "async"] | None = None,
    set: Assignments = (),
    started_from: str | Path | None = None,
    started_from_checkpoint: Literal["best", "last"] | None = None,
    resume: bool | str | Path = False,
    wandb: str = "disabled",
    tensorboard: bool = False,
    max_seconds: float = math.inf,
    on_report: Callable[[dict[str, int | float]], object] | None = None,
    on_start: Callable[[], object] = lambda: None,
    stream: TextIOBase | TextIO | None = None,
    film: Callable[[Path], Path] | None = None,
) -> Summary:
    """Train an agent, leave a complete run directory behind, also when interrupted, and return what came of it.

        run = merlin.train("merlin/MemoryGame-v0", agent="merlin", steps=300_000, seed=1)
        run.evaluate(episodes=500)
        run.agent.act(observation)

    The arguments are the options of `merlin train`, and mean the same. Started by torchrun, all processes train one
    agent, each in its share of the environments; the first of them reports and writes, and what it returns counts.

    Args:
        env: A gymnasium id or `module:Id`; a function or class that makes an environment; an environment or a
            `VectorEnv`, which is played as it is and stays open; or a whole `RunConfig`. The card game unless told.
        run_dir: runs/TASK-AGENT-seedS-DATE-TIME unless told.
        agent: A name, `module:Class`, or a class; merlin unless told.
        steps: In all; by task unless told, as is `num_envs`.
        seed: Of weights, environments and every random choice; 1 unless told.
        preset: The family of tasks whose settings the run starts from; that of the task unless told.
        env_kwargs: Settings of the task, or arguments of the function that makes it.
        wrap: A wrapper around each environment, or several, the first innermost: functions of modules, or their names.
        set: Any other settings, such as {"model.memory_size": 12}, or texts as for `--set`.
        started_from: Directory of a run whose weights this one starts with.
        resume: The directory of a run, which goes on from its last checkpoint, and of which only steps, training,
            device and vectorization may change; or True for that of `run_dir`.
        wandb: auto, online, offline or disabled.
        tensorboard: Write files for TensorBoard, in RUN_DIR/tensorboard.
        max_seconds: Stop after this long, counted from this call, but not before the first window is learnt from.
        on_report: Is given each report, a line of `metrics.jsonl`. If it returns something true, the run stops, with a
            checkpoint. What it raises ends the run too, with a checkpoint, and is raised here.
        on_start: Is called once environments, agent and run directory are made, in the process that reports.
        stream: Where progress is shown; standard error unless told, in a notebook standard output.
        film: Films an episode of the finished run for Weights & Biases, such as `merlin.watch`; none leaves it out.

    Raises:
        MerlinError: Something is not there, does not fit, or the environment failed.
    """
    begin, resumed = time.monotonic(), None if isinstance(resume, bool) else Path(resume)
    if env is None:  # what a function returned that forgot to: the default task would be trained on without a word
        raise no_task(env)
    task = None if isinstance(env, EllipsisType) else env
    choices = {"agent": agent, "preset": preset, "env_kwargs": env_kwargs, "wrap": wrap or None}
    values = {
        "steps": steps,
        "seed": seed,
        "num_envs": num_envs,
        "device": device,
        "vectorization": vectorization,
        "started_from": None if started_from is None else str(Path(started_from).absolute()),
        "started_from_checkpoint": started_from_checkpoint,
    }
    if resumed is not None:
        run_dir = resumed if run_dir is None else run_dir
        _check_run(resumed)
        config = load_config(resumed)
        if isinstance(task, RunConfig | str):
            choices["env"] = task
        elif task is not None and is_of_this_process(config.task):
            keep(config.task, task)
    elif isinstance(task, RunConfig):
        config = task
    if resumed is not None or isinstance(task, RunConfig):
        if given := [name for name, value in choices.items() if value is not None]:
            raise MerlinError(
                f"A whole configuration, or a run that goes on, says {', '.join(given)} itself: leave that out."
            )
        config = changed(config, {name: value for name, value in values.items() if value is not None}, set)
    else:
        config = configure(task, agent, preset_name=preset, env_kwargs=env_kwargs, wrap=wrap, set=set, **values)
    run_dir = default_run_dir(config) if run_dir is None else Path(run_dir)
    run_dir = run_dir.absolute()  # whatever an environment makes the working directory
    if resume:
        _check_run(run_dir)
    with distributed.joined(resolve_device(config.device)):
        left = max_seconds - (time.monotonic() - begin)
        return _train(config, run_dir, bool(resume), wandb, tensorboard, left, stream, film, on_report, on_start)


def _check_run(run_dir: Path) -> None:
    if (run_dir / checkpoint.MODEL).exists():
        raise MerlinError(
            f"{run_dir} is an exported agent, in which no training can go on: begin a new run with its weights by "
            f"{option('from', run_dir)}."
        )
    population = run_dir.parent.parent
    if run_dir.parent.name == "agents" and (population / "population.json").exists():
        resuming = launched(f"population --resume {shlex.quote(str(population))}")
        raise MerlinError(
            f"{run_dir} is an agent of the population {population}, which goes on as one: resume that by {resuming}, "
            f"or begin a new run with the agent's weights by {option('from', run_dir)}."
        )
    if not (run_dir / "config.json").exists() and not checkpoint.steps(run_dir):
        raise no_run(run_dir)


def _train(
    config: RunConfig,
    run_dir: Path,
    resume: bool,
    wandb: str,
    tensorboard: bool,
    max_seconds: float,
    stream: TextIOBase | TextIO | None,
    film: Callable[[Path], Path] | None,
    on_report: Callable[[dict[str, int | float]], object] | None,
    on_start: Callable[[], object],
) -> Summary:
    begin, leads = time.monotonic(), distributed.rank() == 0
    if config.num_envs % distributed.world_size():
        raise MerlinError(
            f"Environments are shared out evenly, so num_envs must be a multiple of the {distributed.world_size()} "
            f"processes, but is {config.num_envs}: take another."
        )
    if config.training.evaluation_steps is not None and find_instance(find_spec(config.task)) is not None:
        raise MerlinError(
            "Evaluations in training need environments of their own, so training.evaluation_steps must be none where "
            "an environment is passed itself: leave that out, or pass a function that makes environments."
        )
    if tensorboard:
        summary_writer()  # without which no directory is made
    notes = [sentence] if (sentence := config.training.set_torch(resolve_device(config.device))) else []
    curriculum = Curriculum(config.curriculum)
    if config.curriculum.values:
        _check_stages(config)
    with ExitStack() as stack:
        environment = stack.enter_context(build_environment(_staged(config, curriculum)))
        agent = build_agent(config, environment)
        if config.started_from is not None and not (resume and checkpoint.steps(run_dir)):
            _load_start(agent, config, notes.append)
        before, reporter, tracker, monitors, is_here = 0.0, None, None, None, lambda: True
        interrupted: list[int] = []
        if leads:
            is_here = stack.enter_context(claimed(run_dir, resume, notes.append))
        if resume:
            check_unchanged(config, run_dir)
            check_spaces(run_dir, config.task, environment)
        if leads:
            on_start()  # before the optimisers, whose first use imports for a second
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)

        def enter() -> None:
            following = stack.enter_context(build_environment(_staged(config, curriculum)))
            following.stop_waiting_when(lambda: bool(interrupted))
            trainer.enter(following)
            if reporter is not None:
                stage = ", ".join(f"{name} {value}" for name, value in curriculum.env_kwargs.items())
                reporter.note(f"stage {curriculum.stage}: {stage or 'the task as it is'}")

        if resume and checkpoint.steps(run_dir):
            rest = _load_training(run_dir, trainer, config, notes.append, curriculum, enter)
            before, monitors = rest["wall_seconds"], rest.get("monitors")
            if config.steps < min(trainer.env_steps, (saved_config(run_dir) or {}).get("steps", 0)):
                raise MerlinError(
                    f"A run goes on from where it is, so {option('steps')} must be above {trainer.env_steps:,}, but is "
                    f"{config.steps:,}: raise it, or leave it out."
                )
            if trainer.env_steps >= config.steps:
                notes.append(f"all {config.steps:,} steps are made: {option('steps')} gives it more")
            else:
                notes.append(f"going on after {trainer.env_steps:,} steps")
        elif resume:
            notes.append(f"{run_dir} has no checkpoint: it trains from the beginning")
        window = config.training.unroll_length * config.num_envs
        if trainer.env_steps < config.steps < trainer.env_steps + window:
            notes.append(
                f"the least that is learnt from is a window, {config.training.unroll_length} steps in each of "
                f"{counted(config.num_envs, 'environment')}: the run ends at {trainer.env_steps + window:,} steps "
                f"rather than {config.steps:,}"
            )
        if leads:
            # on resuming, what may change may have, and the next resume starts from it
            write_config(config, run_dir, to_config(environment))
            reported_step = trainer.env_steps if monitors is None else monitors[0]["reported_at"]
            picture = partial(_draw, run_dir, environment)
            reporter = Reporter(run_dir, config.steps, trainer.env_steps, stream, reported_step, picture)
            stack.enter_context(reporter)
            for sentence in (*describe_run(config, environment), *notes):
                reporter.note(sentence)
            trackers: list[Tracks] = [TensorBoard(run_dir, to_dict(config), reported_step)] if tensorboard else []
            trackers.append(Tracker(wandb, run_dir, to_dict(config), run_dir.name, config.task, note=reporter.note))
            tracker = Trackers(trackers)
        evaluation = partial(evaluate_held_out, agent, config)
        offset = before - begin
        monitor = Monitor(
            config, run_dir, trainer, reporter, tracker, offset, evaluation, film, is_here, curriculum, enter, on_report
        )
        if monitors is not None:
            monitor.load_state_dict(monitors[distributed.rank()])
        code = 1
        try:
            with interrupts() as interrupted:
                first, is_told = trainer.env_steps, False

                def should_stop() -> bool:  # late or not, one window is learnt from
                    nonlocal is_told
                    if interrupted and reporter is not None and not is_told:
                        reporter.note("stopping, with a checkpoint")
                        is_told = True
                    is_late = trainer.env_steps > first and time.monotonic() - begin >= max_seconds
                    return bool(interrupted) or is_late or monitor.is_stopped

                environment.stop_waiting_when(lambda: bool(interrupted))
                try:
                    trainer.run(monitor.report, should_stop)
                except (EnvironmentFailure, KeyboardInterrupt):
                    # What was learnt until then is sound; but a native environment has gone on from there.
                    nothing_learnt = trainer.env_steps == 0 and not interrupted
                    if reporter is None or environment.is_native or distributed.world_size() > 1 or nothing_learnt:
                        raise
                    monitor.save()
                    if not interrupted:
                        reporter.note(f"{run_dir} has a checkpoint of {trainer.env_steps:,} steps, to resume from")
                        raise
            monitor.finish()
            was_interrupted = distributed.any_of(bool(interrupted))
            if leads:  # the others are done, and wait for nothing more
                if trainer.env_steps >= config.steps and not was_interrupted:
                    with interrupts() as interrupted:
                        is_interrupted = lambda: bool(interrupted)  # noqa: E731
                        monitor.choose(partial(compare_held_out, config, is_interrupted), is_interrupted)
                    was_interrupted = bool(interrupted)
                else:
                    monitor.choose_early()
                monitor.draw()
            code = 130 if was_interrupted else 0
        except BaseException:
            with suppress(MerlinError):
                monitor.save_best()  # also of a run that did not stay sound
            raise
        finally:
            if tracker is not None:
                tracker.close(code)
    newest = monitor.newest
    mean, episodes = newest.mean().item(), len(newest)
    return Summary(trainer.env_steps, monitor.wall_seconds(), mean, was_interrupted, run_dir, episodes)


def _draw(run_dir: Path, environment: Environment) -> Image:
    """Return the learning curve of a run that may go on."""
    from merlin.runs.learning_curve import plot_learning_curve  # matplotlib takes a second to import

    return plot_learning_curve([run_dir], reference_scores=environment.scores)


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
    """Collect SIGINT, SIGTERM and SIGHUP in a list instead of raising; one after the first second ends the process.

    Earlier ones are the same request: `timeout` sends it to a process and to its group.
    """
    caught: list[int] = []
    since = None
    previous: dict[int, Callable | int | None] = {}

    def note(number: int, _: Any) -> None:
        nonlocal since
        since = since or time.monotonic()
        caught.append(number)
        if time.monotonic() > since + 1:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

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
