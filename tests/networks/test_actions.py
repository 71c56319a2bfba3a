import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch.distributions import Beta, Categorical, Normal

from merlin.errors import MerlinError
from merlin.networks.action_spaces import open_action_space
from merlin.networks.actions import (
    INSIDE,
    LEAST_CONCENTRATION,
    LOG_CONCENTRATION_CENTRE,
    LOG_CONCENTRATION_REACH,
    LOG_STD_CENTRE,
    LOG_STD_REACH,
    MASKED_LOG_PROB,
    BetaActions,
    ProductActions,
    make_action_distribution,
)
from merlin.networks.spaces import ACTION_MASK

SPACES = {
    "discrete": Discrete(5),
    "discrete_start": Discrete(3, start=-1),
    "multi_discrete": MultiDiscrete([3, 4, 2]),
    "multi_discrete_equal": MultiDiscrete([3, 3], start=[2, 5]),
    "multi_binary": MultiBinary(3),
    "multi_binary_matrix": MultiBinary((2, 2)),
    "box": Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64),
    "box_unbounded": Box(-np.inf, np.inf, (3,)),
    "box_matrix": Box(-1.0, 1.0, (2, 3)),
    "box_half_bounded": Box(np.array([-2.0, 0.0, 3.0]), np.array([-1.0, np.inf, 9.0]), dtype=np.float64),
}
CASES = [(name, "gaussian") for name in SPACES] + [(name, "beta") for name in SPACES if "box" in name]


@pytest.fixture(params=CASES, ids="-".join)
def case(request) -> tuple[str, str]:
    return request.param


@pytest.fixture
def action_space(case) -> gymnasium.Space:
    return SPACES[case[0]]


@pytest.fixture
def distribution(case):
    return make_action_distribution(SPACES[case[0]], case[1])


def units(space: Box) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre and half the range of each number; 0 and 1 without two bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
    return tuple(torch.as_tensor(x.reshape(-1)).float() for x in ((low + high) / 2, (high - low) / 2))


def reference(space: gymnasium.Space, parameters: torch.Tensor) -> list[Categorical] | Normal:
    """The same distribution in torch.distributions, over zero-based categories or flat actions."""
    if isinstance(space, Box):
        centre, half = units(space)
        mean, log_std = parameters.chunk(2, -1)
        return Normal(
            centre + half * mean, half * (LOG_STD_CENTRE + LOG_STD_REACH * (log_std / LOG_STD_REACH).tanh()).exp()
        )
    sizes = [space.n] if isinstance(space, Discrete) else getattr(space, "nvec", np.full(space.shape, 2)).ravel()
    return [Categorical(logits=logits) for logits in parameters.split([int(k) for k in sizes], dim=-1)]


@pytest.mark.parametrize("name", SPACES)
def test_log_prob_and_entropy_equal_torch_distributions(name):
    action_space, distribution = SPACES[name], make_action_distribution(SPACES[name])
    parameters = torch.randn(4, 3, distribution.num_parameters)
    action = distribution.sample(parameters)
    expected = reference(action_space, parameters)
    if isinstance(action_space, Box):
        flat = action.reshape(4, 3, -1)
        log_prob, entropy = expected.log_prob(flat).sum(-1), expected.entropy().sum(-1)
    else:
        zero_based = (action - torch.as_tensor(getattr(action_space, "start", 0))).reshape(4, 3, -1)
        log_prob = sum(part.log_prob(zero_based[..., i]) for i, part in enumerate(expected))
        entropy = sum(part.entropy() for part in expected)
        torch.testing.assert_close(distribution.log_probs(parameters), torch.cat([p.logits for p in expected], -1))
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob)
    torch.testing.assert_close(distribution.entropy(parameters), entropy)


def test_actions_fit_the_space(action_space, distribution):
    parameters = torch.randn(4, 3, distribution.num_parameters)
    for action in (distribution.sample(parameters), distribution.greedy(parameters)):
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


