"""A population: agents that learn from the games they play with and against one another, are rated, and evolve.

Several processes, as torchrun starts them, train one population: each acts and learns for some of the agents, agent i
in process i mod n, and plays all games. All draw the same deals and evolutions. So the population is that of one
process, bit for bit, and what they exchange is actions, and the weights of agents that are copied.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from merlin import distributed
from merlin.agents.agent import Agent
from merlin.agents.learner import Window
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.population.arena import Arena, Results
from merlin.population.evolution import Copy, EvolutionConfig, Hyperparameters, drawn, evolve, perturbed
from merlin.population.games import players_of
from merlin.population.matchmaking import Matchmaker, equality
from merlin.population.member import Member
from merlin.population.participant import Participant, PastSelf
from merlin.population.ratings import INITIAL_RATING, updated
from merlin.ranges import Range, above
from merlin.states import map_state
from merlin.training.inspection import Inspection
from merlin.training.plain import is_state_of, to_plain
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
    where the task tells of events. They begin at those that the task is given, each times a factor as below, or else
    log-uniformly between 0.1 and 1."""

    bots: str | None = None
    """A team of the task's bots, such as mixed, that some games are played against; it is rated too."""
    bot_games: Annotated[float, Range(0, 1)] = 0.25
    """The part of games in which bots take the seats of one team, if there are any."""

    past_selves: Annotated[int, Range(0, 1000)] = 0
    """Places for agents as they were, which some games are played against. They are rated, and never learn or evolve.
    Once all are taken, the oldest makes room."""
    past_every: Annotated[int, Range(1, 1_000_000_000)] = 500
    """Games of the population after which another past self is kept, of each agent in turn."""
    past_games: Annotated[float, Range(0, 1)] = 0.25
    """The part of games in which a past self takes the seats of one team, once there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bots is not None and self.past_selves and self.bot_games + self.past_games > 1:
            raise MerlinError(
                "Bots and past selves play in different games, so bot_games + past_games must be at most 1, but is "
                f"{self.bot_games + self.past_games:g}: lower one of them."
            )
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
    frozen: int | None
    """Place of the past self that was kept after it, if one was."""
    seats: Int64[Tensor, "L N"]
    """Of the games that were dealt after it."""


class Learnt(NamedTuple):
    """What came of an agent's window."""

    losses: dict[str, Tensor] | None
    """None where gradients were not finite."""
    episodes: Episodes
    num_steps: int


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

    Attributes:
        ratings: Of agents, past selves and bots, in this order. An empty place of a past self has none to speak of.

    Raises:
        MerlinError: The task has no such games or bots, or several processes could not play the same ones.
    """

    ratings: Float64[Tensor, "P"]

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
        if distributed.world_size() > 1 and not environment.is_native:
            raise MerlinError(
                f"Processes that train a population play the same games, so the task must be of tensors, but "
                f"{environment.task} is not: train in one process."
            )
        count, device = len(agents), environment.device
        self.generator = torch.Generator().manual_seed(member_seed(seed, count))  # of deals and evolutions
        self.members = [Member(agent, training, device, member_seed(seed, i)) for i, agent in enumerate(agents)]
        self.past = [
            PastSelf(copy.deepcopy(agents[0]).eval(), device, member_seed(seed, count + 1 + i))
            for i in range(config.past_selves)
        ]
        self.participants: list[Participant] = [*self.members, *self.past]
        for index, participant in enumerate(self.participants):
            participant.is_here = index % distributed.world_size() == distributed.rank()
        self.num_frozen = 0
        signs, rewards = (self.players.event_signs, self.players.rewards) if config.internal_rewards else (None, None)
        for member in self.members:
            settings = member.hyperparameters._replace(rewards=rewards)
            member.adopt(drawn(settings, signs, config.initial_spread, self.generator))
        self._seat_bots()
        players = len(self.participants) + (config.bots is not None)
        self.ratings = torch.full((players,), INITIAL_RATING, dtype=torch.float64)
        self.games = [0] * count  # since the last copy
        self.games_played, self.env_steps = 0, 0
        self.matchmaker = Matchmaker(count, self.players.num_seats, self.generator)
        self.arena = Arena(environment, self.players, self.participants, seed, training.staggered_episodes)
        self.inspection = Inspection(environment)
        self.seconds = {"rollout": 0.0, "learning": 0.0}
        self._deal()

    def update(self) -> Round:
        """Play a window, learn from it, rate, evolve, and deal the games that begin anew."""
        begin = time.perf_counter()
        windows, results = self.arena.collect(self.training.unroll_length)
        middle = time.perf_counter()
        learnt = self._learn(windows)
        for index, found in learnt.items():
            self.members[index].env_steps += found.num_steps
            self.env_steps += found.num_steps
        self.seconds["rollout"] += middle - begin
        self.seconds["learning"] += time.perf_counter() - middle
        before = self.games_played
        evolutions = self._rate(results) if len(results.scores) else []
        return Round(
            losses={index: x.losses or {} for index, x in learnt.items()},
            diverged=[index for index, x in learnt.items() if x.losses is None],
            episodes={index: x.episodes for index, x in learnt.items()},
            results=results,
            evolutions=evolutions,
            frozen=self._freeze(before),
            seats=self._deal(),
        )

    def run(self, report: Callable[[Round], None], should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train until `total_steps`, or until `should_stop` says so, calling `report` after each window."""
        while self.env_steps < self.total_steps and not distributed.any_of(should_stop()):
            report(self.update())

    def _learn(self, windows: dict[int, tuple[Window, Episodes]]) -> dict[int, Learnt]:
        """Learn from the windows of this process's agents, and return what came of those of all processes."""
        left = max(0.0, 1.0 - self.env_steps / self.total_steps)
        learnt: dict[int, Learnt] = {}
        for index, (window, episodes) in windows.items():
            num_steps = self.inspection.check(window.unroll)
            try:
                with distributed.alone():
                    # Of a window that is masked altogether nothing is learnt: momentum alone would move weights.
                    losses = self.members[index].update(window, left) if num_steps else {}
            except FloatingPointError as error:
                if not self.config.evolves:
                    raise MerlinError(
                        f"Gradients must be finite, but those of agent {index} after {self.env_steps} steps are not, "
                        f"and {self.inspection.blame(window.unroll)}."
                    ) from error
                losses = None  # an agent that cannot learn will lose, and copy another
            learnt[index] = Learnt(losses, episodes, num_steps)
        if distributed.world_size() == 1:
            return learnt
        own = {
            index: Learnt(to_plain(x.losses, "cpu"), map_state(Tensor.cpu, x.episodes), x.num_steps)
            for index, x in learnt.items()
        }
        seen = float(self.arena.timestep.reward.sum()), float(self.arena.returns.sum())
        shares = distributed.share((seen, own))
        if any(other != seen for other, _ in shares):
            raise MerlinError(
                f"Processes that train a population play the same games, but those of {self.environment.task} differ: "
                "its future must depend on its seed alone. Train in one process."
            )
        return dict(sorted((index, x) for _, part in shares for index, x in part.items()))

    def _rate(self, results: Results) -> list[Evolution]:
        """Rate agents by games that ended, and let them evolve."""
        self.ratings = updated(self.ratings, results.teams, results.scores, self.config.rating_step)
        self.games_played += len(results.scores)
        for game in results.teams.flatten(1).tolist():
            for agent in set(game):
                if agent < len(self.members):
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
        self._bring(model)
        member.become(model)
        member.adopt(perturbed(model.hyperparameters, self.config, self.generator))
        self.arena.replace(member)
        self.games[made.agent] = 0
        return Evolution(made, before, member.hyperparameters, 0.0, 0.0)

    def _freeze(self, before: int) -> int | None:
        """Keep an agent as it is, if it is time, and return the place of the past self.

        Args:
            before: Games played before the last window.
        """
        every, count = self.config.past_every, len(self.members)
        if not self.past or self.games_played // every == before // every:
            return None
        index, place = self.num_frozen % count, self.num_frozen % len(self.past)
        self._bring(self.members[index])
        self.past[place].freeze(self.members[index], index, self.env_steps)
        self.ratings = self.ratings.index_fill(0, torch.tensor([count + place]), float(self.ratings[index]))
        self.arena.replace(self.past[place])
        self.num_frozen += 1
        return place

    def _bring(self, member: Member) -> None:
        """Bring an agent's weights and optimisers into all processes from that in which it learns."""
        if distributed.world_size() == 1:
            return
        state = {"agent": dict(member.agent.state_dict()), "optimizers": member.learner.state_dict()}
        found = next(x for x in distributed.share(to_plain(state, "cpu") if member.is_here else None) if x is not None)
        if not member.is_here:
            member.agent.load_state_dict(found["agent"])
            member.learner.load_state_dict(found["optimizers"])

    def _deal(self) -> Int64[Tensor, "L N"]:
        """Deal the seats of games that begin, and return them."""
        games = self.arena.beginning
        if not len(games):
            return torch.zeros(0, self.players.num_seats, dtype=torch.int64)
        seats = self.matchmaker.deal(len(games), self.ratings[: len(self.members)])
        seats = self._with_others(seats)
        self.arena.deal(games, seats)
        return seats

    def _with_others(self, seats: Int64[Tensor, "L N"]) -> Int64[Tensor, "L N"]:
        """Return seats with one team's given to bots or to a past self, in the part of games in which they play."""
        count, num_past = len(self.members), min(self.num_frozen, len(self.past))
        if self.config.bots is None and not num_past:
            return seats
        draws = torch.rand(2, len(seats), generator=self.generator)
        of_bots = self.config.bot_games if self.config.bots is not None else 0.0
        of_past = self.config.past_games if num_past else 0.0
        teams = seats.view(len(seats), 2, -1).clone()
        sides = (draws[1] < 0.5).long()  # whose seats go
        for game, (draw, side) in enumerate(zip(draws[0].tolist(), sides.tolist(), strict=True)):
            if draw < of_bots:
                teams[game, side] = len(self.participants)
            elif draw < of_bots + of_past:
                past = self.ratings[count : count + num_past]
                rating = self.ratings[teams[game, 1 - side]].mean()
                chosen = torch.multinomial(equality(rating.expand_as(past), past), 1, generator=self.generator)
                teams[game, side] = count + int(chosen)
        return teams.flatten(1)

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
        """Return everything but the agents' weights, as plain containers of tensors and numbers.

        Of several processes only the first gets it, and the weights of all agents in its own copies of them.
        """
        states = {index: who.state_dict() for index, who in enumerate(self.participants) if who.is_here}
        if distributed.world_size() > 1:
            weights = {index: dict(self.participants[index].agent.state_dict()) for index in states}
            parts = distributed.gather(to_plain((weights, states), "cpu"))
            if parts is None:
                return {}
            for weights, part in parts:
                states |= part
                for index, own in weights.items():
                    self.participants[index].agent.load_state_dict(own)
        ordered = [states[index] for index in range(len(self.participants))]
        return {
            "env_steps": self.env_steps,
            "games_played": self.games_played,
            "games": list(self.games),
            "ratings": self.ratings,
            "generator": self.generator.get_state(),
            "matchmaker": self.matchmaker.state_dict(),
            "members": ordered[: len(self.members)],
            "past": ordered[len(self.members) :],
            "num_frozen": self.num_frozen,
            "arena": self.arena.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a `state_dict`, and return whether games and random choices go on too.

        They begin anew where the environment cannot be saved, or was on another kind of device. It may be of another
        number of processes.
        """
        goes_on = state["arena"] is not None
        goes_on &= is_state_of(self.members[0].generator, state["members"][0]["generator"])
        self.env_steps, self.games_played, self.games = state["env_steps"], state["games_played"], list(state["games"])
        self.ratings = state["ratings"].cpu().clone()
        self.generator.set_state(state["generator"].cpu())
        self.matchmaker.load_state_dict(state["matchmaker"])
        self.num_frozen = state.get("num_frozen", 0)
        for participant, saved in zip(self.participants, [*state["members"], *state.get("past", [])], strict=True):
            participant.load_state_dict(saved, goes_on)
        if goes_on:
            self.arena.load_state_dict(state["arena"])
        else:
            self.arena.restart(int(torch.randint(2**31, (), generator=self.generator)))
            self._deal()
        return goes_on
