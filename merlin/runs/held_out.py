"""Held-out episodes of a run's task: what `merlin evaluate` plays."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from merlin.agents import Agent
from merlin.agents.memory_ablation import ABLATIONS, MemoryAblation
from merlin.environments.make import find_spec
from merlin.environments.passed import find_instance
from merlin.errors import MerlinError, option, quote
from merlin.precision import restoring_torch
from merlin.ranges import COUNT, SEED, check
from merlin.runs.agent_spaces import check_same_spaces
from merlin.runs.build import build_environment, build_judged
from merlin.runs.presets import RunConfig
from merlin.training.evaluation import HELD_OUT_SEED, Evaluation, evaluate, standard_error
from merlin.training.random_play import FEWEST_EPISODES, random_returns

Shown = Literal["own", "zeroed", "frozen", "shuffled"]
"""Which memory an agent is shown."""


class Reference(NamedTuple):
    """The mean return of a reference policy."""

    mean: float
    episodes: int | None = None
    """Episodes that were played for it; None where the task knows it."""
    error: float = math.nan
    """Its standard error; NaN where the task knows it."""


@restoring_torch()
def play_held_out(
    agent: Agent,
    config: RunConfig,
    *,
    episodes: int = 100,
    seed: int | None = None,
    greedy: bool = False,
    num_envs: int | None = None,
    memory: Shown = "own",
    max_steps: int | None = None,
    as_told: bool = False,
    tell: Callable[[Evaluation], object] | None = None,
    note: Callable[[str], object] = lambda _: None,
    plays_at_random: bool = False,
) -> tuple[dict[str, Any], dict[str, Reference]]:
    """Return an agent's scores in held-out episodes, and the scores of reference policies where the task knows them.

    Args:
        config: Of the run, with the device that the agent is on and the task that is played.
        seed: Chooses the episodes; the run's unless told.
        num_envs: Environments that are stepped together; the run's unless told, or those that are there already.
        memory: What the agent is shown.
        as_told: Play the task with the settings of `config`, also where an agent would play against itself.
        tell: Is called after each step, to show progress.
        note: Is told of the bots that it plays against instead.
        plays_at_random: Play random episodes too, where the task does not know what they earn: as many as end within a
            second, or a tenth of the time that the agent's took, though no more than the agent's, or 30.

    Raises:
        MerlinError: The environment has other spaces than the agent's, or a number makes no sense.
    """
    if memory not in ("own", *ABLATIONS):
        raise MerlinError(f"The memory must be own, {', '.join(ABLATIONS)}, but is {quote(memory)}: choose one.")
    check("episodes", episodes, Annotated[int, COUNT])
    check("num_envs", num_envs, Annotated[int | None, COUNT])
    check("seed", seed, Annotated[int | None, SEED])
    seed = config.seed if seed is None else seed
    instance = find_instance(find_spec(config.task))  # which is played as it is
    num_envs = min(num_envs or (config.num_envs if instance is None else instance.num_envs), episodes)
    config.training.set_torch()
    build = build_environment if as_told else partial(build_judged, note=note)
    with build(config, num_envs) as environment:
        if memory == "shuffled" and environment.num_envs < 2:
            raise MerlinError(
                f"{option('memory', 'shuffled')} needs at least 2 environments to shuffle between: raise "
                f"{option('num-envs')} or {option('episodes')}"
            )
        check_same_spaces(agent, environment, config.task, "the agent was trained with")
        begin = time.monotonic()
        result = evaluate(
            agent if memory == "own" else MemoryAblation(agent, memory),
            environment,
            episodes=episodes,
            seed=seed + HELD_OUT_SEED,
            greedy=greedy,
            skip=1 if memory == "frozen" else 0,
            max_steps=max_steps,
            tell=tell,
        )
        references = {name: Reference(score) for name, score in environment.scores.items()}
        if plays_at_random and result["episodes"] and "random" not in references:
            seconds = max(1.0, 0.1 * (time.monotonic() - begin))
            most = max(FEWEST_EPISODES, result["episodes"])
            returns = random_returns(environment, seed + HELD_OUT_SEED, seconds, most)
            if returns:
                error = standard_error(statistics.pstdev(returns), len(returns))
                references = {"random": Reference(statistics.fmean(returns), len(returns), error), **references}
        return result, references
