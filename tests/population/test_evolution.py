"""Evolution: who copies, what is copied, how much changes."""

import math
from dataclasses import replace

import pytest
import torch

from merlin.population.evolution import EvolutionConfig, Hyperparameters, drawn, evolve, perturbed
from merlin.population.ratings import win_probability

SETTINGS = Hyperparameters({"learning_rate": 1e-3}, {"entropy_cost": 0.02, "kl_cost": 0.0}, 8, None)
SIGNS = (1,) * 8 + (-1,) * 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def copies_of(ratings, games, config=None, seed=0):
    """Return the copies of one round, and the ratings after it."""
    made, games = [], list(games)

    def copy(which):
        made.append(which)
        games[which.agent] = 0

    return made, evolve(torch.tensor(ratings).double(), games, config or EvolutionConfig(), generator(seed), copy)


def test_nobody_evolves_before_its_games_or_unless_it_would_lose():
    config = EvolutionConfig(burn_in_games=10)
    assert copies_of([0.0, 1000, 2000], [9, 9, 9], config)[0] == []
    assert copies_of([1000.0, 1000, 1140], [99, 99, 99], config)[0] == []  # 0.31
    for seed in range(20):
        made, after = copies_of([0.0, 1000, 2000], [10, 10, 9], config, seed)
        before = [0.0, 1000, 2000]
        for agent, model, chance in made:
            assert agent != 2 and agent != model
            assert (
                chance < 0.3
                and abs(chance - win_probability(*torch.tensor([before[agent], before[model]]).double())) < 1e-12
            )
            before[agent] = before[model]
        assert after.tolist() == before
        assert any(agent == 0 for agent, _, _ in made)  # everybody beats it


def test_the_threshold_is_where_it_is_said_to_be():
    for points, copies in ((146, 0), (148, 1)):
        made = copies_of([1000.0, 1000.0 + points], [64, 0])[0]
        assert [(x.agent, x.model) for x in made] == [(0, 1)] * copies


def test_models_are_drawn_uniformly_from_the_others():
    chosen = [x.model for seed in range(120) for x in copies_of([0.0, 1000, 1000, 1000], [64, 0, 0, 0], seed=seed)[0]]
    assert len(chosen) == 120
    assert all(25 < chosen.count(model) < 55 for model in (1, 2, 3))


def test_one_agent_alone_copies_nobody():
    assert copies_of([1000.0], [999]) == ([], torch.tensor([1000.0]).double())


@pytest.mark.parametrize("probability, low, high", [(0.05, 0.8, 1.2), (0.3, 0.5, 2.0), (1.0, 1.0, 1.5)])
def test_perturbations_are_as_frequent_and_as_large_as_told(probability, low, high):
    config = EvolutionConfig(perturbation_probability=probability, perturbation_low=low, perturbation_high=high)
    drawing, start = generator(1), replace_rewards(SETTINGS)
    found = [perturbed(start, config, drawing) for _ in range(150)]
    factors = torch.tensor([[x / y for x, y in zip(h.rewards, start.rewards, strict=True)] for h in found]).double()
    factors = torch.cat([factors, torch.tensor([[h.rates["learning_rate"] / 1e-3] for h in found]).double()], 1)
    changed = (factors != 1) & ((factors - 1).abs() > 1e-12)
    assert (factors >= low - 1e-9).all() and (factors <= high + 1e-9).all()
    count, deviation = factors.numel(), (probability * (1 - probability) / factors.numel()) ** 0.5
    assert abs(changed.double().mean() - probability) <= 4 * deviation + 1e-3, count
    low, high = math.log(low), math.log(high)
    middle, deviation = (low + high) / 2, (high - low) / 12**0.5  # of a uniform logarithm
    assert abs(factors[changed].log().mean() - middle) < 4 * deviation / changed.sum() ** 0.5
    assert all(h.costs["kl_cost"] == 0 for h in found)
    assert {h.tick_steps for h in found} == set(range(5, 21))
    assert start == replace_rewards(SETTINGS)  # a value: nothing of it is changed


def test_perturbation_alone_moves_numbers_neither_up_nor_down():
    """The logarithms of factors are uniform on an interval around 0: a factor and its inverse are equally likely."""
    config, drawing = EvolutionConfig(perturbation_probability=1.0), generator(2)
    start = SETTINGS._replace(rewards=(1.0, -1.0) * 20)
    found = [perturbed(start, config, drawing) for _ in range(100)]
    logs = torch.tensor([h.rewards for h in found]).double().abs().log() / math.log(2)  # of 0.5 to 2
    count = logs.numel()
    assert abs(logs.mean()) < 4 * 3**-0.5 / count**0.5
    ranks = (logs.flatten().sort().values + 1) / 2  # uniform from 0 to 1: Kolmogorov and Smirnov's distance
    distance = (ranks - (torch.arange(count) + 0.5) / count).abs().max()
    assert distance < 1.95 / count**0.5  # of 1 in 1,000
    many = start
    for _ in range(200):  # of a lineage
        many = perturbed(many, config, drawing)
    walked = torch.tensor(many.rewards).double().abs().log() / math.log(2)
    assert abs(walked.mean()) < 4 * (200 / 3 / 40) ** 0.5 < 6
    drift = torch.linspace(0.5, 2, 100_001).double().log().mean() / math.log(2)
    assert 200 * drift > 40  # what uniform factors would have done


def test_initial_draws_are_symmetric_around_the_settings():
    found = [drawn(SETTINGS, None, 3.0, generator(seed)) for seed in range(300)]
    logs = torch.tensor([[h.rates["learning_rate"] / 1e-3, h.costs["entropy_cost"] / 0.02] for h in found]).log()
    logs = logs.double() / math.log(3)
    assert (logs.abs() <= 1 + 1e-6).all() and abs(logs.mean()) < 4 * 3**-0.5 / 600**0.5


def replace_rewards(settings):
    return settings._replace(rewards=tuple(0.5 * sign for sign in SIGNS))


def test_internal_rewards_begin_with_their_signs_between_a_tenth_and_one():
    found = [drawn(SETTINGS, SIGNS, 2.0, generator(seed)) for seed in range(50)]
    rewards = torch.tensor([h.rewards for h in found])
    assert (rewards * torch.tensor(SIGNS) >= 0.1).all() and (rewards.abs() <= 1).all()
    assert abs(rewards.abs().log10().mean() + 0.5) < 0.05  # log-uniform
    assert all(0.5e-3 <= h.rates["learning_rate"] <= 2e-3 for h in found)
    assert len({h.rates["learning_rate"] for h in found}) == 50


def test_internal_rewards_begin_at_those_of_the_task_where_it_has_them():
    found = [drawn(SETTINGS._replace(rewards=(2.0, 0.0, -1.0)), (1, 1, -1), 2.0, generator(seed)) for seed in range(50)]
    high, none, low = torch.tensor([h.rewards for h in found]).unbind(1)
    assert ((high >= 1) & (high <= 4)).all() and not none.any() and ((low <= -0.5) & (low >= -2)).all()
    assert len({*high.tolist()}) == 50


def test_without_a_spread_an_agent_begins_as_configured_and_draws_nothing():
    plain, drawing = SETTINGS._replace(tick_steps=None), generator(3)
    assert drawn(plain, None, 1.0, drawing) == plain
    assert torch.equal(drawing.get_state(), generator(3).get_state())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="perturbation_low must be above 0 and at most 1"):
        replace(EvolutionConfig(), perturbation_low=1.5)