def test_sampling_uses_the_generator_alone(distribution):
    parameters = torch.randn(64, distribution.num_parameters)
    before = torch.get_rng_state()
    first, same, other = (distribution.sample(parameters, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_actions_are_the_likeliest(distribution):
    if isinstance(distribution, BetaActions):
        return  # its mean
    parameters = torch.randn(6, distribution.num_parameters)
    best = distribution.log_prob(parameters, distribution.greedy(parameters))
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


def betas(space: Box, parameters: torch.Tensor) -> Beta:
    """The Beta of each number in torch.distributions, over [0, 1], from its mode and its concentration."""
    mode, log_extra = parameters.chunk(2, -1)
    log_extra = LOG_CONCENTRATION_CENTRE + LOG_CONCENTRATION_REACH * (log_extra / LOG_CONCENTRATION_REACH).tanh()
    concentration = LEAST_CONCENTRATION + log_extra.exp()
    mode = (1 + mode.tanh()) / 2
    return Beta(1 + concentration * mode, 1 + concentration * (1 - mode))


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["box", "box_matrix"])
def test_the_greedy_action_of_a_beta_is_its_mean_which_a_wide_ones_mode_exceeds(name):
    distribution = make_action_distribution(SPACES[name], "beta").double()
    parameters = doubles(4, 3, distribution.num_parameters)
    code = distribution.encode(distribution.greedy(parameters))
    torch.testing.assert_close(code, 2 * betas(SPACES[name], parameters).mean.flatten(2) - 1)
    wide = torch.cat([torch.full_like(code, 2.0), torch.full_like(code, -1e3)], -1)
    assert (distribution.encode(distribution.greedy(wide)) < 0.5 * math.tanh(2.0)).all()


@pytest.mark.parametrize("name", ["box", "box_matrix"])
def test_beta_log_prob_and_entropy_equal_torch_distributions_in_half_ranges(name):
    distribution = make_action_distribution(SPACES[name], "beta").double()
    parameters = doubles(4, 3, distribution.num_parameters).requires_grad_()
    action = distribution.sample(parameters)
    expected = betas(SPACES[name], parameters)
    x = (1 + distribution.encode(action)) / 2
    pairs = [
        (distribution.log_prob(parameters, action), (expected.log_prob(x) - math.log(2)).sum(-1)),
        (distribution.entropy(parameters), (expected.entropy() + math.log(2)).sum(-1)),
    ]
    for found, right in pairs:
        torch.testing.assert_close(found, right)
        gradients = [torch.autograd.grad(y.sum(), parameters, retain_graph=True)[0] for y in (found, right)]
        torch.testing.assert_close(*gradients)
    outputs = lambda p: (distribution.log_prob(p, action), distribution.entropy(p))  # noqa: E731
    assert torch.autograd.gradcheck(outputs, parameters)


def test_a_beta_is_a_density_of_the_number_in_half_ranges_and_its_entropy_is_that_densitys():
    distribution = make_action_distribution(Box(-3.0, 7.0, (1,)), "beta").double()
    parameters = doubles(20, 2)
    codes, widths = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(500))
    actions = (2 + 5 * codes).view(500, 1, 1).expand(500, 20, 1)
    log_prob = distribution.log_prob(parameters.expand(500, 20, 2), actions)
    density = log_prob.exp()
    torch.testing.assert_close(widths @ density, torch.ones(20).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(distribution.entropy(parameters), -widths @ (density * log_prob), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["box", "box_half_bounded"])
def test_beta_samples_have_the_right_moments(name):
    distribution = make_action_distribution(SPACES[name], "beta")
    parameters = torch.randn(distribution.num_parameters)
    actions = distribution.sample(parameters.expand(40_000, -1), torch.Generator().manual_seed(1))
    (centre, half), expected = units(SPACES[name]), betas(SPACES[name], parameters)
    gaussian = reference(SPACES[name], parameters)
    is_bounded = torch.as_tensor(np.isfinite(SPACES[name].high))
    mean = torch.where(is_bounded, centre + half * (2 * expected.mean - 1), gaussian.mean)
    std = torch.where(is_bounded, 2 * half * expected.stddev, gaussian.stddev)
    torch.testing.assert_close(actions.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(actions.std(0), std, atol=0, rtol=0.02)
    found_mean, found_log_std = distribution.moments(parameters)
    torch.testing.assert_close((found_mean, found_log_std.exp()), (mean, std))


def test_numbers_without_two_bounds_stay_gaussian_beside_betas():
    space = SPACES["box_half_bounded"]
    parts = [Box(space.low[i : i + 1], space.high[i : i + 1], dtype=np.float64) for i in range(3)]
    kinds = [
        make_action_distribution(part, kind) for part, kind in zip(parts, ("beta", "gaussian", "beta"), strict=True)
    ]
    distribution = make_action_distribution(space, "beta")
    parameters = torch.randn(50, 6)
    action = distribution.sample(parameters)
    rows = [(kind, parameters[:, [i, 3 + i]], action[:, i : i + 1]) for i, kind in enumerate(kinds)]
    expected = sum(kind.log_prob(p, x) for kind, p, x in rows)
    torch.testing.assert_close(distribution.log_prob(parameters, action), expected)
    torch.testing.assert_close(distribution.entropy(parameters), sum(kind.entropy(p) for kind, p, _ in rows))
    greedy = torch.cat([kind.greedy(p) for kind, p, _ in rows], -1)
    torch.testing.assert_close(distribution.greedy(parameters), greedy)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_beta_means_the_same_in_all_units(size):
    unit, other = (make_action_distribution(Box(*bounds, (2,)), "beta") for bounds in ((-1, 1), (-size, 3 * size)))
    parameters = torch.randn(30, 4)
    first, second = (part.sample(parameters, torch.Generator().manual_seed(0)) for part in (unit, other))
    torch.testing.assert_close(second, size * (1 + 2 * first))
    torch.testing.assert_close(
        other.log_prob(parameters, second), unit.log_prob(parameters, first), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(other.entropy(parameters), unit.entropy(parameters))


def test_a_beta_starts_near_the_uniform_and_stays_bounded_and_trainable():
    distribution = make_action_distribution(SPACES["box"], "beta")
    start = torch.zeros(4)
    torch.testing.assert_close(distribution.moments(start)[0], torch.tensor([0.0, 5.0]))
    most = 2 * math.log(2)  # of two uniform numbers
    assert most - 0.5 < distribution.entropy(start) < most - 0.2
    extremes = torch.tensor([-1e6, -30.0, 0.0, 30.0, 1e6])
    parameters = torch.cartesian_prod(extremes, extremes, extremes, extremes).requires_grad_()
    drawn = distribution.sample(parameters, torch.Generator().manual_seed(0))
    bounds = [torch.tensor(bound).float().expand_as(drawn) for bound in (SPACES["box"].low, SPACES["box"].high)]
    for action in (drawn, *bounds):
        for x in (distribution.log_prob(parameters, action), distribution.entropy(parameters)):
            assert x.isfinite().all()
            assert torch.autograd.grad(x.sum(), parameters)[0].isfinite().all()
    assert (distribution.entropy(parameters) <= most + 1e-4).all()
    shapes = torch.stack(distribution.shapes(parameters))
    assert 1 <= shapes.min() and 390 < shapes.max() < 410
    assert most - 0.05 < distribution.entropy(torch.tensor([0.0, 0.0, -1e6, -1e6])) < most - 0.02


@pytest.mark.parametrize("place", [-30.0, 0.0, 30.0])
def test_beta_samples_lie_inside_the_bounds_and_their_codes_too(place):
    distribution = make_action_distribution(SPACES["box"], "beta")
    parameters = torch.tensor([place, place, -4.0, 4.0]).expand(20_000, -1)
    action = distribution.sample(parameters, torch.Generator().manual_seed(0)).double()
    assert (action > torch.tensor(SPACES["box"].low)).all() and (action < torch.tensor(SPACES["box"].high)).all()
    assert (distribution.encode(action).abs() <= 1 - INSIDE).all()


def test_betas_of_few_digits_are_those_of_many():
    """Parameters of bfloat16 have large concentrations, whose log-densities are small differences of large numbers."""
    distribution = make_action_distribution(SPACES["box_matrix"], "beta")
    parameters = torch.cat([torch.randn(50, 6), torch.full((50, 6), 4.0)], -1).bfloat16()
    action = distribution.sample(parameters)
    exact = make_action_distribution(SPACES["box_matrix"], "beta").double()
    for found, right in [
        (distribution.log_prob(parameters, action), exact.log_prob(parameters.double(), action.double())),
        (distribution.entropy(parameters), exact.entropy(parameters.double())),
    ]:
        torch.testing.assert_close(found.double(), right, atol=0.02, rtol=0)


def test_a_decoder_of_past_actions(action_space, distribution):
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


def test_gradients_reach_the_parameters(distribution):
    parameters = torch.randn(5, distribution.num_parameters, requires_grad=True)
    action = distribution.sample(parameters)
    for loss in (distribution.log_prob(parameters, action), distribution.entropy(parameters)):
        (gradient,) = torch.autograd.grad(loss.sum(), parameters)
        assert gradient.isfinite().all() and gradient.any()


NESTED = {
    "choices": spaces.Dict(
        {"hand": spaces.Tuple([Discrete(3, start=-1), MultiBinary(2)]), "move": MultiDiscrete([2, 4])}
    ),
    "boxes": spaces.Tuple([Box(-2.0, 3.0, (2,)), Box(np.zeros((2, 1)), np.array([[1.0], [np.inf]]), dtype=np.float64)]),
    "mixed": spaces.Dict(
        {
            "a": Box(-1.0, 4.0, (2,)),
            "b": Discrete(5, start=2**40),
            "c": spaces.Tuple([MultiBinary((2, 1)), Discrete(2, start=1)]),
            "d": Box(-9, 9, (), np.int16),
        }
    ),
}


def simple(space):
    """The simple spaces of one, each with its distribution, and where their parameters, numbers and codes begin."""
    parts = [part for _, part in open_action_space(space)]
    return parts, [make_action_distribution(part) for part in parts]


def split_like(parts, kind, parameters, action):
    """Each simple space's distribution, parameters and action; Boxes side by side have all means before deviations."""
    numbers = action.split([int(np.prod(part.shape)) for part in parts], -1)
    distributions = [make_action_distribution(part, kind) for part in parts]
    shares, columns = [], list(parameters.unbind(-1))
    for run in runs_of_a_kind(parts):
        if isinstance(parts[run[0]], Box):  # all means, then all standard deviations
            count = sum(distributions[i].encoding_size for i in run)
            means, deviations, columns = columns[:count], columns[count : 2 * count], columns[2 * count :]
            for i in run:
                size = distributions[i].encoding_size
                shares.append(torch.stack(means[:size] + deviations[:size], -1))
                means, deviations = means[size:], deviations[size:]
        else:
            for i in run:
                size = distributions[i].num_parameters
                shares.append(torch.stack(columns[:size], -1))
                columns = columns[size:]
    assert not columns
    actions = [
        x.reshape(*x.shape[:-1], *part.shape).to(distribution.dtype)
        for x, part, distribution in zip(numbers, parts, distributions, strict=True)
    ]
    return list(zip(distributions, shares, actions, strict=True))


def runs_of_a_kind(parts):
    runs = []
    for i, part in enumerate(parts):
        if runs and isinstance(parts[runs[-1][-1]], Box) == isinstance(part, Box):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


@pytest.mark.parametrize("kind", ["gaussian", "beta"])
@pytest.mark.parametrize("name", NESTED)
def test_a_nested_space_is_the_product_of_its_simple_ones(name, kind):
    space = NESTED[name]
    distribution, (parts, _) = make_action_distribution(space, kind), simple(space)
    parameters = torch.randn(4, 3, distribution.num_parameters)
    action = distribution.sample(parameters)
    assert action.shape == (4, 3, sum(int(np.prod(part.shape)) for part in parts)) == (4, 3, *distribution.shape)
    assert action.dtype == distribution.dtype and distribution.greedy(parameters).dtype == distribution.dtype
    shares = split_like(parts, kind, parameters, action)
    for part, (_, _, x) in zip(parts, shares, strict=True):
        if not isinstance(part, Box):
            assert all(part.contains(one.numpy()) for one in x.flatten(0, 1))
    torch.testing.assert_close(distribution.log_prob(parameters, action), sum(d.log_prob(p, x) for d, p, x in shares))
    torch.testing.assert_close(distribution.entropy(parameters), sum(d.entropy(p) for d, p, _ in shares))
    code = torch.cat([d.encode(x) for d, _, x in shares], -1)
    torch.testing.assert_close(distribution.encode(action), code)
    best = torch.cat([d.greedy(p).reshape(4, 3, -1) for d, p, _ in shares], -1)
    torch.testing.assert_close(distribution.greedy(parameters), best.to(distribution.dtype))
    choices = [d.probabilities(p) for d, p, _ in shares]
    torch.testing.assert_close(distribution.probabilities(parameters), torch.cat(choices, -1))
    assert distribution.num_choices == sum(x.shape[-1] for x in choices)


@pytest.mark.parametrize("name", NESTED)
def test_a_decoder_of_past_nested_actions(name):
    distribution, (parts, of_parts) = make_action_distribution(NESTED[name]), simple(NESTED[name])
    code = distribution.encode(distribution.sample(torch.randn(6, distribution.num_parameters)))
    decoded = torch.randn(6, distribution.encoding_size)
    sizes = [d.encoding_size for d in of_parts]
    shares = list(zip(of_parts, decoded.split(sizes, -1), code.split(sizes, -1), strict=True))
    nats = sum(d.reconstruction_nats(x, y) for d, x, y in shares)
    torch.testing.assert_close(distribution.reconstruction_nats(decoded, code), nats)
    numbers = torch.tensor([float(np.prod(part.shape)) for part in parts])
    right = torch.stack([d.reconstruction_accuracy(x, y) for d, x, y in shares], -1)
    expected = (right * numbers).sum(-1) / numbers.sum()
    torch.testing.assert_close(distribution.reconstruction_accuracy(decoded, code), expected)


def test_whole_numbers_beside_a_box_stay_exact():
    distribution = make_action_distribution(NESTED["mixed"])
    assert isinstance(distribution, ProductActions)
    action = distribution.sample(torch.randn(500, distribution.num_parameters))
    assert set(action[:, 2].long().tolist()) == {2**40 + i for i in range(5)}


def test_nested_samples_use_the_generator_alone():
    distribution = make_action_distribution(NESTED["mixed"])
    parameters, before = torch.randn(64, distribution.num_parameters), torch.get_rng_state()
    first, same, other = (distribution.sample(parameters, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


MASKED = {**{name: space for name, space in SPACES.items() if not isinstance(space, Box)}, **NESTED}
del MASKED["boxes"]


@pytest.fixture(params=MASKED)
def masked_space(request) -> gymnasium.Space:
    return MASKED[request.param]


def random_mask(distribution, *batch: int, seed: int = 0) -> torch.Tensor:
    """A mask that allows about half of the choices, and something of each variable."""
    torch.manual_seed(seed)
    mask = torch.rand(*batch, distribution.num_choices) < 0.5
    sample = distribution.sample(torch.zeros(*batch, distribution.num_parameters))
    return mask | (one_hots(distribution, sample) > 0)


def one_hots(distribution, action) -> torch.Tensor:
    """The choices that an action takes, in the order of a mask."""
    if not isinstance(distribution, ProductActions):
        return distribution.encode(action)
    rows = zip(distribution.parts, distribution.actions(action), strict=True)
    return torch.cat([part.encode(x) for part, x in rows if part.num_choices], -1)


def test_what_is_masked_is_never_sampled_and_never_the_mode(masked_space):
    distribution = make_action_distribution(masked_space)
    mask = random_mask(distribution, 50)
    parameters = distribution.restrict(torch.randn(50, distribution.num_parameters), {ACTION_MASK: mask})
    for action in (distribution.greedy(parameters), *(distribution.sample(parameters) for _ in range(200))):
        assert not (one_hots(distribution, action)[~mask] > 0).any()
    assert (distribution.probabilities(parameters)[~mask] == 0).all()
    assert (distribution.probabilities(parameters)[mask] > 0).all()


def test_a_uniform_of_zero_does_not_sample_what_is_masked(monkeypatch):
    """The lowest draw that there is must leave the only choice that is allowed before those that are not."""
    distribution = make_action_distribution(Discrete(3))
    parameters = distribution.restrict(torch.zeros(3), {ACTION_MASK: torch.tensor([False, True, False])})
    draw = torch.Tensor.uniform_
    lowest = torch.tensor([2.0**-24, 0.0, 1 - 2.0**-24])  # of the draws from [0, 1) in float32

    def uniform_(x, low=0.0, high=1.0, generator=None):
        draw(x, low, high, generator=generator)
        return x.copy_(lowest * (high - low) + low)

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: lowest.clone())
    assert distribution.sample(parameters).item() == 1


def test_masked_log_prob_and_entropy_equal_those_of_the_allowed_alone(masked_space):
    distribution = make_action_distribution(masked_space)
    mask = random_mask(distribution, 30)
    raw = torch.randn(30, distribution.num_parameters, dtype=torch.float64)
    parameters = distribution.restrict(raw, {ACTION_MASK: mask})
    action = distribution.sample(parameters)
    if isinstance(distribution, ProductActions):
        rows = zip(distribution.parts, distribution.actions(action), strict=True)
        boxes = [(part, x) for part, x in rows if not part.num_choices]
        columns = raw.split(distribution._parameters_of, -1)
        columns = [c for c, part in zip(columns, distribution.parts, strict=True) if not part.num_choices]
        log_prob = sum(part.log_prob(c, x) for c, (part, x) in zip(columns, boxes, strict=True))
        entropy = sum(part.entropy(c) for c, (part, _) in zip(columns, boxes, strict=True))
        choice_columns = zip(raw.split(distribution._parameters_of, -1), distribution.parts, strict=True)
        logits = torch.cat([c for c, part in choice_columns if part.num_choices], -1)
        sizes = [k for part in distribution.parts if part.num_choices for k in part.categories.sizes]
    else:
        log_prob, entropy, logits, sizes = 0.0, 0.0, raw, distribution.categories.sizes
    taken = one_hots(distribution, action)
    for x, allowed, one in zip(logits.split(sizes, -1), mask.split(sizes, -1), taken.split(sizes, -1), strict=True):
        reference = Categorical(logits=x.masked_fill(~allowed, -torch.inf))
        log_prob = log_prob + reference.log_prob(one.argmax(-1))
        p = reference.probs
        entropy = entropy - torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0).sum(-1)
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob.expand(30))
    torch.testing.assert_close(distribution.entropy(parameters), entropy)


def test_gradients_of_masked_parameters(masked_space):
    distribution = make_action_distribution(masked_space).double()
    mask = random_mask(distribution, 4)
    raw = torch.randn(4, distribution.num_parameters, dtype=torch.float64, requires_grad=True)
    action = distribution.sample(distribution.restrict(raw, {ACTION_MASK: mask}).detach())

    def outputs(x):
        parameters = distribution.restrict(x, {ACTION_MASK: mask})
        return (
            distribution.log_prob(parameters, action),
            distribution.entropy(parameters),
            distribution.log_probs(parameters),
        )

    assert torch.autograd.gradcheck(outputs, raw)
    masked = distribution.restrict(torch.arange(raw.numel()).view_as(raw).double(), {ACTION_MASK: mask}) < 0
    assert masked.any()
    for output in outputs(raw):
        (gradient,) = torch.autograd.grad(output.sum(), raw, retain_graph=True)
        assert gradient.isfinite().all() and (gradient[masked] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masks_hold_in_every_precision_and_beside_large_logits(dtype):
    distribution = make_action_distribution(MultiDiscrete([3, 2]))
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, True]])
    logits = torch.tensor([[3e3, -3e3, -2.9e3, -3e3, 3e3], [0.0, 5, -5, 0, 0]], dtype=dtype, requires_grad=True)
    parameters = distribution.restrict(logits, {ACTION_MASK: mask})
    assert distribution.greedy(parameters).tolist() == [[2, 0], [2, 1]]
    action = distribution.greedy(parameters)
    for x in (distribution.entropy(parameters), distribution.log_prob(parameters, action)):
        assert x.isfinite().all() and (x.abs() < 1e-3).all()
    seen = distribution.log_probs(parameters)
    assert (seen[~mask] == MASKED_LOG_PROB).all() and (distribution.probabilities(parameters)[~mask] == 0).all()
    (gradient,) = torch.autograd.grad((distribution.entropy(parameters) + seen.sum(-1)).sum(), logits)
    assert gradient.isfinite().all()


