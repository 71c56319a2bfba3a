"""Games of bots against bots."""

from functools import lru_cache
from typing import Any, NamedTuple

from .bots import PAIRS
from .environment import CaptureTheFlag
from .rules import EVENTS, NUM_PLAYERS


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
