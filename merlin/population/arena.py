"""The arena: all agents of a population play with and against one another in the games of one batch.

A row of the batch is a player of a game, and acts by the agent that was dealt its seat. Each agent acts in all of its
rows at once and learns from all of them. Past selves of agents, and bots, may be among those who act.

The seats of a game are dealt anew when it has ended and a window ends: a window ends after its steps, or earlier where
a cohort of games ends, so that games that end together are all dealt anew. A game that ends inside a window is followed
by one with the same players.

Where an agent becomes another's copy while it plays, its rows are masked until their games end (`is_stale`): they count
neither in losses nor in ratings, are no episodes in reports, and the copy begins in them with an empty state. So no
state of the old agent meets weights of the new one.

Of several processes each acts for some of the agents. Actions are exchanged at every step, and all processes play all
games: the same ones, from the same seed.

Axes: B rows, G games, M members of a team, E games that ended, V events.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from merlin import distributed
from merlin.agents.ftw import internal_reward
from merlin.agents.learner import Window
from merlin.environments.batch import Environment, Timestep
from merlin.errors import EnvironmentFailure
from merlin.population.games import Players
from merlin.population.member import Member
from merlin.population.participant import Participant
from merlin.states import map_state
from merlin.training.plain import from_plain, to_plain
from merlin.training.rollout import Collection, Episodes

COHORT = 1 / 16
"""The part of all games that ends a window if it ends together."""


class Results(NamedTuple):
    """Games that ended, and were played by the same agents from their begin on."""

    teams: Int64[Tensor, "E 2 M"]
    """The agents in both teams."""
    scores: Float64[Tensor, "E"]
    """1 where the first team won, 0 where the second did, 1/2 after a draw."""


class Arena:
    """Games, and who plays in them.

    Args:
        participants: Who may be dealt a seat, by index; the next index is that of bots.
        staggers: See `Environment.reset`.
    """

    def __init__(
        self, environment: Environment, players: Players, participants: Sequence[Participant], seed: int, staggers: bool
    ) -> None:
        self.environment, self.players, self.participants = environment, players, participants
        self.staggers = staggers
        actions, device = participants[0].agent.actions, environment.device
        parameters = torch.zeros(1, actions.num_parameters, device=device)
        self._action_form = actions.sample(parameters, torch.Generator(device))
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin all games anew; they wait for a deal."""
        count, device = self.environment.num_envs, self.environment.device
        self.timestep = self.environment.reset(seed, staggers=self.staggers)
        self.events: Tensor | None = None
        self.agent_of = torch.full((count,), -1, device=device)
        self.is_stale = torch.zeros(count, dtype=torch.bool, device=device)
        self.returns = torch.zeros(count, device=device)  # by the task, whatever agents learn from

    @property
    def beginning(self) -> Int64[Tensor, "L"]:
        """Games that begin with the present timestep."""
        return self.timestep.is_first[self.players.rows[:, 0, 0]].nonzero().squeeze(1)

    def deal(self, games: Int64[Tensor, "L"], seats: Int64[Tensor, "L N"]) -> None:
        """Seat participants in games that begin, or bots, whose index is the number of participants."""
        dealt = self.players.rows.index_select(0, games).flatten()
        self.agent_of = self.agent_of.index_copy(0, dealt, seats.flatten().to(self.agent_of))
        is_dealt = torch.zeros_like(self.is_stale).index_fill(0, dealt, True)
        for index, participant in enumerate(self.participants):
            rows = (self.agent_of == index).nonzero().squeeze(1)
            participant.take_rows(rows, is_dealt, self._share(self.timestep, participant, rows))

    def replace(self, participant: Participant) -> None:
        """Mask the running games of a participant that has become a copy of another."""
        rows = participant.rows
        if len(rows):
            runs = ~(self.timestep.is_first | self.timestep.is_last).index_select(0, rows)
            self.is_stale = self.is_stale.index_copy(0, rows, runs)
            participant.forget()
            participant.look(self._share(self.timestep, participant, rows))

    def collect(self, unroll_length: int) -> tuple[dict[int, tuple[Window, Episodes]], Results]:
        """Return a window and the episodes of each agent that plays, and the games that ended.

        Args:
            unroll_length: The most steps of a window.
        """
        acting = {i: who for i, who in enumerate(self.participants) if len(who.rows) and who.is_here}
        collections = {
            index: Collection(
                who.agent, who.state, who.agent.config.discount_factor, unroll_length, who.generator, who.records
            )
            for index, who in acting.items()
        }
        results: list[Results] = []
        enough = max(1, round(COHORT * self.players.num_games))
        for _ in range(unroll_length):
            action = self._act({index: collection.act() for index, collection in collections.items()})
            self.timestep, self.events = self.environment.step(action), self.environment.events
            self._end_games(results)
            for index, collection in collections.items():
                collection.take(self._share(self.timestep, acting[index], acting[index].rows))
            if len(self.beginning) >= enough:  # a step after they ended, in gymnasium's autoreset mode NEXT_STEP
                break
        windows = {}
        for index, collection in collections.items():
            window, episodes, acting[index].state = collection.finish()
            if isinstance(acting[index], Member):
                windows[index] = (window, episodes)
        none = Results(self.players.rows[:0].cpu(), torch.zeros(0, dtype=torch.float64))
        return windows, Results(*(torch.cat(column) for column in zip(none, *results, strict=True)))

    def _act(self, actions: dict[int, Tensor]) -> Tensor:
        """Return the actions in all rows, of those of participants in theirs: of all processes, and of bots."""
        action = self._action_form.new_zeros(len(self.agent_of), *self._action_form.shape[1:])
        for index, own in actions.items():
            action.index_copy_(0, self.participants[index].rows, own)
        action = distributed.total(action)
        are_bots = self.agent_of == len(self.participants)
        if bool(are_bots.any()):
            batch: Any = self.environment.vector_env.unwrapped
            bots = batch.bot_actions(batch.state).flatten(0, 1).to(action)
            action = torch.where(are_bots.view(-1, *[1] * (action.ndim - 1)), bots, action)
        return action

    def _end_games(self, results: list[Results]) -> None:
        """Add the games that have just ended to the results."""
        timestep, rows = self.timestep, self.players.rows
        self.returns = self.returns + timestep.reward
        is_end = timestep.is_end
        if not bool(is_end.any()):
            return
        ended = is_end[rows].flatten(1)
        if bool((ended.any(1) != ended.all(1)).any()):
            raise EnvironmentFailure(
                f"All players of a game end it together, but those of {self.environment.task} do not: correct the task."
            )
        lead = self.returns[rows].sum(2)
        by_return = (1 + (lead[:, 0] - lead[:, 1]).sign()) / 2
        told = timestep.success[rows[:, 0, 0]]
        counts = ended[:, 0] & ~timestep.is_cut[rows[:, 0, 0]] & ~self.is_stale[rows].flatten(1).any(1)
        scores = torch.where(told.isnan(), by_return, told)
        results.append(Results(self.agent_of[rows][counts].cpu(), scores[counts].double().cpu()))
        self.returns = self.returns.masked_fill(is_end, 0)
        self.is_stale = self.is_stale & ~is_end

    def _share(self, timestep: Timestep, who: Participant, rows: Int64[Tensor, "R"]) -> Timestep:
        """Return what an agent is told of its rows: its own reward of their events, and no rows that are masked."""

        def of_rows(entries: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
            return entries and {name: x.index_select(0, rows) for name, x in entries.items()}

        flat = timestep._replace(observation=None, final_observation=None)
        share: Timestep = map_state(lambda x: x.index_select(0, rows), flat)
        reward = share.reward
        if who.reward_weights is not None:
            reward = torch.zeros_like(reward)
            if self.events is not None:
                reward = internal_reward(self.events.index_select(0, rows), who.reward_weights)
        return share._replace(
            observation=of_rows(timestep.observation),
            final_observation=of_rows(timestep.final_observation),
            reward=reward,
            is_last=share.is_last | self.is_stale.index_select(0, rows),
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Return where the games stand, as plain containers; None where the environment cannot be saved."""
        if not self.environment.is_native:
            return None
        return {
            "environment": self.environment.state_dict(),
            "timestep": to_plain(self.timestep._replace(final_observation=None)),
            "events": self.events,
            "agent_of": self.agent_of,
            "is_stale": self.is_stale,
            "returns": self.returns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with members that have gone on from theirs."""
        device = self.environment.device
        self.environment.load_state_dict(state["environment"])
        self.timestep = from_plain(state["timestep"], self.timestep._replace(final_observation=None))
        self.events = None if state["events"] is None else state["events"].to(device)
        self.agent_of, self.is_stale, self.returns = (
            state[name].to(device) for name in ("agent_of", "is_stale", "returns")
        )
        for participant in self.participants:
            if len(participant.rows):
                participant.look(self._share(self.timestep, participant, participant.rows))