def test_a_row_that_allows_nothing_is_known_and_gives_finite_numbers(masked_space):
    distribution = make_action_distribution(masked_space)
    mask = random_mask(distribution, 6)
    assert distribution.is_possible(mask).all()
    mask[2] = False
    assert distribution.is_possible(mask).tolist() == [True, True, False, True, True, True]
    raw = torch.randn(6, distribution.num_parameters, requires_grad=True)
    parameters = distribution.restrict(raw, {ACTION_MASK: mask})
    action = distribution.sample(parameters.detach())
    total = distribution.entropy(parameters) + distribution.log_prob(parameters, action)
    assert total.isfinite().all() and distribution.log_probs(parameters).isfinite().all()
    assert torch.autograd.grad(total.sum(), raw)[0].isfinite().all()


def test_one_variable_without_a_choice_is_no_possible_action():
    distribution = make_action_distribution(MultiDiscrete([2, 3]))
    assert distribution.is_possible(
        torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
    ).tolist() == [
        True,
        False,
        False,
    ]


def test_no_mask_changes_nothing(masked_space):
    distribution = make_action_distribution(masked_space)
    parameters = torch.randn(3, distribution.num_parameters)
    assert distribution.restrict(parameters, {"other": torch.ones(3)}) is parameters
    everything = {ACTION_MASK: torch.ones(3, distribution.num_choices)}
    assert torch.equal(distribution.restrict(parameters, everything), parameters)


