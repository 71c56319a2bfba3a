"""A population: agents that learn from the games they play with and against one another, are rated, and evolve."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.population.arena import Arena, Results
from merlin.population.evolution import Copy, EvolutionConfig, Hyperparameters, drawn, evolve, perturbed
from merlin.population.games import players_of
from merlin.population.matchmaking import Matchmaker
from merlin.population.member import Member
from merlin.population.ratings import INITIAL_RATING, updated
from merlin.ranges import Range, above
from merlin.training.inspection import Inspection
from merlin.training.rollout import Episodes
from merlin.training.trainer import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PopulationConfig(EvolutionConfig):
    """A population of agents, and how it evolves."""

    agents: Annotated[int, Range(1, 1000)] = 4
    """P, agents; the paper's 30."""
    rating_step: Annotated[float, above(0, 1000)] = 16.0
    """K, points that a game between equals moves half of: 16 to 32 for thousands of games, 2 for 100,000."""
    internal_rewards: bool = True
    """Each agent learns from rewards of its own for the events of a game, which evolve, and not from the task's reward,
    where the task tells of events."""

    bots: str | None = None
    """A team of the task's bots, such as mixed, that some games are played against; it is rated too."""
    bot_games: Annotated[float, Range(0, 1)] = 0.25
    """The part of games in which bots take the seats of one team, if there are any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.agents == 1 and self.evolves:
            raise MerlinError(
                "A population evolves by copies of other agents, so agents must be at least 2, but are 1: take more, "
                "or set population.evolves=false."
            )


class Evolution(NamedTuple):
    """An agent that became another's copy."""

    copy: Copy
    before: Hyperparameters
    after: Hyperparameters
    rating_before: float
    rating_after: float


class Round(NamedTuple):
    """What came of a window: of each agent that played, by its index, and of all."""

    losses: dict[int, dict[str, Tensor]]
    diverged: list[int]
    """Agents whose gradients were not finite, and that learnt nothing of the rest of the window."""
    episodes: dict[int, Episodes]
    results: Results
    evolutions: list[Evolution]
    seats: Int64[Tensor, "L N"]
    """Of the games that were dealt after it."""


def member_seed(seed: int, index: int) -> int:
    """Return the seed of an agent, from that of its population, which is the first agent's."""
    return seed if index == 0 else int(np.random.SeedSequence((seed, index)).generate_state(1)[0] >> 1)


