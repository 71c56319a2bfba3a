"""Who plays with and against whom. Jaderberg et al. 2019, arXiv:1807.01281, supplement.

Each agent is the first player of equally many games: agents are dealt from a shuffled deck, which is shuffled anew once
it is empty. The other seats go to other agents j, without replacement, each with a probability proportional to

    exp(−½ ((P(first beats j) − ½) / (1/6))²)

so that games are mostly among equals. Then the seats are shuffled: a first player's mate is anyone of the others.

In games of n players, nobody plays twice where there are n agents or more. Fewer take turns: all others once, as above,
then again from the first player on, so that of three agents the first one has two of four seats, and of two each has
two. All play equally much then.

Axes: G games, N seats of a game, P agents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from merlin.population.ratings import win_probability

EQUALITY = 1 / 6
"""Standard deviation of the win probability, around ½, of those who are matched."""


def match_weights(ratings: Float64[Tensor, "P"], first: int) -> Float64[Tensor, "P"]:
    """Return how readily each agent is matched with the first one, who is not matched with itself."""
    return equality(ratings[first].expand_as(ratings), ratings).index_fill(0, torch.tensor([first]), 0.0)


def equality(rating: Float64[Tensor, "*batch"], other: Float64[Tensor, "*batch"]) -> Float64[Tensor, "*batch"]:
    """Return how equal ratings are, 1 where they are the same."""
    return torch.exp(-0.5 * ((win_probability(rating, other) - 0.5) / EQUALITY).square())


class Matchmaker:
    """Deals the seats of games.

    Args:
        generator: Of what is drawn, on the CPU.
    """

    def __init__(self, num_agents: int, num_seats: int, generator: torch.Generator) -> None:
        self.num_agents, self.num_seats, self.generator = num_agents, num_seats, generator
        self._deck: list[int] = []

    def deal(self, num_games: int, ratings: Float64[Tensor, "P"]) -> Int64[Tensor, "G N"]:
        """Return the agent in each seat of new games."""
        return torch.stack([self._seats(self._first(), ratings) for _ in range(num_games)])

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of the deck; the generator is its owner's to save."""
        return {"deck": list(self._deck)}

    def load_state_dict(self, state: dict[str, Sequence[int]]) -> None:
        """Go on from a `state_dict`."""
        self._deck = list(state["deck"])

    def _first(self) -> int:
        if not self._deck:
            self._deck = torch.randperm(self.num_agents, generator=self.generator).tolist()
        return self._deck.pop()

    def _seats(self, first: int, ratings: Float64[Tensor, "P"]) -> Int64[Tensor, "N"]:
        others = min(self.num_agents, self.num_seats) - 1
        chosen = torch.tensor([first])
        if others:
            drawn = torch.multinomial(match_weights(ratings, first), others, generator=self.generator)
            chosen = torch.cat([chosen, drawn])
        seats = chosen.repeat(-(-self.num_seats // len(chosen)))[: self.num_seats]
        return seats[torch.randperm(self.num_seats, generator=self.generator)]
