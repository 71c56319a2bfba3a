"""Scripted players, which see everything: a measure for those that learn, and company for a single one.

    random      any action, all equally likely
    attacker    goes to their flag and takes it home; a defender while its mate carries, or where it waits on its stand
                with their flag for its own
    defender    goes to its own flag, wherever that is; while the flag is at home, wanders beside it

Attackers and defenders take shortest ways, turn to an opponent in a clear line and tag it, and take every tenth action
at random. Ties are broken relative to the heading, so that the bots of both teams do the same in the same place.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .rules import (
    MATES,
    MOVES,
    NO_TURN,
    NUM_PLAYERS,
    STAY,
    STEP_TO,
    TAGS,
    TURN_LEFT,
    TURN_RIGHT,
    TURNS,
    Rules,
    State,
    flag_places,
    flag_states,
    look_up,
    teams,
)

BOTS = ("random", "attacker", "defender")
PAIRS = {"mixed": ("attacker", "defender")} | {name: (name, name) for name in BOTS}
"""Of bots that play as a team."""
RANDOM_SHARE = 0.1  # of the actions of bots that are not random altogether
BITS = 16  # of a player's luck in a step that say whether its action is random; as many say which
NUM_ACTIONS = len(MOVES) * len(TURNS) * len(TAGS)
_WORD = 0xFFFFFFFF


def draw(luck: Int64[Tensor, "G"], num_steps: Int64[Tensor, "G"]) -> Int64[Tensor, "G 4"]:
    """Return a number of 32 bits for each player of each game, from the game's own luck and the step it is in.

    So games do not depend on one another, nor on how many there are. The bits are mixed as in MurmurHash3 (Appleby,
    2011).
    """
    player = torch.arange(NUM_PLAYERS, device=luck.device)
    number = luck.unsqueeze(1) + 0x9E3779B1 * (num_steps.unsqueeze(1) * NUM_PLAYERS + player) & _WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        number = (number ^ number >> shift) * factor & _WORD
    return number ^ number >> 16


class Bots:
    """Bots in some seats; in the others, whatever comes of it is to be replaced.

    Args:
        names: One of `BOTS` or None for each seat.
    """

    def __init__(self, names: tuple[str | None, ...], rules: Rules, width: int, inside: Int64[Tensor, "area"]):
        """
        Args:
            width: Of the map.
            inside: The cell of the map, y · width + x, at each position; 0, which is a wall, outside it.
        """
        device = inside.device
        self.rules, self.inside = rules, inside
        self.plan = any(name not in (None, "random") for name in names)
        self.defends = torch.tensor([name == "defender" for name in names], device=device)
        self.random_share = torch.tensor([1.0 if name == "random" else RANDOM_SHARE for name in names], device=device)
        self.quarters = torch.arange(4, device=device)
        self.forward = torch.tensor([1, width, -1, -width], device=device)
        self.turns = torch.tensor([NO_TURN, TURN_RIGHT, TURN_RIGHT, TURN_LEFT], device=device)  # to face a direction
        self.quarters_turned = torch.tensor([0, 1, 1, 3], device=device)
        self.step_to = torch.tensor(STEP_TO, device=device)
        moves, turns, tags = (torch.arange(len(names), device=device) for names in (MOVES, TURNS, TAGS))
        self.all_actions = torch.cartesian_prod(moves, turns, tags)

    def act(
        self,
        state: State,
        distances: UInt8[Tensor, "G HW HW"] | None,
        luck: Int64[Tensor, "G 4"],
        random_share: Float[Tensor, "4"] | None = None,
    ) -> Int64[Tensor, "G 4 3"]:
        """Return the actions of all seats.

        Args:
            distances: See `maps.distances`; not needed where all bots are random.
            luck: See `draw`.
            random_share: Of actions; the bots' own unless given.
        """
        share = self.random_share if random_share is None else random_share
        chance = luck >> BITS
        any_action = self.all_actions.index_select(0, (chance % NUM_ACTIONS).view(-1)).view(*luck.shape, 3)
        if distances is None:
            return any_action
        is_random = (luck & (1 << BITS) - 1) < share * (1 << BITS)
        return torch.where(is_random.unsqueeze(2), any_action, self._planned(state, distances, chance))

    def _planned(
        self, state: State, distances: UInt8[Tensor, "G HW HW"], chance: Int64[Tensor, "G 4"]
    ) -> Int64[Tensor, "G 4 3"]:
        rules, count, area = self.rules, len(distances), distances.shape[1]
        directions = state.heading.unsqueeze(2) + self.quarters & 3  # ahead, to the right, behind, to the left
        guards, to_target = self._target(state)
        here = look_up(self.inside, state.position)
        beside = here.unsqueeze(2) + look_up(self.forward, directions)
        # whoever is out is in the corner, on whose outer sides there is nothing
        index = to_target.unsqueeze(2) * area + torch.cat([beside.clamp(min=0), here.unsqueeze(2)], 2)
        index += torch.arange(count, device=index.device).view(-1, 1, 1) * (area * area)
        *steps, now = look_up(distances, index).long().split([4, 1], 2)
        steps, now = steps[0], now.squeeze(2)
        best = (steps * 4 + self.quarters).amin(2)
        wander = chance & 3
        wanders = guards & (now <= 1)
        can_wander = steps.gather(2, wander.unsqueeze(2)).squeeze(2) <= 1
        direction = torch.where(wanders, wander, best & 3)
        moves = torch.where(wanders, can_wander, (best >> 2) < now)

        ahead = rules.distances_ahead(state.position, directions)  # [G, player, direction, other]
        nearest = torch.minimum(ahead.amin(3), rules.reach(state.cells, state.position, directions))
        sees = ((ahead == nearest.unsqueeze(3)) & rules.are_opponents.unsqueeze(1)).any(3)
        aim = torch.where(sees, self.quarters, 4).amin(2)
        is_aiming = aim < 4
        facing = torch.where(is_aiming, aim, torch.where(moves, direction, 0))
        tags = is_aiming & (aim != 2) & (state.cooldown == 0)
        relative = direction - look_up(self.quarters_turned, facing) & 3
        move = torch.where(moves, look_up(self.step_to, relative), STAY)
        return torch.stack([move, look_up(self.turns, facing), tags.long()], 2)

    def _target(self, state: State) -> tuple[Bool[Tensor, "G 4"], Int64[Tensor, "G 4"]]:
        """Return whether each seat's player stays beside the flag at home, and the cell that it goes to."""

        def of_own_team(of_teams: Tensor) -> Tensor:
            return of_teams.repeat_interleave(MATES, 1)

        flags, states = flag_places(state), flag_states(state)
        own_flag, is_away = of_own_team(flags), of_own_team(states > 0)
        stand = of_own_team(state.stand)
        mate_carries = teams(state.carries).flip(2).reshape(-1, NUM_PLAYERS)
        hunts = torch.where(state.carries, (state.position == stand) & is_away, mate_carries) | self.defends
        goal = torch.where(state.carries, stand, of_own_team(flags.flip(1)))
        target = torch.where(hunts, own_flag, goal)
        return hunts & ~is_away, look_up(self.inside, target)