class Population:
    """Agents and their games.

    Where there is one agent, which does not evolve, has no internal rewards and no other start than its settings, it
    learns what `Trainer` learns.

    Args:
        agents: All alike, each with weights of its own.
        total_steps: Player steps of all agents, over which schedules run and at which training ends.
        seed: Of the environment and of every random choice.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        environment: Environment,
        training: TrainingConfig,
        config: PopulationConfig,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        self.config, self.training, self.total_steps = config, training, total_steps
        self.environment, self.players = environment, players_of(environment)
        self.generator = torch.Generator().manual_seed(member_seed(seed, len(agents)))  # of deals and evolutions
        self.members = [
            Member(agent, training, environment.device, member_seed(seed, index)) for index, agent in enumerate(agents)
        ]
        signs = self.players.event_signs if config.internal_rewards else None
        for member in self.members:
            member.adopt(drawn(member.hyperparameters, signs, config.initial_spread, self.generator))
        self._seat_bots()
        players = len(agents) + (config.bots is not None)
        self.ratings: Float64[Tensor, "P"] = torch.full((players,), INITIAL_RATING, dtype=torch.float64)
        self.games = [0] * len(agents)  # since the last copy
        self.games_played, self.env_steps = 0, 0
        self.matchmaker = Matchmaker(len(agents), self.players.num_seats, self.generator)
        self.arena = Arena(environment, self.players, self.members, seed, training.staggered_episodes)
        self.inspection = Inspection(environment)
        self.seconds = {"rollout": 0.0, "learning": 0.0}
        self._deal()

    def update(self) -> Round:
        """Play a window, learn from it, rate, evolve, and deal the games that begin anew."""
        begin = time.perf_counter()
        windows, results = self.arena.collect(self.training.unroll_length)
        middle = time.perf_counter()
        left = max(0.0, 1.0 - self.env_steps / self.total_steps)
        losses: dict[int, dict[str, Tensor]] = {}
        diverged: list[int] = []
        for index, (window, _) in windows.items():
            member = self.members[index]
            self.inspection.check(window.unroll)
            try:
                losses[index] = member.update(window, left)
            except FloatingPointError as error:
                if not self.config.evolves:
                    raise MerlinError(
                        f"Gradients must be finite, but those of agent {index} after {self.env_steps} steps are not, "
                        f"and {self.inspection.blame(window.unroll)}."
                    ) from error
                losses[index] = {}  # an agent that cannot learn will lose, and copy another
                diverged.append(index)
            steps = int(window.unroll.is_valid.sum())
            member.env_steps += steps
            self.env_steps += steps
        self.seconds["rollout"] += middle - begin
        self.seconds["learning"] += time.perf_counter() - middle
        evolutions = self._rate(results) if len(results.scores) else []
        episodes = {index: ended for index, (_, ended) in windows.items()}
        return Round(losses, diverged, episodes, results, evolutions, self._deal())

    def run(self, report: Callable[[Round], None], should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train until `total_steps`, or until `should_stop` says so, calling `report` after each window."""
        while self.env_steps < self.total_steps and not should_stop():
            report(self.update())

    def _rate(self, results: Results) -> list[Evolution]:
        """Rate agents by games that ended, and let them evolve."""
        self.ratings = updated(self.ratings, results.teams, results.scores, self.config.rating_step)
        self.games_played += len(results.scores)
        for game in results.teams.flatten(1).tolist():
            for agent in set(game) - {len(self.members)}:
                self.games[agent] += 1
        evolutions: list[Evolution] = []
        if self.config.evolves:
            ratings, count = self.ratings, len(self.members)
            evolved = evolve(  # which gives a copy its model's rating
                ratings[:count],
                self.games,
                self.config,
                self.generator,
                lambda made: evolutions.append(self._copy(made)),
            )
            self.ratings = torch.cat([evolved, ratings[count:]])
            evolutions = [
                x._replace(rating_before=float(ratings[x.copy.agent]), rating_after=float(self.ratings[x.copy.agent]))
                for x in evolutions
            ]
        return evolutions

    def _copy(self, made: Copy) -> Evolution:
        member, model = self.members[made.agent], self.members[made.model]
        before = member.hyperparameters
        member.become(model)
        member.adopt(perturbed(model.hyperparameters, self.config, self.generator))
        self.arena.replace(member)
        self.games[made.agent] = 0
        return Evolution(made, before, member.hyperparameters, 0.0, 0.0)

    def _deal(self) -> Int64[Tensor, "L N"]:
        """Deal the seats of games that begin, and return them."""
        games = self.arena.beginning
        if not len(games):
            return torch.zeros(0, self.players.num_seats, dtype=torch.int64)
        count = len(self.members)
        seats = self.matchmaker.deal(len(games), self.ratings[:count])
        if self.config.bots is not None:
            draws = torch.rand(2, len(games), generator=self.generator)
            is_theirs = torch.arange(2) == (draws[1] < 0.5).unsqueeze(1)  # game, team
            is_theirs &= (draws[0] < self.config.bot_games).unsqueeze(1)
            seats = seats.masked_fill(is_theirs.repeat_interleave(seats.shape[1] // 2, 1), count)
        self.arena.deal(games, seats)
        return seats

    def _seat_bots(self) -> None:
        """Have bots ready for every seat, if they are to play."""
        name, batch = self.config.bots, self.environment.vector_env.unwrapped
        teams = getattr(batch, "bot_teams", {})
        if name is None:
            return
        if name not in teams:
            known = ", ".join(teams) or "there are none"
            raise MerlinError(
                f"population.bots must be bots of {self.environment.task} ({known}), but is {name!r}: take some of "
                "these, or none."
            )
        batch.seat_bots((*teams[name], *teams[name]))  # pyright: ignore[reportAttributeAccessIssue]

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the agents' weights, as plain containers of tensors and numbers."""
        return {
            "env_steps": self.env_steps,
            "games_played": self.games_played,
            "games": list(self.games),
            "ratings": self.ratings,
            "generator": self.generator.get_state(),
            "matchmaker": self.matchmaker.state_dict(),
            "members": [member.state_dict() for member in self.members],
            "arena": self.arena.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a `state_dict`, and return whether the games go on too; else they begin anew."""
        goes_on = state["arena"] is not None
        self.env_steps, self.games_played, self.games = state["env_steps"], state["games_played"], list(state["games"])
        self.ratings = state["ratings"].cpu()
        self.generator.set_state(state["generator"].cpu())
        self.matchmaker.load_state_dict(state["matchmaker"])
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved, goes_on)
        if goes_on:
            self.arena.load_state_dict(state["arena"])
        else:
            self.arena.restart(int(torch.randint(2**31, (), generator=self.generator)))
            self._deal()
        return goes_on
