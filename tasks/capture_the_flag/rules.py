"""The rules of capture the flag, for a batch of games at once, as one function of state and actions.

Players 0 and 1 are red's, 2 and 3 blue's. All act at once, and a step has eight parts, in this order:

    turn      by a quarter
    move      relative to the new heading; not into a wall, nor where a player stood when the step began, nor into a
              cell that another also moves to: then both stay
    tag       unless one tagged in the last 3 steps: a ray along the new heading, at most 5 cells long, ends at a wall
              or at the first player, who is tagged if it is an opponent; all rays at once
    drop      the flag of a tagged carrier lies where the carrier stood, for 30 steps
    out       the tagged are off the map for 10 steps, then appear on the first free of their base's spawn cells
    return    a player on its own flag, where it lies, sends it home; so does time
    capture   a carrier on its own stand, its own flag at home: a point, and the flag goes home
    pick up   a player on the opponents' flag, at home or lying, takes it
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

NUM_PLAYERS, NUM_TEAMS, MATES = 4, 2, 2
MOVES = ("stay", "forward", "back", "step left", "step right")
TURNS = ("", "left", "right")
TAGS = ("", "tag")
STAY, FORWARD, BACK, STEP_LEFT, STEP_RIGHT = range(5)
STEP_TO = (FORWARD, STEP_RIGHT, BACK, STEP_LEFT)
"""The move in each direction relative to the heading: ahead, to the right, behind, to the left."""
NO_TURN, TURN_LEFT, TURN_RIGHT = range(3)

TAG_REACH = 5  # cells
TAG_COOLDOWN_STEPS = 3
OUT_STEPS = 10
FLAG_STEPS = 30

AT_HOME, LYING, CARRIED = range(3)
EVENTS = (
    "I captured",
    "I picked up",
    "I returned",
    "mate captured",
    "mate picked up",
    "mate returned",
    "I tagged a carrier",
    "I tagged another",
    "I was tagged carrying",
    "I was tagged",
    "they captured",
    "they picked up",
    "they returned",
)
"""Of each player in a step, as numbers of times: two who tag the same opponent have both tagged it."""
EVENT_SIGNS = (1,) * 8 + (-1,) * 5
"""Which of them are welcome."""


class State(NamedTuple):
    """G games. Positions are those of `FramedWorld`; whoever is out is nowhere, in the corner of the map."""

    cells: Int32[Tensor, "G area"]
    """The map without flags and players: see `cells`."""
    stand: Int64[Tensor, "G 2"]
    spawn: Int64[Tensor, "G 2 4"]
    luck: Int64[Tensor, "G"]
    """What the game's bots draw from."""
    position: Int64[Tensor, "G 4"]
    heading: Int64[Tensor, "G 4"]
    """0 right, 1 down, 2 left, 3 up."""
    out: Int64[Tensor, "G 4"]
    """Steps until the player is back."""
    cooldown: Int64[Tensor, "G 4"]
    """Steps until it can tag."""
    carries: Bool[Tensor, "G 4"]
    flag_position: Int64[Tensor, "G 2"]
    """Of each team's flag, where it lies."""
    flag_timer: Int64[Tensor, "G 2"]
    """Steps for which it lies yet."""
    captures: Int64[Tensor, "G 2"]
    num_steps: Int64[Tensor, "G"]
    """On the host, so that asking for the end costs nothing."""


def teams(of_players: Tensor) -> Tensor:
    """Return what there is of each player, [G, 4], by team and member, [G, 2, 2]."""
    return of_players.view(-1, NUM_TEAMS, MATES)


def is_carried(carries: Tensor) -> Tensor:
    """Return whether each team's flag, [G, 2], is carried: by one of the other team. Who carries is [G, 4]."""
    return teams(carries).any(2).flip(1)


