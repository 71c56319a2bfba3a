"""Elo ratings of players of team games: while games are played, and refitted to many games at once.

    P(A beats B) = 1 / (1 + 10^((rating_B − rating_A) / 400)),   the rating of a team being the mean of its members'

Elo 1978. Axes: G games, P players, M members of a team.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

SPREAD = 400.0
"""Points that make the better one ten times as likely to win."""
INITIAL_RATING = 1000.0
ANCHOR_RATING = 500.0
"""Of a random player, as in the figures of Jaderberg et al. 2019."""
PRIOR_DEVIATION = 800.0
"""Points. A weak prior around the mean of all keeps the rating of a player finite who never lost; 100 games outweigh it
by far."""
_UNIT = math.log(10) / SPREAD


def win_probability(rating: Float64[Tensor, "*batch"], other: Float64[Tensor, "*batch"]) -> Float64[Tensor, "*batch"]:
    """Return the probability that who has `rating` beats who has `other`, a draw counting as half a win."""
    return torch.sigmoid(_UNIT * (rating - other))


def updated(
    ratings: Float64[Tensor, "P"], teams: Int[Tensor, "G 2 M"], scores: Float64[Tensor, "G"], step_size: float
) -> Float64[Tensor, "P"]:
    """Return the ratings after games, taken in as if one were played after another.

        change = step_size · (score − P(first team beats second));   each first member += change, each second −= change

    The sum of ratings stays as it is. A player in several seats gets the change of each.

    Args:
        scores: 1 where the first team won, 0 where the second did, 1/2 after a draw.
        step_size: K, points.
    """
    ratings = ratings.clone()
    for players, score in zip(teams, scores, strict=True):
        first, second = ratings[players].mean(1).unbind()
        change = (step_size * (score - win_probability(first, second))).expand(players.shape[1])
        ratings.index_add_(0, players.flatten(), torch.cat([change, -change]))
    return ratings


class Fit(NamedTuple):
    """Ratings that explain games best, with the bounds of their 95% intervals."""

    ratings: Float64[Tensor, "P"]
    low: Float64[Tensor, "P"]
    high: Float64[Tensor, "P"]


def fit(
    teams: Int[Tensor, "G 2 M"], scores: Float64[Tensor, "G"], num_players: int, anchor: int = 0
) -> Float64[Tensor, "P"]:
    """Return the ratings under which the games' scores are most likely, that of `anchor` being `ANCHOR_RATING`.

    Maximises Σ score · log P + (1 − score) · log(1 − P), the Bradley-Terry model with draws as half a win, by Newton's
    method, under the weak prior of `PRIOR_DEVIATION`.
    """
    sides = torch.nn.functional.one_hot(teams.long(), num_players).double().mean(2)
    difference = _UNIT * (sides[:, 0] - sides[:, 1])  # of which the logit of P is the product with the ratings
    ratings = torch.zeros(num_players, dtype=torch.float64)
    prior = torch.eye(num_players, dtype=torch.float64) / PRIOR_DEVIATION**2
    for _ in range(100):
        chance = torch.sigmoid(difference @ ratings)
        gradient = difference.T @ (scores.double() - chance) - prior @ ratings
        curvature = (difference.T * (chance * (1 - chance))) @ difference + prior
        step = torch.linalg.solve(curvature, gradient)
        ratings = ratings + step * min(1.0, SPREAD / step.abs().max().clamp(min=1e-12).item())  # or it may overshoot
        if step.abs().max() < 1e-6:
            break
    return ratings - ratings[anchor] + ANCHOR_RATING


def fit_with_intervals(
    teams: Int[Tensor, "G 2 M"],
    scores: Float64[Tensor, "G"],
    num_players: int,
    anchor: int,
    generator: torch.Generator,
    resamples: int = 200,
) -> Fit:
    """Return `fit` and its intervals, from fits to games drawn from these with replacement (Efron 1979)."""
    draws = torch.randint(len(teams), (resamples, len(teams)), generator=generator)
    fits = torch.stack([fit(teams[games], scores[games], num_players, anchor) for games in draws])
    low, high = torch.quantile(fits, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Fit(fit(teams, scores, num_players, anchor), low, high)
