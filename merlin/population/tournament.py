"""A tournament: every pair of agents and bots plays, two copies in each team, and ratings are fitted to all games.

Each map is played twice, with sides exchanged. The random bot has a rating of 500, as in Jaderberg et al. 2019.

Axes: G games, R rows of a team, M members of a team.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.agents.ftw import internal_reward
from merlin.environments.batch import Environment
from merlin.errors import MerlinError, obstacle, option
from merlin.population.directory import AGENTS, CONFIG
from merlin.population.games import Players, players_of
from merlin.population.ratings import ANCHOR_RATING, fit_with_intervals
from merlin.precision import restoring_torch
from merlin.runs.presets import RunConfig
from merlin.runs.run import build_environment, load_agent, load_config

RANDOM = "random"
"""The bot that ratings are anchored to."""
FILES = "standings.csv", "points.csv", "points.png"
OF_PLAYERS = ("rewards", "opponents", "team_mate")
"""Settings of a game that are of one player, or of who else plays."""
FEWEST_GAMES = 20
"""Of an entrant whose rating has an interval."""


class Entrant(NamedTuple):
    """One who takes part: an agent, or bots in the seats of a team."""

    name: str
    agent: Agent | None = None
    reward_weights: Float[Tensor, "V"] | None = None
    """Of an agent that learnt from rewards of its own, which it is shown."""
    bots: tuple[str, ...] = ()


class Standing(NamedTuple):
    """How an entrant did; shares of its games.

    The bounds of the rating's 95% interval are NaN of the anchor, whose rating is given, and of an entrant with fewer
    than `FEWEST_GAMES` games, or whose games against each other one all ended alike: drawing them again says nothing.
    """

    name: str
    rating: float
    rating_low: float
    rating_high: float
    games: int
    wins: float
    draws: float
    losses: float


class Match(NamedTuple):
    """Games of two entrants, by their indices; `scores` are those of the first: 1, 1/2 or 0."""

    first: int
    second: int
    scores: Float64[Tensor, "G"]


class Tournament(NamedTuple):
    """How all did, best first, and the points of each (row) against each other (column), in the same order."""

    standings: list[Standing]
    points: Float64[np.ndarray, "P P"]


@torch.no_grad()
def play_match(
    environment: Environment, players: Players, sides: Sequence[Entrant], seed: int, generator: torch.Generator
) -> Float64[Tensor, "G"]:
    """Return the scores of the first side in one game of each of the batch.

    Args:
        seed: Of the maps.
        generator: Of what agents draw.
    """
    batch: Any = environment.vector_env.unwrapped
    seats = players.rows.shape[2]
    has_bots = any(side.bots for side in sides)
    if has_bots:
        batch.seat_bots(tuple(name for side in sides for name in side.bots or (None,) * seats))
    timestep = environment.reset(seed)
    teams = [players.rows[:, side].flatten() for side in (0, 1)]
    states = [None if x.agent is None else x.agent.initial_state(len(r)) for x, r in zip(sides, teams, strict=True)]
    scores = torch.full((players.num_games,), torch.nan, device=environment.device)
    returns, first_rows = torch.zeros_like(timestep.reward), players.rows[:, 0, 0]
    events: Tensor | None = None
    while bool(scores.isnan().any()):
        action = batch.bot_actions(batch.state).flatten(0, 1) if has_bots else None
        for side, (entrant, rows) in enumerate(zip(sides, teams, strict=True)):
            if entrant.agent is None:
                continue
            reward = timestep.reward.index_select(0, rows)
            if entrant.reward_weights is not None and events is not None:
                reward = internal_reward(events.index_select(0, rows), entrant.reward_weights)
            observation = {name: x.index_select(0, rows) for name, x in timestep.observation.items()}
            is_first = timestep.is_first.index_select(0, rows)
            output, states[side] = entrant.agent.step(observation, states[side], is_first, reward, generator=generator)
            if action is None:
                action = output.action.new_zeros(environment.num_envs, *output.action.shape[1:])
            action = action.index_copy(0, rows, output.action)
        assert action is not None, "somebody plays"
        timestep, events = environment.step(action), environment.events
        returns = returns + timestep.reward
        lead = returns[players.rows].sum(2)
        told = timestep.success[first_rows]
        result = torch.where(told.isnan(), (1 + (lead[:, 0] - lead[:, 1]).sign()) / 2, told)
        has_ended = timestep.is_end[first_rows] & scores.isnan()
        scores = torch.where(has_ended, result, scores)
    return scores.double().cpu()


def play_all(
    environment: Environment,
    entrants: Sequence[Entrant],
    seed: int,
    tell: Callable[[int, int], object] = lambda done, of: None,
) -> list[Match]:
    """Return the games of every pair: two for each game of the batch, with sides exchanged on the same maps."""
    players, pairs = players_of(environment), list(combinations(range(len(entrants)), 2))
    generator = torch.Generator(environment.device).manual_seed(seed)
    matches = []
    for done, (first, second) in enumerate(pairs):
        tell(done, len(pairs))
        one, other = entrants[first], entrants[second]
        there = play_match(environment, players, (one, other), seed, generator)
        back = play_match(environment, players, (other, one), seed, generator)
        matches.append(Match(first, second, torch.cat([there, 1 - back])))
    return matches


def standings(names: Sequence[str], matches: Sequence[Match], anchor: int, seed: int) -> list[Standing]:
    """Return how all did, best first, with ratings fitted to all games: see `merlin.population.ratings.fit`."""
    teams = torch.cat([torch.tensor([[[m.first], [m.second]]]).expand(len(m.scores), 2, 1) for m in matches])
    scores = torch.cat([match.scores for match in matches])
    fitted = fit_with_intervals(teams, scores, len(names), anchor, torch.Generator().manual_seed(seed))
    found = []
    for index, name in enumerate(names):
        played = [m.scores if m.first == index else 1 - m.scores for m in matches if index in (m.first, m.second)]
        own = torch.cat(played)
        shares = ((own == x).double().mean().item() for x in (1, 0.5, 0))
        rating, low, high = (float(x[index]) for x in fitted)
        differs = any(bool((scores != scores[0]).any()) for scores in played)
        if index == anchor or len(own) < FEWEST_GAMES or not differs:
            low = high = math.nan
        found.append(Standing(name, rating, low, high, len(own), *shares))
    return sorted(found, key=lambda x: -x.rating)


def pairwise_points(matches: Sequence[Match], num_entrants: int) -> Float64[np.ndarray, "P P"]:
    """Return the mean points of each entrant (row) against each other (column), NaN of itself."""
    points = np.full((num_entrants, num_entrants), np.nan)
    for match in matches:
        points[match.first, match.second] = share = match.scores.mean().item()
        points[match.second, match.first] = 1 - share
    return points


def write(found: Tournament, out: Path, title: str) -> None:
    """Write `standings.csv`, `points.csv`, of each (row) against each other (column), and `points.png` of the same.

    Raises:
        MerlinError: The directory cannot be written.
    """
    from merlin.population.figures import plot_points  # matplotlib takes a second to import

    names = [x.name for x in found.standings]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / FILES[0], "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(Standing._fields)
            table.writerows([_blank(x) for x in standing] for standing in found.standings)
        with open(out / FILES[1], "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["", *names])
            for name, row in zip(names, found.points, strict=True):
                table.writerow([name, *map(_blank, row)])
        plot_points(names, found.points, out / FILES[2], title)
    except OSError as error:
        raise MerlinError(
            f"The directory {out} must be writable, but {obstacle(error)}: choose another {option('out')}."
        ) from error


def check_free(out: Path, names: Sequence[str], games: int) -> None:
    """Refuse a directory with results of other entrants, or of more games of a pair."""
    if not any((out / name).exists() for name in FILES):
        return
    try:
        with open(out / FILES[0], newline="", encoding="utf-8") as file:
            before = {row["name"]: int(row["games"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    held = "other entrants"
    if {Path(name).absolute() for name in before} == {Path(name).absolute() for name in names}:
        if (most := max(before.values()) // (len(names) - 1)) <= games:
            return
        held = f"{most} games of each pair"
    raise MerlinError(f"{out} holds results of {held}, which are not written over: choose another {option('out')}.")


def _blank(value: Any) -> Any:
    """Return a value as a table holds it, NaN as nothing."""
    return "" if isinstance(value, float) and math.isnan(value) else value


def run_dirs_of(path: Path) -> list[Path]:
    """Return the run directories that a directory stands for: its own, or those of a population's agents."""
    return sorted((path / AGENTS).glob("*")) if (path / CONFIG).exists() else [path]