def flag_states(state: State) -> Int64[Tensor, "G 2"]:
    """Return `AT_HOME`, `LYING` or `CARRIED` of each team's flag."""
    return is_carried(state.carries) * CARRIED + (state.flag_timer > 0)


def flag_places(state: State) -> Int64[Tensor, "G 2"]:
    """Return the position of each team's flag: its carrier's if it is carried."""
    lies = torch.where(state.flag_timer > 0, state.flag_position, state.stand)
    carrier = teams(state.position * state.carries).sum(2).flip(1)
    return torch.where(is_carried(state.carries), carrier, lies)


class Rules:
    """The rules on grids of `stride` columns, in tables: `advance` takes a step.

    Args:
        nowhere: The position of whoever is out: a wall that nobody sees over.
    """

    def __init__(self, stride: int, area: int, nowhere: int, num_games: int, device: torch.device):
        self.nowhere = nowhere
        self.bases = torch.arange(num_games, device=device).unsqueeze(1) * area
        heading = torch.arange(4)
        ahead = torch.tensor([1, stride, -1, -stride])
        to_the_right = torch.tensor([[0], [2], [3], [1]])  # of the moves after `STAY`, in quarters
        steps = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ahead[heading + to_the_right & 3]])
        self.steps = steps.flatten().to(device)  # by move, heading
        self.turned = (heading + torch.tensor([[0], [3], [1]]) & 3).flatten().to(device)  # by turn, heading
        cooldown = torch.arange(TAG_COOLDOWN_STEPS + 1)
        self.num_cooldowns = len(cooldown)
        self.shoots = torch.stack([cooldown < 0, cooldown == 0]).flatten().to(device)  # by tag, cooldown
        self.furthest = TAG_REACH * stride + 1
        self.num_offsets = 2 * self.furthest + 1
        along = torch.full((4, self.num_offsets), TAG_REACH + 1)
        for distance in range(1, TAG_REACH + 1):
            along[heading, self.furthest + distance * ahead] = distance
        self.along = along.flatten().to(device)  # by heading, offset: how far ahead that is, if it is ahead
        team = torch.arange(NUM_PLAYERS, device=device) // MATES
        self.start_heading = team * 2
        self.are_opponents = team.unsqueeze(1) != team
        self.reach_shift = (8 + 3 * heading).to(device)

    def distances_ahead(self, position: Tensor, heading: Tensor) -> Tensor:
        """Return how far each player, [..., 4], is straight ahead of another that looks there, [G, 4] or [G, 4, D].

        More than `TAG_REACH` if it is not; walls are not asked.
        """
        offset = position.unsqueeze(1) - position.unsqueeze(2)
        if heading.ndim == 3:
            offset = offset.unsqueeze(2)
        index = offset.clamp(-self.furthest, self.furthest) + self.furthest
        return look_up(self.along, index + (heading * self.num_offsets).unsqueeze(-1))

    def reach(self, cells: Tensor, position: Tensor, heading: Tensor) -> Tensor:
        """Return how many cells ahead of players, [G, 4] or [G, 4, D] headings, are open, at most `TAG_REACH`."""
        here = look_up(cells, position + self.bases)
        return (here.unsqueeze(2) if heading.ndim == 3 else here) >> look_up(self.reach_shift, heading) & 7

    def advance(self, state: State, actions: Int64[Tensor, "G 4 3"]) -> tuple[State, Int64[Tensor, "G 4 13"]]:
        """Return the state after a step, and its `EVENTS`. An action that is none fails in a lookup."""
        move, turn, tag = actions.unbind(2)
        is_in = state.out == 0
        # Turn, move
        heading = torch.where(is_in, look_up(self.turned, turn * 4 + state.heading), state.heading)
        target = state.position + look_up(self.steps, move * 4 + heading) * is_in
        shoots = look_up(self.shoots, tag * self.num_cooldowns + state.cooldown) & is_in
        begun = torch.cat([state.position, target], 1)
        is_taken = (target.unsqueeze(2) == begun.unsqueeze(1)).sum(2) > 1  # once it is the player's own target
        is_wall = look_up(state.cells, target + self.bases) < 0
        position = torch.where(is_taken | is_wall, state.position, target)

        # Tag
        distance = self.distances_ahead(position, heading)
        nearest = torch.minimum(distance.amin(2), self.reach(state.cells, position, heading))
        hits = (distance == nearest.unsqueeze(2)) & self.are_opponents & shoots.unsqueeze(2)
        cooldown = torch.where(shoots, TAG_COOLDOWN_STEPS, (state.cooldown - 1).clamp(min=0))
        times_tagged = hits.sum(1)
        tagged = times_tagged > 0

        # Drop
        drops = tagged & state.carries
        flag_timer, flag_position = (state.flag_timer - 1).clamp(min=0), state.flag_position
        is_dropped = is_carried(drops)
        flag_timer = flag_timer.masked_fill(is_dropped, FLAG_STEPS)
        flag_position = torch.where(is_dropped, teams(position * drops).sum(2).flip(1), flag_position)
        carries = state.carries & ~tagged

        # Out
        out = torch.where(tagged, OUT_STEPS, (state.out - 1).clamp(min=0))
        position = position.masked_fill(tagged, self.nowhere)
        heading = torch.where(tagged, self.start_heading, heading)
        appears = state.out == 1
        is_free = (state.spawn.view(-1, 8, 1) != position.unsqueeze(1)).all(2).view(-1, NUM_TEAMS, 1, 4)
        is_own = is_free & (is_free.cumsum(3) == teams(appears).cumsum(2).unsqueeze(3))  # a mate takes the next
        position = torch.where(appears, (state.spawn.unsqueeze(2) * is_own).sum(3).view(-1, NUM_PLAYERS), position)

        # Return
        mine = teams(position)
        lies = is_dropped | (state.flag_timer > 0)  # also where its time is up now: a player comes before time
        returns = (mine == flag_position.unsqueeze(2)) & lies.unsqueeze(2)
        flag_timer = flag_timer * ~returns.any(2)

        # Capture; never by both teams, since each needs its own flag at home
        is_home = ~is_carried(carries) & (flag_timer == 0)
        captured = teams(carries) & (mine == state.stand.unsqueeze(2)) & is_home.unsqueeze(2)
        carries = carries & ~captured.view(-1, NUM_PLAYERS)

        # Pick up; who has just captured stands on its own stand, where the opponents' flag cannot be now
        place = torch.where(flag_timer > 0, flag_position, state.stand).masked_fill(is_carried(carries), -1)
        picks_up = mine == place.flip(1).unsqueeze(2)
        flag_timer = flag_timer * ~picks_up.any(2).flip(1)
        carries = carries | picks_up.view(-1, NUM_PLAYERS)

        own = torch.stack([captured, picks_up, returns], 3).long()  # [G, team, member, kind]
        theirs = own.sum(2, keepdim=True).flip(1).expand_as(own)
        on_carrier = (hits & state.carries.unsqueeze(1)).sum(2)
        tags = [on_carrier, hits.sum(2) - on_carrier, times_tagged * state.carries, times_tagged * ~state.carries]
        tags = torch.stack(tags, 2).view(-1, NUM_TEAMS, MATES, 4)
        events = torch.cat([own, own.flip(2), tags, theirs], 3).view(-1, NUM_PLAYERS, len(EVENTS))
        return State(
            state.cells,
            state.stand,
            state.spawn,
            state.luck,
            position,
            heading,
            out,
            cooldown,
            carries,
            flag_position,
            flag_timer,
            state.captures + captured.any(2),
            state.num_steps + 1,
        ), events


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return the entries of a table, flat, at these places; unlike indexing it refuses those below 0."""
    return table.view(-1).index_select(0, index.reshape(-1)).view(index.shape)
