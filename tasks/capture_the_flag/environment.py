"""Capture the flag as a batch of environments, a row for each player that learns, and as a single one."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int, Int32, Int64, UInt8
from torch import Tensor

from ..base.single import SingleEnv
from ..base.vector import STAGGER
from ..grid.cells import EMPTY
from ..grid.first_person.renderer import FirstPerson
from ..grid.framed import FramedWorld
from ..grid.visibility import Sight
from . import cells, drawing
from .bots import BOTS, PAIRS, Bots, draw
from .maps import SMALLEST_SIZE, distances, draw_maps
from .rules import (
    EVENT_SIGNS,
    EVENTS,
    MATES,
    MOVES,
    NUM_PLAYERS,
    TAG_REACH,
    TAGS,
    TURNS,
    Rules,
    State,
    flag_places,
    flag_states,
    is_carried,
    look_up,
)

VIEW_SIZE = 7
NUM_COHORTS = 8
LEAD_SHOWN = 3  # captures; a larger lead looks the same


class CaptureTheFlag(FramedWorld):
    """Capture the flag, two against two, after Jaderberg et al. 2019, arXiv:1807.01281, on a grid: see `rules`.

    Row n · g + i is the i-th learning player of game g. With opponents="self" and team_mate="self", all n = 4 are:
    0 and 1 red's, 2 and 3 blue's. Bots take the seats of others.

    Observation, relative to the player: `image`, the cells ahead as (object, side, state), see `cells`, as MiniGrid
    shows and hides them, or what is seen from inside with view="first_person"; `direction`, from 0 towards the
    opponents' side, to the right; `status`, the state of the own flag and of theirs (0 at home, 1 lying, 2 carried),
    whether the player carries, can tag, is out; `score`, the lead in thirds, from −1 to 1, and the share of time left.

    Action: move (stay, forward, back, left, right), turn (none, left, right), tag.

    A game ends after `max_steps`, with a reward of 1 for the team with more captures, −1 for the other. `info` has
    `events` of the step, see `EVENTS`, and `captures`, the own team's and theirs; `is_success` is 1/2 after a draw.

    After a reset with the option "merlin.stagger" the games are at eight points of time: game g begins at step
    (g mod 8) · max_steps / 8.

    `scores` are returns against `opponents`: of random players; the same as "memoryless", for nothing better is known;
    of attackers as "oracle", which see everything and are no bound. There are none with "self" or with `rewards`.

    Args:
        num_envs: A multiple of the number of players that learn, 4 with opponents="self".
        size: Cells along each side of the map, odd, at least 7.
        openness: Probability that a wall of the maze that the map starts from is none.
        max_steps: Steps of a game.
        opponents: "self", "random", "attacker", "defender" or "mixed", an attacker and a defender.
        team_mate: "self", "random", "attacker" or "defender".
        rewards: Of each of `EVENTS`, each time, added to the reward: 13 numbers, or numbers by the names of events,
            the others' being 0; none adds nothing.
        view: "grid" or "first_person".
        picture_size: Pixels along each side of a picture.
        sight_distance: Cells to where the fog of a picture hides everything.
    """

    can_stagger = True
    state_names = State._fields
    action_names = (MOVES, TURNS, TAGS)
    event_signs, event_names = EVENT_SIGNS, EVENTS
    bot_teams = PAIRS
    judged_by = {"opponents": "mixed"}  # noqa: RUF012
    """The settings with which an agent is judged that trained in self-play."""

    def __init__(
        self,
        num_envs: int = 4,
        size: int = 13,
        openness: float = 0.3,
        max_steps: int = 200,
        opponents: str = "self",
        team_mate: str = "self",
        rewards: Sequence[float] | Mapping[str, float] | None = None,
        view: str = "grid",
        picture_size: int = 64,
        sight_distance: int = 16,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if size < SMALLEST_SIZE or size % 2 == 0:
            raise ValueError(f"size must be odd and at least {SMALLEST_SIZE}, but is {size}.")
        if not 0 <= openness <= 1:
            raise ValueError(f"openness must be from 0 to 1, but is {openness}.")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, but is {max_steps}.")
        if view not in ("grid", "first_person"):
            raise ValueError(f"view must be 'grid' or 'first_person', but is {view!r}.")
        self.size, self.openness, self.max_steps = size, openness, max_steps
        self.opponents, self.team_mate, self.view = opponents, team_mate, view
        names = seat_names(opponents, team_mate)
        self.seats = [seat for seat, name in enumerate(names) if name is None]
        if num_envs < 1 or num_envs % len(self.seats):
            raise ValueError(
                f"num_envs must be a multiple of {len(self.seats)}, the players of a game that learn, but is {num_envs}"
                ": change it, or give the other seats to bots by `opponents` and `team_mate`."
            )
        image = spaces.MultiDiscrete(
            np.tile([len(cells.OBJECTS), 3, cells.NUM_STATES], (VIEW_SIZE, VIEW_SIZE, 1)), dtype=np.uint8
        )
        observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (picture_size, picture_size, 3), np.uint8)
                if view == "first_person"
                else image,
                "direction": spaces.Discrete(4),
                "status": spaces.MultiDiscrete([3, 3, 2, 2, 2]),
                "score": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32)),
            }
        )
        action_space = spaces.MultiDiscrete([len(MOVES), len(TURNS), len(TAGS)])
        num_games = num_envs // len(self.seats)
        super().__init__(
            num_envs, size, size, VIEW_SIZE, observation_space, action_space, device, render_mode, num_games
        )
        self.nowhere = int(self.grid_positions[0, 0])
        self.rules = Rules(self.stride, self.area, self.nowhere, num_games, self.device)
        self.distances: Tensor | None = None
        self._seat(names)
        self.seat_index = torch.tensor(self.seats, device=self.device)
        self.seat_team = self.seat_index // MATES
        self.game = torch.arange(num_games, device=self.device).repeat_interleave(len(self.seats))  # of each row
        self.team = self.seat_team.repeat(num_games)
        self.weights = (
            None
            if rewards is None
            else torch.tensor(self.event_weights(rewards), dtype=torch.float32, device=self.device)
        )
        self.packed = cells.packed().to(self.device)
        self.cohort = torch.arange(num_games) % NUM_COHORTS
        self.sight = Sight(VIEW_SIZE, self.device)
        self.seen_as = cells.seen().to(self.device)
        if view == "first_person":
            self.seen_as = cells.relative().to(self.device)
            self.first_person = FirstPerson(self.stride, picture_size, sight_distance, self.device, cells.CELLS)
        self.reports = [drawing.Report() for _ in range(num_games)]
        self._staggers = False
        self._start()

    @classmethod
    def rows_per_game(cls, opponents: str = "self", team_mate: str = "self", **settings: Any) -> int:
        return seat_names(opponents, team_mate).count(None)

    @staticmethod
    def event_weights(rewards: Sequence[float] | Mapping[str, float]) -> list[float]:
        """Return what `rewards` says that each of `EVENTS` is worth."""
        if isinstance(rewards, Mapping):
            if unknown := [name for name in rewards if name not in EVENTS]:
                known = ", ".join(EVENTS)
                raise ValueError(f"rewards must be of these events: {known}; but {unknown[0]!r} is none of them.")
            return [float(rewards.get(name, 0)) for name in EVENTS]
        if len(rewards) != len(EVENTS):
            raise ValueError(f"rewards must be {len(EVENTS)} numbers, one for each event, but are {len(rewards)}.")
        return [*map(float, rewards)]

    @property
    def num_games(self) -> int:
        return self.num_grids

    @cached_property
    def scores(self) -> dict[str, float]:
        """Mean returns against the opponents, where these are bots: 128 games from seed 0."""
        if self.opponents == "self" or self.weights is not None:
            return {}
        settings = {"size": self.size, "openness": self.openness, "max_steps": self.max_steps}
        random, oracle = (match(name, self.opponents, 128, **settings) for name in ("random", "attacker"))
        return {"random": random.mean_return, "memoryless": random.mean_return, "oracle": oracle.mean_return}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._staggers = bool((options or {}).get(STAGGER))
        return super().reset(seed=seed, options=options)

    def _start(self) -> None:
        super()._start()
        if self._staggers:
            self.num_steps = self.cohort * self.max_steps // NUM_COHORTS
        self._begin(torch.arange(self.num_games))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._begin(torch.arange(self.num_games))

    def _start_where(self, begins: Bool[Tensor, " B"]) -> None:
        if len(self.seats) > 1:
            super()._start_where(begins)  # which refuses: players of a game begin together
        self._restart(begins.nonzero().squeeze(1))

    def _begin(self, games: Int64[Tensor, "L"]) -> None:
        self._plan(games)
        for game in games.tolist():
            self.reports[game].clear()

    def seat_bots(self, names: tuple[str | None, ...]) -> None:
        """Have `bot_actions` return what these `BOTS` do, one for each seat."""
        self._seat(names)
        self._plan(torch.arange(self.num_games))

    def _seat(self, names: tuple[str | None, ...]) -> None:
        inside = torch.zeros(self.area, dtype=torch.int64, device=self.device)
        inside[self.grid_positions.flatten()] = torch.arange(self.size**2, device=self.device)
        self.bots = Bots(names, self.rules, self.size, inside)

    def _plan(self, games: Int64[Tensor, "L"]) -> None:
        """Find the ways on the maps of these games, if a bot asks for them."""
        if not self.bots.plan:
            return
        if self.distances is None:
            self.distances = torch.empty(
                self.num_games, self.size**2, self.size**2, dtype=torch.uint8, device=self.device
            )
        games = games.to(self.device)
        maps = self.cells[games][:, self.grid_positions.flatten()] >= 0
        self.distances.index_copy_(0, games, distances(maps.view(-1, self.size, self.size)))

    def _draw_starts(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        maps = draw_maps(count, self.size, self.openness, generator)
        luck = torch.randint(2**32, (count,), generator=generator, device=self.device)
        return self.starts(
            maps.is_open, self.place(maps.stand_x, maps.stand_y), self.place(maps.spawn_x, maps.spawn_y), luck
        )

    def starts(
        self,
        is_open: Bool[Tensor, "L H W"],
        stand: Int64[Tensor, "L 2"],
        spawn: Int64[Tensor, "L 2 4"],
        luck: Int64[Tensor, "L"],
    ) -> dict[str, Tensor]:
        """Return the state that games on these maps begin with, by name; stands and spawn cells are positions."""
        count = len(is_open)
        codes = torch.full((count, self.area), cells.WALL, device=self.device)
        codes[:, self.grid_positions.flatten()] = torch.where(is_open, EMPTY, cells.WALL).flatten(1)
        codes.scatter_(1, stand, cells.STAND + torch.arange(2, device=self.device).expand(count, -1))
        framed = self.packed[codes]
        can_enter, ahead = (framed >= 0).int(), torch.zeros_like(framed)
        for direction, step in enumerate(self.forward.tolist()):
            reach = torch.zeros_like(framed)
            for _ in range(TAG_REACH):
                reach = can_enter.roll(-step, 1) * (1 + reach.roll(-step, 1))
            ahead |= reach.clamp(max=TAG_REACH) << 8 + 3 * direction
        framed |= torch.where(can_enter > 0, ahead, 0)
        zeros = torch.zeros(count, NUM_PLAYERS, dtype=torch.int64, device=self.device)
        state = State(
            framed,
            stand,
            spawn,
            luck,
            position=spawn[..., :MATES].flatten(1),
            heading=zeros + self.rules.start_heading,
            out=zeros,
            cooldown=zeros,
            carries=zeros > 0,
            flag_position=stand.clone(),
            flag_timer=zeros[:, :2],
            captures=zeros[:, :2],
            num_steps=torch.zeros(count, dtype=torch.int64),
        )
        return {name: x.contiguous() for name, x in state._asdict().items()}

    @property
    def state(self) -> State:
        """The state of all games, as `rules` has it."""
        return State(*(getattr(self, name) for name in State._fields))

    @state.setter
    def state(self, state: State) -> None:
        for name, x in state._asdict().items():
            setattr(self, name, x)

    def of_rows(self, of_players: Tensor) -> Tensor:
        """Return the rows of what there is of each player, [G, 4, ...]."""
        if len(self.seats) < NUM_PLAYERS:
            of_players = of_players.index_select(1, self.seat_index)
        return of_players.flatten(0, 1)

    def bot_actions(self, state: State) -> Int64[Tensor, "G 4 3"]:
        """Return what bots do in all seats."""
        return self.bots.act(state, self.distances, draw(state.luck, state.num_steps.to(self.device)))

    def _step(
        self, actions: Int[Tensor, "B 3"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        actions, state = actions.view(self.num_games, len(self.seats), 3), self.state
        if len(self.seats) < NUM_PLAYERS:
            actions = self.bot_actions(state).index_copy(1, self.seat_index, actions)
        self.state, happened = self.rules.advance(state, actions)
        if self.render_mode is not None:
            self._report(happened.cpu())
        events = self.of_rows(happened).float()
        captures = torch.stack([self.captures, self.captures.flip(1)], 1)[:, self.seat_team].flatten(0, 1)
        reward = torch.zeros(self.num_envs, device=self.device) if self.weights is None else events @ self.weights
        is_over = self.num_steps >= self.max_steps
        info: dict[str, Any] = {"events": events, "captures": captures}
        is_end = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        no_truncation, info["is_success"] = torch.zeros_like(is_end), torch.full_like(reward, torch.nan)
        if is_over.any():
            is_end = is_over.to(self.device).repeat_interleave(len(self.seats))
            outcome = (captures[:, 0] - captures[:, 1]).sign().float()
            reward = reward + outcome * is_end
            info["is_success"] = torch.where(is_end, (outcome + 1) / 2, info["is_success"])
            info |= {"final_obs": self._observe(), "_final_obs": is_end}
            if self.autoreset:
                self._restart(is_over.nonzero().squeeze(1))
        return self._observe(), reward, is_end, no_truncation, info

    def _restart(self, games: Int64[Tensor, "L"]) -> None:
        """Begin these games anew."""
        starts = self.pool.take(len(games))
        for name, x in self.state._asdict().items():
            setattr(self, name, x.index_copy(0, games.to(x.device), starts[name]))
        self._begin(games)

    def _report(self, happened: Int64[Tensor, "G 4 13"]) -> None:
        """Add the events of a step to what pictures tell of the games."""
        for game in happened.any(2).any(1).nonzero().squeeze(1).tolist():
            self.reports[game].add(int(self.num_steps[game]), happened[game])

    def map_now(self, state: State) -> Int32[Tensor, "G area"]:
        """Return the cells of the maps with flags and players on them."""
        wall, gone = self.packed[cells.WALL], is_carried(state.carries)
        places = flag_places(state).masked_fill(gone, self.nowhere)
        flags = cells.FLAG + torch.arange(2, device=self.device) + 2 * (state.flag_timer > 0)
        # of two in one cell, that which was dropped last is on top, whichever team's it is
        top = flags.gather(1, (state.flag_timer[:, :1] < state.flag_timer[:, 1:]).long())
        flags = torch.where(places[:, :1] == places[:, 1:], top, flags)
        grids = state.cells.clone()
        grids.scatter_(1, places, torch.where(gone, wall, self.packed[flags]))
        player = state.heading + 4 * state.carries + cells.PLAYER + cells.NUM_STATES * (self.rules.start_heading // 2)
        grids.scatter_(1, state.position, torch.where(state.out > 0, wall, self.packed[player]))
        return grids

    def _observe(self) -> dict[str, Tensor]:
        state = self.state
        heading, position = self.of_rows(state.heading), self.of_rows(state.position)
        is_out = self.of_rows(state.out) > 0
        flags = flag_states(state)
        own = torch.stack([flags, flags.flip(1)], 1)[:, self.seat_team].flatten(0, 1)
        players = torch.stack([state.carries, (state.cooldown == 0) & (state.out == 0), state.out > 0], 2).long()
        lead = (state.captures[:, :1] - state.captures[:, 1:]) * torch.tensor([1, -1], device=self.device)
        lead = (lead[:, self.seat_team].flatten() / LEAD_SHOWN).clamp(-1, 1)
        left = (1 - state.num_steps / self.max_steps).to(self.device).repeat_interleave(len(self.seats))
        return {
            "image": self._look(self.map_now(state), position, heading, is_out),
            "direction": heading + 2 * self.team & 3,
            "status": torch.cat([own, self.of_rows(players)], 1),
            "score": torch.stack([lead, left], 1),
        }

    def _look(
        self,
        grids: Int32[Tensor, "G area"],
        position: Int64[Tensor, " B"],
        heading: Int64[Tensor, " B"],
        is_out: Bool[Tensor, " B"],
    ) -> UInt8[Tensor, "B Y X 3"]:
        """Return what the players of all rows see."""
        seen_as = (self.team * 4 + heading) * len(cells.CELLS)
        if self.view == "first_person":
            grids = grids.index_select(0, self.game)
            grids = look_up(self.seen_as, (grids & 255) + seen_as.unsqueeze(1))
            carried = torch.where(self.of_rows(self.carries), cells.FLAG, EMPTY)  # theirs is red to both
            return self.first_person(grids, position, heading, carried) * ~is_out.view(-1, 1, 1, 1)
        places = self.offsets.index_select(0, heading)
        places += (position + self.bases.index_select(0, self.game)).int().unsqueeze(1)
        image = grids.view(-1).index_select(0, places.view(-1)).view(self.num_envs, -1)
        image &= self.sight(image)
        image &= 255
        image.masked_fill_(is_out.unsqueeze(1), 0)
        image += seen_as.int().unsqueeze(1)
        image = self.seen_as.view(-1).index_select(0, image.view(-1)).view(torch.uint8)
        return image.view(-1, VIEW_SIZE, VIEW_SIZE, 4).transpose(1, 2)[..., :3]

    def draw(self, index: int) -> np.ndarray:
        """Return the game of a row from above, what its four players see, and its last events: see `drawing`."""
        return drawing.draw_game(self._scene(index), self.reports[index // len(self.seats)])

    def draw_above(self, index: int) -> np.ndarray:
        """Return the game of a row from above."""
        return drawing.draw_above(self._scene(index))

    def _scene(self, index: int) -> drawing.Scene:
        game = index // len(self.seats)
        state = State(*(x[game : game + 1] for x in self.state))
        grid, is_out = self.map_now(state), state.out[0] > 0
        places = (self.offsets[state.heading[0]] + state.position[0].unsqueeze(1)).long()
        codes = grid[0][places]
        is_seen = (self.sight(codes) != 0) & ~is_out.unsqueeze(1)
        views = torch.where(is_seen, codes & 255, 0).view(-1, VIEW_SIZE, VIEW_SIZE)
        is_lit = torch.zeros(NUM_PLAYERS, self.area, dtype=torch.bool, device=self.device)
        is_lit = is_lit.scatter_(1, places, is_seen)[:, self.grid_positions]
        return drawing.Scene(
            world=self,
            state=State(*(x.cpu() for x in state)),
            is_lit=is_lit.cpu().numpy(),
            views=views.cpu().numpy(),
            pictures=self._pictures(state, grid).cpu().numpy() if self.view == "first_person" else None,
            seat=self.seats[index % len(self.seats)],
            are_bots=[seat not in self.seats for seat in range(NUM_PLAYERS)],
            steps_left=self.max_steps - int(state.num_steps),
        )

    def _pictures(self, state: State, grid: Int32[Tensor, "1 area"]) -> UInt8[Tensor, "4 Y X 3"]:
        """Return what the players of a game see from inside, as if all were blue: so the teams have their colours."""
        heading, seen_as = state.heading[0], self.seen_as[1]
        grids = seen_as[heading].gather(1, (grid & 255).long().expand(NUM_PLAYERS, -1))
        team = self.rules.start_heading // 2
        carried = torch.where(state.carries[0], cells.FLAG + 1 - team, EMPTY)
        return self.first_person(grids, state.position[0], heading, carried) * (state.out[0] == 0).view(-1, 1, 1, 1)


def seat_names(opponents: str, team_mate: str) -> tuple[str | None, ...]:
    """Return the bot of each seat, None where a player learns."""
    for name, value, known in (("opponents", opponents, PAIRS), ("team_mate", team_mate, BOTS)):
        if value != "self" and value not in known:
            raise ValueError(f"{name} must be one of self, {', '.join(known)}, but is {value!r}.")
    pair = (None, None) if opponents == "self" else PAIRS[opponents]
    return (None, None if team_mate == "self" else team_mate, *pair)


class SingleCaptureTheFlag(SingleEnv):
    """Player 0 of one game, and bots in the other seats; arguments are those of `CaptureTheFlag`."""

    batched = CaptureTheFlag

    def __init__(
        self, render_mode: str | None = None, opponents: str = "mixed", team_mate: str = "attacker", **settings: Any
    ):
        if "self" in (opponents, team_mate):
            raise ValueError(
                "bots take the three other seats of a single environment, but opponents or team_mate is 'self': name "
                "bots, or take gymnasium.make_vec or parallel_env."
            )
        super().__init__(render_mode, opponents=opponents, team_mate=team_mate, **settings)

    def draw_above(self) -> np.ndarray:
        """Return the game from above alone, which fits into a terminal."""
        return self.batch.draw_above(0)


class Match(NamedTuple):
    """Result of many games, as red sees it; shares of games, and means per game."""

    wins: float
    draws: float
    losses: float
    captures: float
    captures_against: float
    pick_ups: float
    """By both teams."""
    tags: float
    """By both teams."""

    @property
    def mean_return(self) -> float:
        return self.wins - self.losses


@lru_cache
def match(red: str, blue: str, games: int, seed: int = 0, **settings: Any) -> Match:
    """Return how many games two pairs of bots play against each other, computed once.

    Args:
        red: One of `bots.PAIRS`.
        settings: More arguments of `CaptureTheFlag`.
    """
    env = CaptureTheFlag(NUM_PLAYERS * games, **settings)
    env.autoreset = False
    env.seat_bots(PAIRS[red] + PAIRS[blue])
    env.reset(seed=seed)
    counts = 0
    for _ in range(env.max_steps):
        _, reward, _, _, info = env.step(env.bot_actions(env.state).flatten(0, 1))
        counts = counts + info["events"].double().sum(0)
    outcome = reward[::NUM_PLAYERS]
    captures, against = env.captures.double().mean(0).tolist()
    by_event = dict(zip(EVENTS, (counts / games).tolist(), strict=True))
    shares = [(outcome == x).double().mean().item() for x in (1, 0, -1)]
    tags = by_event["I tagged a carrier"] + by_event["I tagged another"]
    return Match(*shares, captures, against, by_event["I picked up"], tags)
