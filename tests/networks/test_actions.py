import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch.distributions import Categorical, Normal

from merlin.errors import MerlinError
from merlin.networks.actions import LOG_STD_CENTRE, LOG_STD_REACH, make_action_distribution

SPACES = {
    "discrete": Discrete(5),
    "discrete_start": Discrete(3, start=-1),
    "multi_discrete": MultiDiscrete([3, 4, 2]),
    "multi_discrete_equal": MultiDiscrete([3, 3], start=[2, 5]),
    "box": Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64),
    "box_unbounded": Box(-np.inf, np.inf, (3,)),
    "box_matrix": Box(-1.0, 1.0, (2, 3)),
}


@pytest.fixture(params=SPACES)
def action_space(request) -> gymnasium.Space:
    return SPACES[request.param]


def reference(space: gymnasium.Space, parameters: torch.Tensor) -> list[Categorical] | Normal:
    """The same distribution in torch.distributions, over zero-based categories or flat actions."""
    if isinstance(space, Box):
        bounded = np.isfinite(space.low).all()
        low, high = (torch.as_tensor(b.reshape(-1)).float() for b in (space.low, space.high))
        centre, half = ((low + high) / 2, (high - low) / 2) if bounded else (torch.tensor(0.0), torch.tensor(1.0))
        mean, log_std = parameters.chunk(2, -1)
        return Normal(
            centre + half * mean, half * (LOG_STD_CENTRE + LOG_STD_REACH * (log_std / LOG_STD_REACH).tanh()).exp()
        )
    sizes = [space.n] if isinstance(space, Discrete) else space.nvec.tolist()
    return [Categorical(logits=logits) for logits in parameters.split([int(k) for k in sizes], dim=-1)]


def test_log_prob_and_entropy_equal_torch_distributions(action_space):
    distribution = make_action_distribution(action_space)
    parameters = torch.randn(4, 3, distribution.num_parameters)
    action = distribution.sample(parameters)
    expected = reference(action_space, parameters)
    if isinstance(action_space, Box):
        flat = action.reshape(4, 3, -1)
        log_prob, entropy = expected.log_prob(flat).sum(-1), expected.entropy().sum(-1)
    else:
        zero_based = (action - torch.as_tensor(action_space.start)).reshape(4, 3, -1)
        log_prob = sum(part.log_prob(zero_based[..., i]) for i, part in enumerate(expected))
        entropy = sum(part.entropy() for part in expected)
        torch.testing.assert_close(distribution.log_probs(parameters), torch.cat([p.logits for p in expected], -1))
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob)
    torch.testing.assert_close(distribution.entropy(parameters), entropy)


def test_actions_fit_the_space(action_space):
    distribution = make_action_distribution(action_space)
    parameters = torch.randn(4, 3, distribution.num_parameters)
    for action in (distribution.sample(parameters), distribution.mode(parameters)):
        assert action.shape == (4, 3, *action_space.shape) == (4, 3, *distribution.shape)
        assert action.dtype == distribution.dtype and not action.requires_grad
        if not isinstance(action_space, Box):
            assert all(action_space.contains(one.numpy()) for one in action.flatten(0, 1))
    encoding = distribution.encode(action)
    assert encoding.shape == (4, 3, distribution.encoding_size) and encoding.dtype == torch.float32
    torch.testing.assert_close(distribution.encode(action[1, 2]), encoding[1, 2])


@pytest.mark.parametrize("name", ["discrete", "discrete_start", "multi_discrete", "multi_discrete_equal"])
def test_samples_have_the_right_frequencies(name):
    distribution = make_action_distribution(SPACES[name])
    parameters = torch.randn(distribution.num_parameters)
    generator = torch.Generator().manual_seed(1)
    actions = distribution.sample(parameters.expand(40_000, -1), generator)
    frequencies = distribution.encode(actions).mean(0)
    torch.testing.assert_close(frequencies, distribution.log_probs(parameters).exp(), atol=0.01, rtol=0)


def test_gaussian_samples_have_the_right_moments():
    distribution = make_action_distribution(SPACES["box"])
    parameters = torch.randn(distribution.num_parameters)
    actions = distribution.sample(parameters.expand(40_000, -1), torch.Generator().manual_seed(1))
    expected = reference(SPACES["box"], parameters)
    torch.testing.assert_close(actions.mean(0), expected.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(actions.std(0), expected.stddev, atol=0, rtol=0.02)


def test_sampling_uses_the_generator_alone(action_space):
    distribution = make_action_distribution(action_space)
    parameters = torch.randn(64, distribution.num_parameters)
    before = torch.get_rng_state()
    first, same, other = (distribution.sample(parameters, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_mode_is_the_likeliest(action_space):
    distribution = make_action_distribution(action_space)
    parameters = torch.randn(6, distribution.num_parameters)
    best = distribution.log_prob(parameters, distribution.mode(parameters))
    for seed in range(20):
        action = distribution.sample(parameters, torch.Generator().manual_seed(seed))
        assert (distribution.log_prob(parameters, action) <= best + 1e-6).all()


def test_box_actions_are_encoded_by_their_bounds():
    encode = make_action_distribution(SPACES["box"]).encode
    torch.testing.assert_close(
        encode(torch.tensor([[-2.0, 0.0], [2.0, 10.0], [0.0, 7.5]])),
        torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]]),
    )
    actions = torch.randn(4, 3)
    torch.testing.assert_close(make_action_distribution(SPACES["box_unbounded"]).encode(actions), actions)


def test_log_std_stays_bounded():
    distribution = make_action_distribution(Box(-1.0, 1.0, (1,)))
    entropies = distribution.entropy(torch.tensor([[0.0, -1e6], [0.0, 0.0], [0.0, 1e6]]))
    gaussian = 0.5 * math.log(2 * math.pi * math.e)
    expected = [gaussian + LOG_STD_CENTRE + step * LOG_STD_REACH for step in (-1, 0, 1)]
    torch.testing.assert_close(entropies, torch.tensor(expected))


def test_a_decoder_of_past_actions(action_space):
    distribution = make_action_distribution(action_space)
    action = distribution.sample(torch.randn(4, 3, distribution.num_parameters))
    decoded = torch.randn(4, 3, distribution.encoding_size)
    code = distribution.encode(action)
    nats = distribution.reconstruction_nats(decoded, code)
    if isinstance(action_space, Box):
        torch.testing.assert_close(nats, 0.5 * (code - decoded).square().sum(-1))
        perfect = code
    else:
        torch.testing.assert_close(nats, -distribution.log_prob(decoded, action))
        perfect = 50 * code
    assert distribution.reconstruction_nats(perfect, code).abs().max() < 1e-5
    assert (distribution.reconstruction_accuracy(perfect, code) == 1).all()
    assert (distribution.reconstruction_accuracy(-perfect - 1, code) < 1).any()


def test_gradients_reach_the_parameters(action_space):
    distribution = make_action_distribution(action_space)
    parameters = torch.randn(5, distribution.num_parameters, requires_grad=True)
    action = distribution.sample(parameters)
    for loss in (distribution.log_prob(parameters, action), distribution.entropy(parameters)):
        (gradient,) = torch.autograd.grad(loss.sum(), parameters)
        assert gradient.isfinite().all() and gradient.any()


def test_other_action_spaces_are_refused():
    with pytest.raises(MerlinError, match="this one is a MultiBinary"):
        make_action_distribution(MultiBinary(3))
