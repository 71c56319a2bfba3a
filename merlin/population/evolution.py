"""How a population evolves: who copies whom, and what changes in a copy. Jaderberg et al. 2019, arXiv:1807.01281.

At the end of games, agents look in random order at another one each, once they have played `burn_in_games` since they
last copied. An agent that would beat the other with a probability below `threshold` becomes a copy of it: weights,
optimiser, internal rewards, hyperparameters and rating. The copy's numbers are then perturbed, each with a probability
of its own, by a factor drawn log-uniformly; τ, the steps between ticks of an agent with two timescales, is drawn anew.

A factor and its inverse are equally likely where `perturbation_low` · `perturbation_high` is 1. Perturbation alone then
moves no number up or down. The paper draws from 0.8 to 1.2 uniformly; from 0.5 to 2 that would raise each number by
17% per perturbation, in the geometric mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from merlin.population.ratings import win_probability
from merlin.ranges import Range, Settings, above

RATES = ("learning_rate", "policy_learning_rate")
"""Settings of training that evolve, where they are set."""
REWARD_MAGNITUDES = (0.1, 1.0)
"""Between which internal rewards begin, log-uniformly."""
TICK_STEPS = (5, 20)
"""Between which τ is drawn, both included."""


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig(Settings):
    """How a population evolves. The paper's values are of 30 agents that play 450,000 games each."""

    evolves: bool = True
    """Whether agents are copied at all."""
    burn_in_games: Annotated[int, Range(1, 1_000_000_000)] = 64
    """Games of an agent between two copies; the paper's 1,000."""
    evolution_threshold: Annotated[float, Range(0, 1)] = 0.3
    """An agent copies another one if it would beat it with a probability below this: 0.3 is 147 points."""
    perturbation_probability: Annotated[float, Range(0, 1)] = 0.3
    """With which each number of a copy changes; the paper's 0.05, with which in a small population nothing moves."""
    perturbation_low: Annotated[float, above(0, 1)] = 0.5
    """The least factor that a number changes by; the paper's 0.8. Factors are log-uniform."""
    perturbation_high: Annotated[float, Range(1, 100)] = 2.0
    """The largest; the paper's 1.2."""
    initial_spread: Annotated[float, Range(1, 1000)] = 2.0
    """Learning rates and costs begin at their settings times a factor from 1 / `initial_spread` to it, drawn
    log-uniformly for each agent."""


class Hyperparameters(NamedTuple):
    """What evolves of an agent beside its weights: a value, of what the agent has alone."""

    rates: dict[str, float]
    """Those of `RATES` that are set."""
    costs: dict[str, float]
    """Numbers of the agent that no shape depends on, by their names in its configuration."""
    tick_steps: int | None
    """τ, of an agent with two timescales."""
    rewards: tuple[float, ...] | None
    """Of each event of a game, in place of the task's reward; None where that is what is learnt from."""


def drawn(
    settings: Hyperparameters, event_signs: Sequence[int] | None, spread: float, generator: torch.Generator
) -> Hyperparameters:
    """Return the hyperparameters that an agent begins with.

    Args:
        settings: As the run's configuration has them; rewards are those that the task is given, if it is.
        event_signs: 1 of events that are welcome and −1 of others; None leaves the task's reward.
        spread: `initial_spread`.
        generator: Nothing is drawn from it for a spread of 1 and an agent that has neither ticks nor internal rewards.
    """

    def spread_out(number: float) -> float:
        return number if spread == 1 else number * _log_uniform(1 / spread, spread, generator)

    if settings.rewards is not None:
        rewards = tuple(map(spread_out, settings.rewards))
    else:
        rewards = tuple(sign * _log_uniform(*REWARD_MAGNITUDES, generator) for sign in event_signs or ()) or None
    return Hyperparameters(
        {name: spread_out(x) for name, x in settings.rates.items()},
        {name: spread_out(x) for name, x in settings.costs.items()},
        None if settings.tick_steps is None else _tick_steps(generator),
        rewards,
    )


def perturbed(settings: Hyperparameters, config: EvolutionConfig, generator: torch.Generator) -> Hyperparameters:
    """Return the hyperparameters of a copy. Signs of internal rewards never change, and what is 0 stays 0."""

    def maybe(number: float) -> float:
        if _uniform(0.0, 1.0, generator) >= config.perturbation_probability:
            return number
        return number * _log_uniform(config.perturbation_low, config.perturbation_high, generator)

    return Hyperparameters(
        {name: maybe(x) for name, x in settings.rates.items()},
        {name: maybe(x) for name, x in settings.costs.items()},
        None if settings.tick_steps is None else _tick_steps(generator),
        settings.rewards and tuple(map(maybe, settings.rewards)),
    )


class Copy(NamedTuple):
    """An evolution: agent `agent` becomes a copy of `model`, which it would have beaten with this probability."""

    agent: int
    model: int
    win_probability: float


def evolve(
    ratings: Float64[Tensor, "P"],
    games: Mapping[int, int] | Sequence[int],
    config: EvolutionConfig,
    generator: torch.Generator,
    copy: Callable[[Copy], None],
) -> Float64[Tensor, "P"]:
    """Let agents copy others, and return the ratings after that.

    Args:
        games: Of each agent since it last copied; `copy` is to set the agent's to 0.
        copy: Makes the copy, before the next agent looks at others.
    """
    ratings, count = ratings.clone(), len(ratings)
    for agent in torch.randperm(count, generator=generator).tolist() if count > 1 else ():
        if games[agent] < config.burn_in_games:
            continue
        model = int(torch.randint(count - 1, (), generator=generator))
        model += model >= agent
        chance = float(win_probability(ratings[agent], ratings[model]))
        if chance < config.evolution_threshold:
            ratings[agent] = ratings[model]
            copy(Copy(agent, model, chance))
    return ratings


def _tick_steps(generator: torch.Generator) -> int:
    return int(torch.randint(TICK_STEPS[0], TICK_STEPS[1] + 1, (), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    return math.exp(_uniform(math.log(low), math.log(high), generator))
