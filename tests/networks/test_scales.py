"""Running scales against moments of all rows, units of returns that leave V alone, and learning in any units."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from jaxtyping import TypeCheckError
from torch import nn

from merlin.agents.learner import LearnerConfig, Window
from merlin.errors import MerlinError
from merlin.networks.scales import MOST, ReturnScale, RunningMoments
from merlin.networks.vectors import VectorScale
from tests.agents.helpers import act, make_agent

AGENTS = ("rl-lstm", "rl-mem", "merlin", "ftw")


def everywhere(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def test_moments_of_windows_are_those_of_all_their_rows():
    torch.manual_seed(0)
    moments, seen = RunningMoments(3), []
    for length in (1, 4, 2, 9):
        x = torch.randn(length, 5, 3) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -1e4])
        counts = torch.rand(length, 5) < 0.7
        x[~counts] = torch.nan  # what does not count may hold anything
        moments.update(x, counts)
        seen.append(x[counts])
        rows = torch.cat(seen).double()
        torch.testing.assert_close(moments.mean.double(), rows.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moments.std.double(), rows.std(0, correction=0), rtol=1e-6, atol=1e-9)


def test_rows_beyond_the_horizon_are_forgotten():
    moments = RunningMoments(1, horizon=100.0)
    moments.update(torch.zeros(1000, 1), everywhere(1000))
    for _ in range(20):
        moments.update(torch.ones(50, 1), everywhere(50))
    assert moments.mean > 0.99


def test_what_never_changes_is_only_centred_and_a_leap_is_clipped():
    moments = RunningMoments(2)
    moments.update(torch.tensor([[7.0, 1.0], [7.0, -1.0]]), everywhere(2))
    standardized = moments.standardize(torch.tensor([[7.0, 1e9], [7.5, 0.0]]))
    assert standardized.tolist() == [[0.0, MOST], [0.5, 0.0]]
    torch.testing.assert_close(moments.restore(torch.tensor([[0.0, 1.0]])), torch.tensor([[7.0, 1.0]]))


def test_before_any_row_every_number_is_taken_for_its_mean():
    """What is done before anything is known depends on no unit, and huge numbers reach no network."""
    moments, nothing = RunningMoments(2), torch.full((3, 2), torch.nan)
    moments.update(nothing, ~everywhere(3))
    assert moments.standardize(torch.tensor([0.5, -2e9])).tolist() == [0, 0]


def test_new_units_of_returns_leave_values_as_they_are():
    torch.manual_seed(0)
    scale, value_head, advantage_head = ReturnScale(running=True), nn.Linear(4, 1), nn.Linear(4, 1)
    heads: list[tuple[nn.Module, bool]] = [(value_head, True), (advantage_head, False)]
    features, window = torch.randn(50, 4), (torch.randn(6, 3), 3 + 5 * torch.randn(6, 3), everywhere(6, 3))
    scale.update(*window, heads)
    value = scale.value(value_head(features))
    advantage = scale.unit * advantage_head(features)
    weight = value_head.weight.clone()
    scale.update(window[0], -70 + 40 * window[1], window[2], heads)
    torch.testing.assert_close(scale.value(value_head(features)), value, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scale.unit * advantage_head(features), advantage, rtol=1e-4, atol=1e-3)
    assert (value_head.weight.abs() < 0.1 * weight.abs()).all()  # else nothing was tested


def test_the_unit_of_rewards_is_the_size_of_those_that_are_not_zero():
    scale, returns = ReturnScale(running=True), torch.zeros(2, 2)
    scale.update(torch.zeros(2, 2), returns, everywhere(2, 2), [])
    assert scale.reward(torch.tensor(0.0)) == 0 and scale.unit == 1.0  # no reward yet
    scale.update(torch.tensor([[0.0, 4.0], [-3.0, 0.0]]), returns, everywhere(2, 2), [])
    torch.testing.assert_close(scale.reward(torch.tensor(5.0)), torch.tensor(5.0 / 12.5**0.5))
    torch.testing.assert_close(torch.as_tensor(scale.unit), torch.tensor(0.1 * 12.5**0.5))  # returns all alike
    assert scale.reward(torch.tensor(1e6)) == MOST


def test_a_scale_that_does_not_run_changes_nothing():
    scale = ReturnScale()
    scale.update(torch.ones(2, 2), torch.ones(2, 2), everywhere(2, 2), [])
    assert not scale.state_dict() and not scale.is_new and scale.unit == 1.0
    assert scale.reward(torch.tensor(8.0)) == 8.0 and scale.value(torch.tensor(8.0)) == 8.0


def learn(name: str, place_unit: float = 1.0, reward_unit: float = 1.0, **settings):
    """Return an agent that learnt from some windows of one stream of experience, in these units."""
    agent = make_agent(name, running_scales=True, **settings)
    learner = agent.learner(LearnerConfig(learning_rate=1e-2), torch.Generator().manual_seed(0))
    for seed in range(5):
        torch.manual_seed(seed)
        unroll, state, _, _ = act(agent, torch.rand(8, 6) < 0.2, None, seed, place_unit, reward_unit)
        following = torch.cat([unroll.value[1:], unroll.value[-1:]])
        learner.update(Window(unroll._replace(next_value=following), state), left=1.0)
    return agent


UNITS = [(64.0, 1000.0, False), (0.01, 0.001, False), (64.0, 1e-6, True)]


@pytest.mark.parametrize(
    ("name", "place_unit", "reward_unit", "normalizes"),
    [
        (name, *units)
        for number, name in enumerate([*AGENTS, "merlin-policy-encoder"])
        for units in (UNITS[0], UNITS[1 + number % 2])
    ],
)
def test_learning_is_the_same_in_any_units(name: str, place_unit: float, reward_unit: float, normalizes: bool):
    agent = learn(name, normalize_advantages=normalizes)
    other = learn(name, place_unit, reward_unit, normalize_advantages=normalizes)
    weights = dict(agent.named_parameters())
    for key, x in other.named_parameters():
        torch.testing.assert_close(x, weights[key], rtol=1e-3, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    start = make_agent(name, running_scales=True)
    assert any((x - weights[key]).abs().max() > 0.02 for key, x in start.named_parameters())


@pytest.mark.parametrize("name", AGENTS)
def test_without_running_scales_units_matter(name: str):
    agents = [make_agent(name, normalize_advantages=False) for _ in range(2)]
    for agent, unit in zip(agents, (1.0, 64.0), strict=True):
        unroll, state, _, _ = act(agent, torch.rand(8, 6) < 0.2, place_unit=unit)
        learner = agent.learner(LearnerConfig(learning_rate=1e-2), torch.Generator().manual_seed(0))
        learner.update(Window(unroll, state), left=1.0)
    first, second = (list(agent.parameters()) for agent in agents)
    assert any((x - y).abs().max() > 0.01 for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("name", AGENTS)
def test_a_first_window_is_for_the_scales_alone(name: str):
    agent = make_agent(name, running_scales=True)
    learner = agent.learner(LearnerConfig(), torch.Generator().manual_seed(0))
    unroll, state, _, _ = act(agent, torch.rand(8, 6) < 0.2)
    before = {key: x.clone() for key, x in agent.named_parameters()}
    assert agent.scales_are_new
    assert learner.update(Window(unroll, state), left=1.0) == {}
    assert all(torch.equal(x, before[key]) for key, x in agent.named_parameters()) and not agent.scales_are_new
    unroll, state, _, _ = act(agent, torch.rand(8, 6) < 0.2, seed=1)
    assert learner.update(Window(unroll, state), left=1.0)
    assert not all(torch.equal(x, before[key]) for key, x in agent.named_parameters())


@pytest.mark.parametrize("name", [*AGENTS, "merlin-policy-encoder"])
def test_acting_and_learning_agree_in_the_units_of_the_window(name: str):
    agent = learn(name, place_unit=30.0, reward_unit=100.0)
    unroll, state, _, _ = act(agent, torch.rand(8, 6) < 0.2, None, 3, 30.0, 100.0)
    activations, _ = agent.scan(unroll, state, *agent.action_codes(unroll, state))
    parameters, value = agent.heads(activations, unroll.observation)
    torch.testing.assert_close(agent.actions.log_prob(parameters, unroll.action), unroll.log_prob)
    torch.testing.assert_close(value, unroll.value, rtol=1e-4, atol=1e-3)


def test_what_is_decoded_is_in_the_units_of_the_observation():
    agent = make_agent("merlin", running_scales=True)
    unroll, _, _, _ = act(agent, torch.rand(8, 6) < 0.2)
    unroll.observation["place"].mul_(50.0).add_(300.0)
    agent.update_scales(unroll)
    decoder = agent.predictor.decoder
    assert isinstance(decoder, nn.Module)
    mode = decoder.mode({**decoder(torch.zeros(1, 6)), "place": torch.zeros(1, 3)})["place"]
    np.testing.assert_allclose(mode[0], unroll.observation["place"].flatten(0, 1).mean(0), rtol=1e-4)
    assert replace(agent.config, running_scales=False) != agent.config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_counted_on_in_a_model_of_few_digits(dtype):
    moments = nn.Sequential(RunningMoments(1)).to(dtype)[0]
    assert isinstance(moments, RunningMoments) and moments.mean.dtype == torch.float32  # which loses nothing
    for place in (997.0, 1003.0) * 40:  # 80,000 rows, more than float16 counts
        moments.update(torch.full((1000, 1), place), everywhere(1000))
    assert moments.rows == 80_000 and moments.centre == pytest.approx(1000) and moments.variance == pytest.approx(9)
    scale = nn.Sequential(ReturnScale(running=True)).to(dtype)[0]
    assert isinstance(scale, ReturnScale)
    for _ in range(80):
        scale.update(torch.full((1000, 1), 3.0), torch.zeros(1000, 1), everywhere(1000, 1), [])
    assert scale.reward_rows == 80_000 and scale.reward_square == pytest.approx(9) and scale.per_reward.dtype == dtype


@pytest.mark.parametrize("shape, counts", [((4, 5, 3), (4, 1)), ((4, 1), (4,)), ((4, 3), (4, 3)), ((4, 2), (4,))])
def test_rows_of_another_shape_are_refused(shape, counts):
    moments = RunningMoments(3)
    with pytest.raises((MerlinError, TypeCheckError), match=r"rows must have the shape|Type-check error"):
        moments.update(torch.ones(shape), everywhere(*counts))
    assert moments.rows == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_agent_of_another_type_sees_what_changes_little_far_from_zero(dtype):
    """Of 1000 and 1001, which are one number of bfloat16."""
    scale = VectorScale(Box(-np.inf, np.inf, (1,)), running=True).to(dtype)
    values = torch.tensor([[1000.0], [1001.0]])
    scale.update(values, torch.ones(2, dtype=torch.bool))
    found = scale(values)
    assert found.dtype == dtype and found.flatten().tolist() == [-1, 1]
    assert scale.restore(found).flatten().tolist() == [1000, 1001]
