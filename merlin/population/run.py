"""The run of a population as a function: from a configuration to trained agents and a directory.

RUN_DIR/population.json       the whole configuration
        population.jsonl      one object at the start, per deal, report of ratings, evolution and past self that is
                              kept; `env_steps` says when
        population.png        ratings, lineage and hyperparameters over time; drawn whenever training stops
        metrics.jsonl         one object per report of the population
        checkpoints/          all agents, optimisers, hyperparameters, ratings, games, random choices: as one, or none
        agents/00/ ...        each a run directory: what `merlin evaluate`, `watch` and `analyse` take
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

from merlin import distributed
from merlin.errors import MerlinError, describe, option
from merlin.population.chronicle import Chronicle, all_weights
from merlin.population.directory import AGENTS, CONFIG, agent_dir, write_population
from merlin.population.population import Population, PopulationConfig, Round, member_seed
from merlin.precision import restoring_torch
from merlin.runs.directory import check_free, unwritable
from merlin.runs.lock import alone_in
from merlin.runs.presets import RunConfig
from merlin.runs.run import Summary, build_agent, build_environment, interrupts, resolve_device
from merlin.runs.trackers import summary_writer
from merlin.training import checkpoint
from merlin.training.trainer import check_transport


@restoring_torch()
def train(
    config: RunConfig,
    population: PopulationConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    wandb: str = "disabled",
    tensorboard: bool = False,
    max_seconds: float = math.inf,
    on_start: Callable[[], object] = lambda: None,
    stream: TextIOBase | TextIO | None = None,
) -> Summary:
    """Train a population as configured and leave a complete directory behind, also when interrupted.

    `config.steps` counts the steps of all players. What the summary has of returns is the best agent's.

    Started by torchrun, each process trains some of the agents; the first of them reports and writes, and what it
    returns counts. They may be of another number when the population goes on.

    Args:
        resume: Go on from the last checkpoint of `run_dir`, bit for bit where the task's state can be saved.
        wandb: auto, online, offline or disabled: one run of it for the population, with all that its agents report.
        tensorboard: Write files for TensorBoard, in RUN_DIR/tensorboard.
        max_seconds: Stop after this long, but not before the first window is learnt from.
        on_start: Is called once players, agents and directory are made, in the process that reports.
        stream: Where progress is shown; standard error unless told.
    """
    if config.curriculum.values:
        raise MerlinError("A population trains on one task, but a curriculum of several came: leave out curriculum.")
    if config.training.evaluation_steps is not None and not resume:
        raise MerlinError(
            "A population is rated by its games and not evaluated in training, so training.evaluation_steps must be "
            f"none, but is {config.training.evaluation_steps}: leave it out."
        )
    if tensorboard:
        summary_writer()  # without which no directory is made
    with distributed.joined(resolve_device(config.device)):
        tracked = (wandb, tensorboard)
        return _train(config, population, Path(run_dir).absolute(), resume, tracked, max_seconds, stream, on_start)


def _train(
    config: RunConfig,
    population: PopulationConfig,
    run_dir: Path,
    resume: bool,
    tracked: tuple[str, bool],
    max_seconds: float,
    stream: TextIOBase | TextIO | None,
    on_start: Callable[[], object],
) -> Summary:
    begin, leads = time.monotonic(), distributed.rank() == 0
    notes = [sentence] if (sentence := config.training.set_torch(resolve_device(config.device))) else []
    with distributed.alone():  # all processes play all games
        games = build_environment(config)
    with games as environment, ExitStack() as stack:
        configs = [
            replace(config, seed=member_seed(config.seed, index), steps=max(1, config.steps // population.agents))
            for index in range(population.agents)
        ]
        agents = [build_agent(own, environment) for own in configs]
        if not resume:
            check_transport(agents[0], config.training)
        trained = Population(
            agents, environment, config.training, population, total_steps=config.steps, seed=config.seed
        )
        if leads:
            _claim(run_dir, resume, notes, stack)
        distributed.any_of(False)  # nobody reads before that
        before, reported, chronicle = 0.0, None, None
        if resume and checkpoint.steps(run_dir):
            rest = _load(run_dir, trained, notes.append)
            before, reported = rest["wall_seconds"], rest["chronicle"]
            notes.append(f"going on after {trained.env_steps:,} steps")
        if leads:
            write_population(config, population, run_dir)
            chronicle = Chronicle(configs, run_dir, trained, before - begin, stream, reported, stack)
            chronicle.track(*tracked, config, population)
            on_start()
            for sentence in (*_describe(config, trained), *notes):
                chronicle.note(sentence)

        def report(happened: Round) -> None:
            if chronicle is not None:
                chronicle.report(happened)
            if distributed.any_of(chronicle is not None and chronicle.is_to_save):
                state = trained.state_dict()  # of all processes
                if chronicle is not None:
                    chronicle.save(state)

        with interrupts() as interrupted:
            first = trained.env_steps

            def should_stop() -> bool:
                return bool(interrupted) or (trained.env_steps > first and time.monotonic() - begin >= max_seconds)

            environment.stop_waiting_when(lambda: bool(interrupted))
            trained.run(report, should_stop)
        state, was_interrupted = trained.state_dict(), distributed.any_of(bool(interrupted))
        if chronicle is not None:
            chronicle.finish(state)
            chronicle.tracker.close(130 if was_interrupted else 0)
    if chronicle is None:
        return Summary(trained.env_steps, 0.0, math.nan, was_interrupted, run_dir)
    best = agent_dir(run_dir, chronicle.best_agent)
    return Summary(trained.env_steps, chronicle.wall_seconds(), chronicle.last_return, was_interrupted, best)


def _claim(run_dir: Path, resume: bool, notes: list[str], stack: ExitStack) -> None:
    """Make the directory, and keep other processes from it."""
    holds = (run_dir / CONFIG).exists() or bool(checkpoint.steps(run_dir))
    if resume and not holds:
        raise MerlinError(f"Only a population can be resumed, but {run_dir} holds none: give one's directory.")
    if not resume and (holds or (run_dir / "config.json").exists()):
        raise MerlinError(
            f"{run_dir} holds a run already: continue it with {option('resume', run_dir)}, or choose another "
            f"{option('run-dir')}."
        )
    if not resume:
        check_free(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(run_dir, error) from error
    stack.enter_context(alone_in(run_dir, notes.append))
    for directory in (run_dir, *(run_dir / AGENTS).glob("*")):
        checkpoint.tidy(directory)


def _load(run_dir: Path, population: Population, note: Callable[[str], object]) -> dict[str, Any]:
    """Let a population go on from its last intact checkpoint, and return all of that but the weights."""
    step, rest = checkpoint.load_latest(run_dir, all_weights(population), note)
    try:
        goes_on = population.load_state_dict(rest["population"])
        float(rest["wall_seconds"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise MerlinError(
            f"The checkpoint of {step:,} steps in {run_dir} must hold a population, but holds something else "
            f"({describe(error)}): resume with the settings that it began with."
        ) from error
    if not goes_on:
        note("the state of the task cannot be gone on from: its games begin anew, with a new seed")
    distributed.any_of(False)  # all have read
    if distributed.rank() > 0:
        return rest
    checkpoint.set_aside(run_dir, beyond=step)
    for index in range(len(population.members)):
        checkpoint.set_aside(agent_dir(run_dir, index), beyond=step)
    return rest


def _describe(config: RunConfig, population: Population) -> list[str]:
    """Return what the population is, in sentences."""
    players, count = population.players, len(population.members)
    events = population.members[0].hyperparameters.rewards
    rewards = "the task" if events is None else f"{len(events)} events"
    evolves = (
        f"evolve after {population.config.burn_in_games} games at less than "
        f"{population.config.evolution_threshold:.0%} to win"
        if population.config.evolves
        else "do not evolve"
    )
    return [
        f"{count} agents in {players.num_games} games of {players.num_seats}, rewarded by {rewards}; they {evolves}"
    ]
