"""Ratings: identities, closed forms, and ratings found again in simulated games."""

import math

import pytest
import torch

from merlin.population.ratings import ANCHOR_RATING, fit, fit_with_intervals, updated, win_probability


def games(ratings, count, seed=0, members=2):
    """Return random teams of different players and scores drawn from the model, draws among them."""
    generator = torch.Generator().manual_seed(seed)
    seats = torch.rand(count, len(ratings), generator=generator).argsort(1)[:, : 2 * members]
    teams = seats.view(count, 2, members)
    first, second = ratings[teams].mean(2).unbind(1)
    halves = torch.rand(count, 2, generator=generator, dtype=torch.float64) < win_probability(first, second)[:, None]
    return teams, halves.double().mean(1)  # of expectation P, and ½ often


def test_win_probabilities_of_two_sum_to_one_and_follow_the_scale():
    ratings = 3000 * torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, second = ratings.unbind(1)
    total = win_probability(first, second) + win_probability(second, first)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    ten_to_one = win_probability(torch.tensor(1400.0).double(), torch.tensor(1000.0).double())
    assert math.isclose(ten_to_one, 10 / 11)
    assert math.isclose(win_probability(*torch.tensor([853.0, 1000.0]).double()), 0.3, abs_tol=3e-4)


def test_updates_follow_the_definition_and_keep_the_sum():
    ratings = torch.tensor([1000.0, 1100, 900, 1300, 700], dtype=torch.float64)
    teams, scores = games(ratings, 200, seed=2)
    after = updated(ratings, teams, scores, 16.0)
    expected = ratings.tolist()
    for ((a, b), (c, d)), score in zip(teams.tolist(), scores.tolist(), strict=True):
        chance = 1 / (1 + 10 ** ((expected[c] + expected[d] - expected[a] - expected[b]) / 2 / 400))
        for player, sign in ((a, 1), (b, 1), (c, -1), (d, -1)):
            expected[player] += sign * 16 * (score - chance)
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64))
    assert math.isclose(after.sum(), ratings.sum(), rel_tol=1e-12)
    assert not torch.equal(after, ratings) and ratings[0] == 1000


def test_a_player_in_both_teams_gains_nothing_by_itself():
    ratings = torch.tensor([1000.0, 1200], dtype=torch.float64)
    assert torch.equal(updated(ratings, torch.tensor([[[0, 1], [1, 0]]]), torch.ones(1).double(), 32.0), ratings)


@pytest.mark.parametrize("members", [1, 2])
def test_a_fit_recovers_the_ratings_that_games_were_drawn_from(members):
    true = torch.tensor([500.0, 620, 800, 450, 1000, 700], dtype=torch.float64)
    teams, scores = games(true, 4000, members=members)
    generator = torch.Generator().manual_seed(0)
    found = fit_with_intervals(teams, scores, len(true), 0, generator, resamples=40)
    assert found.ratings[0] == ANCHOR_RATING
    torch.testing.assert_close(found.ratings, true, rtol=0, atol=60)
    assert ((found.low <= found.ratings) & (found.ratings <= found.high)).all()
    assert ((found.high - found.low)[1:] > 5).all() and found.low[0] == found.high[0] == ANCHOR_RATING


def test_a_fit_to_one_pair_is_the_closed_form_and_never_losing_stays_finite():
    """97% wins and 3% draws against the anchor are 400 · log10(0.985 / 0.015) = +727 points."""
    teams = torch.tensor([[[1], [0]]]).expand(10_000, 2, 1)
    scores = torch.ones(10_000, dtype=torch.float64)
    scores[:300] = 0.5
    assert math.isclose(fit(teams, scores, 2)[1], 500 + 400 * math.log10(0.985 / 0.015), abs_tol=3)
    always = fit(teams[:256], scores[-256:], 2)[1]
    assert 1300 < always < 2500


def test_swapping_the_sides_changes_nothing():
    true = torch.tensor([500.0, 900, 700, 800], dtype=torch.float64)
    teams, scores = games(true, 300)
    torch.testing.assert_close(fit(teams, scores, 4), fit(teams.flip(1), 1 - scores, 4))
