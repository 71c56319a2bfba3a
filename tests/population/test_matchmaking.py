"""Deals: the deck, the weights, and too few agents."""

from collections import Counter

import pytest
import torch

from merlin.population.matchmaking import Matchmaker, match_weights


def matchmaker(num_agents, seed=0, num_seats=4):
    return Matchmaker(num_agents, num_seats, torch.Generator().manual_seed(seed))


def test_all_are_first_equally_often(monkeypatch):
    dealer, firsts = matchmaker(7), []
    seats_of = dealer._seats
    monkeypatch.setattr(dealer, "_seats", lambda first, ratings: firsts.append(first) or seats_of(first, ratings))
    ratings = torch.linspace(0, 3000, 7).double()  # so unequal that nobody would choose some of them
    for games in (5, 9, 1, 13):
        dealer.deal(games, ratings)
    assert Counter(firsts) == dict.fromkeys(range(7), 4)


@pytest.mark.parametrize("num_agents", [4, 5, 30])
def test_nobody_plays_twice_in_a_game(num_agents):
    seats = matchmaker(num_agents).deal(200, torch.full((num_agents,), 1000.0).double())
    assert seats.shape == (200, 4)
    assert all(len(set(game)) == 4 for game in seats.tolist())


@pytest.mark.parametrize("num_agents, counts", [(1, {4}), (2, {2}), (3, {1, 2})])
def test_few_agents_take_turns(num_agents, counts):
    seats = matchmaker(num_agents).deal(120, torch.full((num_agents,), 1000.0).double())
    games = [Counter(game) for game in seats.tolist()]
    assert {count for game in games for count in game.values()} == counts
    assert all(len(game) == num_agents for game in games)
    assert set(Counter(seats.flatten().tolist()).values()) == {480 // num_agents}
    pairs = {tuple(sorted(game[:2])) for game in seats.tolist()}  # seats are shuffled: teams differ
    assert len(pairs) == {1: 1, 2: 3, 3: 6}[num_agents]


def test_weights_follow_the_definition_and_the_draws_follow_them():
    ratings = torch.tensor([1000.0, 1000, 1100, 1400, 800], dtype=torch.float64)
    chance = [1 / (1 + 10 ** ((x - 1000) / 400)) for x in ratings.tolist()]
    expected = torch.tensor([0.0] + [2.718281828459045 ** (-0.5 * ((p - 0.5) * 6) ** 2) for p in chance[1:]]).double()
    weights = match_weights(ratings, 0)
    torch.testing.assert_close(weights, expected)
    dealer = matchmaker(5, num_seats=2)
    drawn = torch.stack([dealer._seats(0, ratings) for _ in range(600)])
    counts = torch.tensor([(drawn == j).sum() for j in range(5)]) / 600
    torch.testing.assert_close(counts[1:].double(), (expected / expected.sum())[1:], rtol=0, atol=0.07)


def test_seats_are_shuffled():
    drawn = torch.stack([matchmaker(5, seed)._seats(3, torch.ones(5).double()) for seed in range(400)])
    places = (drawn == 3).double().mean(0)
    torch.testing.assert_close(places, torch.full((4,), 0.25).double(), rtol=0, atol=0.08)


def test_a_matchmaker_goes_on_where_it_was():
    dealer, ratings = matchmaker(5), torch.full((5,), 1000.0).double()
    dealer.deal(3, ratings)
    other = matchmaker(5, seed=9)
    other.load_state_dict(dealer.state_dict())
    other.generator.set_state(dealer.generator.get_state())
    assert torch.equal(dealer.deal(11, ratings), other.deal(11, ratings))
