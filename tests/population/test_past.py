"""Past selves: agents as they were, which play and are rated, and never learn or evolve."""

import pytest
import torch

from merlin.errors import MerlinError
from merlin.population.population import PopulationConfig
from merlin.training.plain import from_plain, to_plain
from tests.population.test_population import make, same, tensors

PAST = {"past_selves": 2, "past_every": 6, "past_games": 0.5}


def weights(participant):
    return {name: x.clone() for name, x in participant.agent.state_dict().items()}


def test_past_selves_stay_as_they_were_and_the_oldest_makes_room():
    population = make(count=3, games=8, evolves=False, **PAST)
    assert not population.arena.agent_of.ge(3).any()  # nobody has a past yet
    kept, places, frozen_at = {}, [], []
    for _ in range(12):
        before, games = population.ratings.clone(), population.games_played
        happened = population.update()
        for place, was in kept.items():
            if place != happened.frozen:
                assert same(weights(population.past[place]), was)
        if happened.frozen is None:
            torch.testing.assert_close(population.ratings.sum(), before.sum())
            assert population.games_played // 6 == games // 6
            continue
        place = population.past[happened.frozen]
        member = population.members[place.of]
        kept[happened.frozen] = weights(place)
        assert same(weights(member), kept[happened.frozen])
        assert place.reward_weights.tolist() == member.reward_weights.tolist()
        assert population.ratings[3 + happened.frozen] == population.ratings[place.of]
        stored = [
            {x.untyped_storage().data_ptr() for x in tensors(dict(w.agent.state_dict()))} for w in (place, member)
        ]
        assert len(stored[0]) > 5 and not stored[0] & stored[1]
        places.append(happened.frozen)
        frozen_at.append((place.of, place.env_steps == population.env_steps))
    assert places == [i % 2 for i in range(len(places))] and len(places) > 3
    assert frozen_at == [(i % 3, True) for i in range(len(places))]  # agents take turns
    assert len(population.participants) == 5  # never more
    assert any(not same(weights(member), kept[0]) for member in population.members)  # others learn


def test_they_take_a_team_in_their_part_of_games_and_are_rated():
    population = make(count=4, games=40, evolves=False, **PAST)
    while population.num_frozen < 2:
        population.update()
    seats = torch.cat([population._with_others(torch.arange(4).repeat(100, 1)) for _ in range(5)]).view(-1, 2, 2)
    are_past = (seats == 4) | (seats == 5)
    assert torch.equal(are_past[..., 0], are_past[..., 1]) and not are_past.all(2).all(1).any()  # one team or none
    assert abs(are_past.any(2).any(1).double().mean() - 0.5) < 4 * (0.25 / 500) ** 0.5
    assert are_past.any(2).any(0).all() and (seats[are_past] == 4).any() and (seats[are_past] == 5).any()
    population.ratings[5] = 9000.0  # nobody's equal
    seats = population._with_others(torch.arange(4).repeat(200, 1))
    assert 0.1 * (seats == 4).sum() > (seats == 5).sum()  # exp(−½ · 3²) as often
    before, steps = population.ratings.clone(), population.env_steps
    played = set()
    for _ in range(4):
        happened = population.update()
        played |= set(happened.results.teams.flatten().tolist())
    assert played & {4, 5} and not torch.equal(before[4:6], population.ratings[4:6])
    assert population.env_steps - steps < 4 * 4 * 160  # their rows are nobody's steps


def test_games_of_one_who_made_room_count_for_nobody():
    population = make(count=2, games=4, evolves=False, past_selves=1, past_every=1, past_games=1.0)
    while population.num_frozen < 2:
        happened = population.update()
    assert happened.frozen == 0
    running, place = ~population.arena.timestep.is_first, population.past[0]
    mine = torch.zeros_like(running).index_fill(0, place.rows, True)
    assert (running & mine).any() and torch.equal(population.arena.is_stale, running & mine)
    dealt = ~running & mine
    assert all((x[~dealt[place.rows]] == 0).all() for x in tensors(place.state.agent_state))


def test_a_population_with_a_past_goes_on_bit_for_bit():
    settings = {"count": 2, "evolution_threshold": 1.0, "burn_in_games": 3, "bots": "second", **PAST, "past_every": 2}
    whole, first = make(**settings), make(**settings)
    for _ in range(7):
        whole.update()
        first.update()
    assert first.num_frozen > 1 and any(len(place.rows) for place in first.past)
    state, networks = to_plain(first.state_dict()), [weights(who) for who in first.participants]
    second = make(**settings)
    for who, own in zip(second.participants, networks, strict=True):
        who.agent.load_state_dict(own)
    assert second.load_state_dict(from_plain(state, state))
    for _ in range(4):
        one, other = whole.update(), second.update()
        assert one.frozen == other.frozen and torch.equal(one.seats, other.seats)
        assert same(tuple(one.results), tuple(other.results))
    assert same(to_plain(whole.state_dict()), to_plain(second.state_dict()))


def test_bots_and_past_selves_share_the_games():
    with pytest.raises(MerlinError, match=r"bot_games \+ past_games must be at most 1, but is 1.25"):
        PopulationConfig(bots="mixed", past_selves=1, bot_games=1.0)