def test_masks_of_another_size_are_refused():
    distribution = make_action_distribution(MultiDiscrete([2, 3]))
    with pytest.raises(MerlinError, match=r"a row of 5 numbers for each environment.* is of shape \(4, 6\)"):
        distribution.restrict(torch.zeros(4, 5), {ACTION_MASK: torch.ones(4, 6)})
    with pytest.raises(MerlinError, match=r"a row of 5 numbers for each environment.* is of shape \(5,\)"):
        distribution.restrict(torch.zeros(4, 5), {ACTION_MASK: torch.ones(5)})
    with pytest.raises(MerlinError, match="actions of a Box have none"):
        make_action_distribution(SPACES["box"]).restrict(torch.zeros(4, 4), {ACTION_MASK: torch.ones(4, 2)})


@pytest.mark.parametrize(
    "space, sentence",
    [
        (spaces.Text(3), "this one has a Text"),
        (spaces.Tuple([Discrete(2), spaces.Sequence(Discrete(2))]), "has a Sequence"),
        (spaces.Dict({"a": spaces.Graph(Discrete(2), None)}), "has a Graph"),
        (spaces.OneOf([Discrete(2), Discrete(3)]), "has a OneOf"),
        (spaces.Dict({}), "must have something to choose"),
        (spaces.Tuple([Discrete(2), spaces.Tuple([])]), "must have something to choose"),
        (Box(0, 1, (0,)), "must have something to choose"),
        (Discrete(10**9), "at most 1,048,576 of them, but this one has 1,000,000,000"),
    ],
)
def test_other_action_spaces_are_refused(space, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        make_action_distribution(space)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in SPACES if "box" not in name])
def test_the_entropy_of_what_others_mask_by_minus_infinity(name):
    distribution = make_action_distribution(SPACES[name])
    parameters = torch.randn(distribution.num_parameters, dtype=torch.float64)
    parameters[0] = -math.inf
    right = sum(part.entropy() for part in reference(SPACES[name], parameters))
    (gradient,) = torch.autograd.grad(distribution.entropy(x := parameters.clone().requires_grad_()), x)
    torch.testing.assert_close(distribution.entropy(parameters), right)
    assert gradient.isfinite().all() and gradient[0] == 0