@restoring_torch()
def tournament(
    names: Sequence[str],
    *,
    games: int = 256,
    seed: int = 1,
    device: str | None = None,
    checkpoint: str = "best",
    env_kwargs: Mapping[str, Any] | None = None,
    tell: Callable[[int, int], object] = lambda done, of: None,
    check: Callable[[Sequence[str]], object] = lambda names: None,
) -> Tournament:
    """Return how agents and bots do against one another.

    Args:
        names: Run directories, populations' directories, and names of the task's bots; a random bot always plays.
        games: Of each pair, an even number.
        checkpoint: Which weights, best or last.
        env_kwargs: Settings of the task that are other than those of the agents' training.
        tell: Is called with the number of pairs that have played, and of all.
        check: Is called with the names of all who will play, before they do.

    Raises:
        MerlinError: There is no agent, they play different games, or a name is neither a directory nor a bot's.
    """
    if games < 2 or games % 2:
        raise MerlinError(
            f"Each map is played twice, with sides exchanged, so the games of a pair must be even, but are {games}: "
            f"take {games + 1}."
        )
    run_dirs = [directory for name in names if Path(name).is_dir() for directory in run_dirs_of(Path(name))]
    run_dirs = list(dict.fromkeys(run_dirs))  # an agent may be named twice, as by itself and in its population
    if not run_dirs:
        raise MerlinError(
            f"A tournament needs an agent, but {', '.join(names)} names none: give the directory of a run or of a "
            "population."
        )
    configs = [load_config(directory) for directory in run_dirs]
    first = configs[0]
    for directory, config in zip(run_dirs, configs, strict=True):
        if (config.task, _game(config)) != (first.task, _game(first)):
            raise MerlinError(
                f"Agents of a tournament play the same game, but {directory} was trained on {config.task} with "
                f"{_game(config)} and {run_dirs[0]} on {first.task} with {_game(first)}: leave one out."
            )
    settings = _game(first) | dict(env_kwargs or {})
    config = replace(first, env_kwargs=settings, device=device or first.device)
    config.training.set_torch()
    players = players_per_game(config)
    with build_environment(config, players * games // 2) as environment:
        bot_teams: Mapping[str, tuple[str, ...]] = getattr(environment.vector_env.unwrapped, "bot_teams", {})
        bots = [name for name in names if not Path(name).is_dir()]
        for name in bots:
            if name not in bot_teams:
                known = ", ".join(bot_teams) or "there are none"
                raise MerlinError(
                    f"{name!r} must be a directory or a bot of {config.task} ({known}), but is neither: correct it."
                )
        if RANDOM in bot_teams and RANDOM not in bots:
            bots.insert(0, RANDOM)
        entrants = [Entrant(name, bots=tuple(bot_teams[name])) for name in dict.fromkeys(bots)]
        event_weights = getattr(environment.vector_env.unwrapped, "event_weights", list)
        for directory, own in zip(run_dirs, configs, strict=True):
            agent = load_agent(directory, environment, replace(own, device=config.device), checkpoint)
            rewards = own.env_kwargs.get("rewards")
            weights = None if rewards is None else torch.tensor(event_weights(rewards), device=environment.device)
            entrants.append(Entrant(str(directory), agent, weights))
        if len(entrants) < 2:
            raise MerlinError(
                f"A tournament needs two who play, but {run_dirs[0]} came alone: give another run, or bots."
            )
        entrant_names = [entrant.name for entrant in entrants]
        check(entrant_names)
        anchor = entrant_names.index(RANDOM) if RANDOM in entrant_names else 0
        matches = play_all(environment, entrants, seed, tell)
        found = standings(entrant_names, matches, anchor, seed)
        order = [entrant_names.index(x.name) for x in found]
        return Tournament(found, pairwise_points(matches, len(entrants))[np.ix_(order, order)])


def players_per_game(config: RunConfig) -> int:
    """Return the number of rows that a game of a task takes."""
    with build_environment(config, config.num_envs) as environment:
        return players_of(environment).num_seats


def _game(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a task that all players share."""
    return {name: x for name, x in config.env_kwargs.items() if name not in OF_PLAYERS}


__all__ = [
    "ANCHOR_RATING",
    "FEWEST_GAMES",
    "Entrant",
    "Match",
    "Standing",
    "Tournament",
    "check_free",
    "pairwise_points",
    "play_all",
    "play_match",
    "standings",
    "tournament",
    "write",
]