@pytest.mark.parametrize("box_actions", ["gaussian", "beta"])
def test_no_derivative_taken_forward_passes_through_a_sample(box_actions):
    distribution = make_action_distribution(SPACES["box"], box_actions)
    parameters = torch.randn(3, distribution.num_parameters)
    _, slope = torch.func.jvp(distribution.sample, (parameters,), (torch.ones_like(parameters),))
    assert not slope.any()


@pytest.mark.parametrize("name", [name for name in SPACES if "multi" in name])
def test_encodings_are_mapped(name):
    distribution = make_action_distribution(SPACES[name])
    action = distribution.sample(torch.randn(4, distribution.num_parameters))
    assert torch.equal(torch.func.vmap(distribution.encode)(action), distribution.encode(action))


def test_a_code_is_differentiated_forward():
    """As the probabilities are: p (t − Σ p t)."""
    distribution = make_action_distribution(SPACES["discrete"])
    parameters, along = torch.randn(2, 3, 5, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda x: distribution.sample_code(x)[1], (parameters,), (along,))
    p = parameters.softmax(-1)
    torch.testing.assert_close(slope, p * (along - (p * along).sum(-1, keepdim=True)))


@pytest.mark.parametrize("name", SPACES)
def test_distributions_are_made_on_the_meta_device(name):
    """Where a model's shapes are looked at, and no numbers."""
    with torch.device("meta"):
        made = make_action_distribution(SPACES[name])
    assert made.num_parameters == make_action_distribution(SPACES[name]).num_parameters
