import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from merlin.networks.decoders import Decoder, DecoderConfig
from merlin.networks.grids import GridDecoder
from merlin.networks.spaces import Symbols, Tokens, flatten_space, kind
from merlin.networks.texts import is_said

from .conftest import SPACES

LATENT_SIZE = 11
SMALL = DecoderConfig(image_features=16, image_channels=8, grid_features=16)


def decoder_of(space: gymnasium.Space, **config) -> Decoder:
    return Decoder({"x": space}, LATENT_SIZE, DecoderConfig(**{**vars(SMALL), **config}))


def test_leading_dimensions_do_not_matter(space, values_of):
    decoder, latent = decoder_of(space), torch.randn(2, 3, LATENT_SIZE)
    observation = {"x": values_of(space, 2, 3)}
    flat_observation = {"x": observation["x"].flatten(0, 1)}
    parameters, flat_parameters = decoder(latent), decoder(latent.flatten(0, 1))
    for answer in (decoder.nats, decoder.accuracy):
        whole, flat = answer(parameters, observation)["x"], answer(flat_parameters, flat_observation)["x"]
        assert whole.shape == (2, 3) and whole.dtype == torch.float32
        torch.testing.assert_close(whole.flatten(), flat, rtol=1e-4, atol=1e-4)
        one = answer(decoder(latent[1, 2]), {"x": observation["x"][1, 2]})["x"]
        torch.testing.assert_close(one, flat[5], rtol=1e-4, atol=1e-4)
    assert decoder.floor_nats(observation)["x"].shape == (2, 3)
    torch.testing.assert_close(decoder.chance_nats(observation), decoder.chance_nats(flat_observation))


def test_mode_is_an_observation(name, space, values_of):
    decoder = decoder_of(space)
    with torch.no_grad():
        mode = decoder.mode(decoder(torch.randn(2, 3, LATENT_SIZE)))["x"]
    assert mode.shape == (2, 3, *space.shape)
    if kind(space) != "vector" or name == "vector_integer":
        assert all(space.contains(value.numpy().astype(space.dtype)) for value in mode.flatten(0, 1))


def test_overfits_a_tiny_batch_in_every_kind(space, values_of):
    """The nats fall to their floor, the accuracy rises to 1, and the mode is the observation."""
    is_image = kind(space) == "image"
    decoder = decoder_of(space, image_features=64, image_channels=32)
    latent, values = 2 * torch.randn(4, LATENT_SIZE), values_of(space, 4)
    if is_image:  # black and white: grey noise takes long to learn to the last nat
        low, high = float(space.low.min()), float(space.high.max())
        values = torch.where(values > (low + high) / 2, high, low).to(values.dtype)
    observation = {"x": values}
    floor = decoder.floor_nats(observation)["x"].mean()
    optimizer = torch.optim.Adam(decoder.parameters(), 5e-3 if is_image else 5e-2)
    excesses = []
    for _ in range(150):
        optimizer.zero_grad()
        parameters = decoder(latent)
        loss = decoder.nats(parameters, observation)["x"].mean()
        loss.backward()
        optimizer.step()
        excesses.append((loss - floor).item())
    assert -1e-3 < excesses[-1] < 0.02 * excesses[0]
    assert decoder.accuracy(parameters, observation)["x"].mean() > 0.95
    if kind(space) in ("category", "symbols"):
        assert torch.equal(decoder.mode(parameters)["x"], values)
    elif kind(space) == "text":
        assert torch.equal(decoder.mode(parameters)["x"], values * is_said(values))
    else:
        scale = 1 if np.isinf(space.high).any() else float(space.high.max()) - float(space.low.min())
        torch.testing.assert_close(
            decoder.mode(parameters)["x"].double() / scale, values / scale, atol=0.1, rtol=0, check_dtype=False
        )


@pytest.mark.parametrize("space", [Discrete(4, start=3), MultiDiscrete([3, 2, 4], start=[0, 5, 1]), MultiBinary(3)])
def test_categories_equal_torch_distributions(space, values_of):
    decoder, values = decoder_of(space), values_of(space, 5, 2)
    parameters = decoder(torch.randn(5, 2, LATENT_SIZE))
    if isinstance(space, Discrete):
        sizes, zero_based = [space.n], (values - int(space.start)).unsqueeze(-1)
    elif isinstance(space, MultiBinary):
        sizes, zero_based = [2] * 3, values
    else:
        sizes, zero_based = space.nvec.tolist(), values - torch.as_tensor(space.start)
    parts = [Categorical(logits=logits) for logits in parameters["x"].split(sizes, dim=-1)]
    nats = -sum(part.log_prob(zero_based[..., i]) for i, part in enumerate(parts))
    right = sum((part.logits.argmax(-1) == zero_based[..., i]).float() for i, part in enumerate(parts)) / len(parts)
    torch.testing.assert_close(decoder.nats(parameters, {"x": values})["x"], nats)
    torch.testing.assert_close(decoder.accuracy(parameters, {"x": values})["x"], right)


def test_symbols_equal_torch_distributions_cell_by_cell(values_of):
    space = MultiDiscrete(np.tile([4, 3, 2], (2, 3, 1)))
    decoder, values = decoder_of(space), values_of(space, 5)
    parameters = decoder(torch.randn(5, LATENT_SIZE))
    nats, right = torch.zeros(5), torch.zeros(5)
    cells = parameters["x"].reshape(5, 2, 3, 9)
    for y, x in np.ndindex(2, 3):
        for channel, logits in enumerate(cells[:, y, x].split([4, 3, 2], dim=-1)):
            nats -= Categorical(logits=logits).log_prob(values[:, y, x, channel])
            right += (logits.argmax(-1) == values[:, y, x, channel]).float() / 18
    torch.testing.assert_close(decoder.nats(parameters, {"x": values})["x"], nats)
    torch.testing.assert_close(decoder.accuracy(parameters, {"x": values})["x"], right)


@pytest.mark.parametrize(
    "space", [Discrete(4, start=-1), MultiDiscrete([3, 5]), MultiDiscrete(np.tile([4, 3], (5, 5, 1)))], ids=str
)
def test_recall_counts_every_category_that_occurs_the_same(space, values_of):
    decoder, values = decoder_of(space), values_of(space, 6, 2)
    with torch.no_grad():
        parameters = decoder(torch.randn(6, 2, LATENT_SIZE))
    guesses = decoder.mode(parameters)["x"].reshape(12, -1)
    truth = values.reshape(12, -1)
    num_variables = truth.shape[1] if kind(space) == "category" else 2  # cells share theirs
    shares = []
    for variable in range(num_variables):
        of_variable = slice(variable, None, num_variables)
        for category in truth[:, of_variable].unique():
            is_it = truth[:, of_variable] == category
            shares.append((guesses[:, of_variable][is_it] == category).double().mean().item())
    assert decoder.recall(parameters, {"x": values})["x"].item() == pytest.approx(np.mean(shares))


def test_recall_is_of_categories_only(space, values_of):
    recall = decoder_of(space).recall(decoder_of(space)(torch.randn(4, LATENT_SIZE)), {"x": values_of(space, 4)})
    assert list(recall) == (["x"] if kind(space) in ("category", "symbols") else [])


def test_vectors_are_gaussians_of_variance_one(values_of):
    space = Box(-1, 1, (3,))
    decoder, values = decoder_of(space), values_of(space, 5)
    parameters = decoder(torch.randn(5, LATENT_SIZE))
    expected = -Normal(parameters["x"], 1).log_prob(values).sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(decoder.nats(parameters, {"x": values})["x"], expected)
    right = ((parameters["x"] - values).abs() < 0.1).float().mean(-1)
    torch.testing.assert_close(decoder.accuracy(parameters, {"x": values})["x"], right)


def test_grey_pixels_under_a_bernoulli_have_a_floor(values_of):
    space = Box(0, 255, (5, 6, 2), np.uint8)
    decoder, values = decoder_of(space), values_of(space, 4)
    parameters = decoder(torch.randn(4, LATENT_SIZE))
    pixels = values.flatten(1) / 255
    floor = Bernoulli(probs=pixels).entropy().sum(-1)
    divergence = kl_divergence(Bernoulli(probs=pixels), Bernoulli(logits=parameters["x"])).sum(-1)
    torch.testing.assert_close(decoder.floor_nats({"x": values})["x"], floor, rtol=1e-4, atol=1e-4)
    excess = decoder.nats(parameters, {"x": values})["x"] - floor
    torch.testing.assert_close(excess, divergence, rtol=1e-3, atol=1e-3)


def test_gaussian_pixels(values_of):
    space = Box(0, 255, (5, 6, 2), np.uint8)
    decoder, values = decoder_of(space, image_likelihood="gaussian"), values_of(space, 4)
    parameters = decoder(torch.randn(4, LATENT_SIZE))
    expected = 0.5 * (values.flatten(1) / 255 - parameters["x"]).square().sum(-1)
    torch.testing.assert_close(decoder.nats(parameters, {"x": values})["x"], expected)
    assert not decoder.floor_nats({"x": values})["x"].any()


def test_text_counts_tokens_and_the_first_padding_only():
    space = Tokens(("", "a", "b"), 4)
    decoder = decoder_of(space)
    values = torch.tensor([[1, 2, 0, 0], [1, 2, 0, 2], [0, 0, 0, 0], [2, 1, 2, 1]])
    parameters = {"x": torch.randn(4, 12)}
    log_probs = parameters["x"].reshape(4, 4, 3).log_softmax(-1)
    nats, accuracy = torch.zeros(4), torch.zeros(4)
    for row, length in enumerate([3, 3, 1, 4]):
        for position in range(length):
            token = values[row, position]
            nats[row] -= log_probs[row, position, token]
            accuracy[row] += (log_probs[row, position].argmax() == token) / length
    torch.testing.assert_close(decoder.nats(parameters, {"x": values})["x"], nats)
    torch.testing.assert_close(decoder.accuracy(parameters, {"x": values})["x"], accuracy)
    mode = decoder.mode({"x": 9 * torch.nn.functional.one_hot(values, 3).flatten(1).float()})["x"]
    assert mode.tolist() == [[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [2, 1, 2, 1]]


def test_chance_is_the_entropy_of_uniform_categories():
    k = 5
    values = torch.arange(3 * k).reshape(k, 3) % k
    chance = decoder_of(Discrete(k)).chance_nats({"x": values})["x"]
    assert chance.item() == pytest.approx(math.log(k), rel=1e-5)
    assert decoder_of(Discrete(k)).chance_nats({"x": values * 0})["x"] == 0
    both = torch.stack([values % 2, values], -1)
    chance = decoder_of(MultiDiscrete([2, k])).chance_nats({"x": both})["x"].item()
    p = (both[..., 0] == 0).float().mean().item()
    assert chance == pytest.approx(math.log(k) - p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-5)


def test_no_constant_guess_is_better_than_chance(space, values_of):
    """Chance plus floor is the minimum over constant parameters, found here by gradient descent."""
    values = values_of(space, 3, 2)
    decoder = decoder_of(space)
    observation = {"x": values}
    guess = torch.zeros(decoder(torch.zeros(LATENT_SIZE))["x"].shape, requires_grad=True)
    optimizer = torch.optim.Adam([guess], 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss = decoder.nats({"x": guess.expand(3, 2, -1)}, observation)["x"].mean()
        loss.backward()
        optimizer.step()
    chance = decoder.chance_nats(observation)["x"] + decoder.floor_nats(observation)["x"].mean()
    torch.testing.assert_close(loss.detach(), chance, rtol=1e-2, atol=2e-2)
    assert loss > chance - 1e-3 * chance.abs() - 1e-4


def test_the_latent_gets_a_gradient(space, values_of):
    latent = torch.randn(2, LATENT_SIZE, requires_grad=True)
    decoder = decoder_of(space)
    decoder.nats(decoder(latent), {"x": values_of(space, 2)})["x"].sum().backward()
    assert latent.grad.isfinite().all() and latent.grad.any(-1).all()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_small_entries_are_linear_in_the_latent():
    for name in ("discrete", "multi_discrete", "vector", "text"):
        decoder = decoder_of(SPACES[name][1])
        zero, one, two = (decoder(torch.full((LATENT_SIZE,), scale))["x"] for scale in (0.0, 1.0, 2.0))
        torch.testing.assert_close(two - one, one - zero)


def test_entries_keep_their_names_and_do_not_mix(values_of):
    spaces = flatten_space(Dict(b=Discrete(3), a=Dict(v=Box(-1, 1, (2,)))))
    decoder = Decoder(spaces, LATENT_SIZE, SMALL)
    observation = {name: values_of(space, 4) for name, space in spaces.items()}
    parameters = decoder(torch.randn(4, LATENT_SIZE))
    nats = decoder.nats(parameters, observation)
    assert set(nats) == set(parameters) == set(decoder.mode(parameters)) == {"a.v", "b"}
    changed = decoder.nats(parameters, observation | {"b": (observation["b"] + 1) % 3})
    assert torch.equal(changed["a.v"], nats["a.v"]) and not torch.equal(changed["b"], nats["b"])


@pytest.mark.parametrize(
    "shape", [(5, 5, 3), (7, 7, 3), (28, 28, 1), (64, 64, 3), (96, 96, 3), (84, 84), (5, 70, 4)], ids=str
)
def test_images_of_any_size(shape):
    space = Box(0, 255, shape, np.uint8)
    decoder = decoder_of(space)
    parameters = decoder(torch.randn(2, LATENT_SIZE))
    observation = {"x": torch.randint(0, 256, (2, *shape), dtype=torch.uint8)}
    assert parameters["x"].shape == (2, math.prod(shape))
    assert decoder.mode(parameters)["x"].shape == observation["x"].shape
    decoder.nats(parameters, observation)["x"].sum().backward()


def test_channels_of_a_decoded_image_are_last():
    decoder = decoder_of(Box(0, 255, (5, 6, 3), np.uint8))
    with torch.no_grad():
        decoder.entries[0].blocks[-1].skip.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
        mode = decoder.mode(decoder(torch.randn(2, LATENT_SIZE)))["x"]
    assert (mode[..., 0] == 0).all() and (mode[..., 2] == 255).all()
    assert ((mode[..., 1] > 20) & (mode[..., 1] < 235)).all()


def test_a_grid_says_what_is_in_view_in_one_direction_wherever_it_is():
    """One of two objects lies in one cell: the way from one to the other in the latent is the same for every cell."""
    torch.manual_seed(0)
    decoder = GridDecoder(Symbols(MultiDiscrete(np.full((3, 3, 1), 4))), 8, 16)
    encoder = torch.nn.Linear(9 * 4, 8)

    def encode(cell, kind):
        grid = torch.ones(len(cell), 9, dtype=torch.int64).scatter_(1, cell.unsqueeze(1), kind.unsqueeze(1))
        return grid.view(-1, 3, 3, 1), encoder(torch.nn.functional.one_hot(grid, 4).float().flatten(1))

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    for _ in range(300):
        grid, mean = encode(torch.randint(9, (128,)), torch.randint(2, 4, (128,)))
        latent = mean + torch.randn_like(mean)
        loss = decoder.nats(decoder(latent), grid).mean() + 1e-3 * mean.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cells = torch.arange(9)
    with torch.no_grad():
        ways = encode(cells, torch.full((9,), 3))[1] - encode(cells, torch.full((9,), 2))[1]
    unit = torch.nn.functional.normalize(ways, dim=-1)
    assert loss < 2
    assert ((unit @ unit.mT).sum() - 9) / 72 > 0.6


def test_what_is_rare_counts_more_in_the_loss_of_a_grid():
    """By hand: each cell's cross-entropy times frequency^-r of what is there, the mean weight over all cells 1."""
    torch.manual_seed(1)
    space = Symbols(MultiDiscrete(np.tile([4, 3], (2, 3, 1))))
    plain, weighted = GridDecoder(space, 5, 7), GridDecoder(space, 5, 7, rarity=0.7)
    grid = torch.stack([torch.randint(4, (6, 5, 2, 3)), (torch.rand(6, 5, 2, 3) < 0.1).long()], -1)
    parameters = weighted(torch.randn(6, 5, 5)).detach()
    nats = weighted.nats(parameters, grid)
    assert plain.loss(parameters, grid, nats) is nats

    logits, seen = parameters.unflatten(-1, (6, 7)), {}
    values = grid.flatten(2, 3)
    for channel in range(2):
        for value in values[..., channel].flatten().tolist():
            seen[channel, value] = seen.get((channel, value), 0) + 1
    weights = {key: number**-0.7 for key, number in seen.items()}
    mean = sum(weights[key] * number for key, number in seen.items()) / sum(seen.values())
    for t in range(6):
        for b in range(5):
            expected = 0.0
            for cell in range(6):
                for channel, part in enumerate(logits[t, b, cell].split([4, 3])):
                    value = int(values[t, b, cell, channel])
                    expected -= weights[channel, value] / mean * float(part.log_softmax(-1)[value])
            assert float(weighted.loss(parameters, grid, nats)[t, b]) == pytest.approx(expected, rel=1e-4)


def test_a_rare_object_is_decoded_sooner_when_rarity_counts():
    """One cell in nine holds one of eight objects that are hardly ever there."""
    right = []
    for rarity in (0.0, 0.5):
        torch.manual_seed(2)
        decoder = GridDecoder(Symbols(MultiDiscrete(np.full((3, 3, 1), 10))), 16, 32, rarity)
        encoder = torch.nn.Linear(90, 16)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)

        def draw(encoder=encoder):
            grid = torch.randint(2, (64, 9))
            objects = torch.where(torch.rand(64) < 0.3, torch.randint(2, 10, (64,)), grid[:, 4])
            grid[:, 4] = objects
            return grid.view(-1, 3, 3, 1), encoder(torch.nn.functional.one_hot(grid, 10).float().flatten(1))

        for _ in range(150):
            grid, latent = draw()
            parameters = decoder(latent + 0.5 * torch.randn_like(latent))
            loss = decoder.loss(parameters, grid, decoder.nats(parameters, grid)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            grid, latent = draw()
            right.append(float(decoder.recall(decoder(latent), grid)))
    assert right[1] > right[0] + 0.1


def test_only_rows_that_count_do(space, values_of):
    decoder, values, counts = decoder_of(space), values_of(space, 6, 4), torch.rand(6, 4) < 0.6
    parameters = decoder(torch.randn(6, 4, LATENT_SIZE))
    kept = {"x": parameters["x"][counts]}, {"x": values[counts]}
    if values.is_floating_point():
        values[~counts] = torch.nan
    observation = {"x": values}
    torch.testing.assert_close(decoder.chance_nats(observation, counts), decoder.chance_nats(kept[1]))
    torch.testing.assert_close(decoder.recall(parameters, observation, counts), decoder.recall(*kept))
    weighted = decoder_of(space, grid_rarity=0.6)
    losses = weighted.losses(parameters, observation, weighted.nats(parameters, observation), counts)["x"]
    torch.testing.assert_close(losses[counts], weighted.losses(*kept, weighted.nats(*kept))["x"])
    none = torch.zeros_like(counts)
    assert decoder.chance_nats(observation, none)["x"] == 0
    assert all(recall == 0 for recall in decoder.recall(parameters, observation, none).values())


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_of_a_decoded_image_are_where_they_were_seen(axis):
    shape = ((3, 9, 8), (2, 9, 8, 3))[axis]
    decoder = decoder_of(Box(0, 255, shape, np.uint8))
    with torch.no_grad():
        decoder.entries[0].blocks[-1].skip.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]).repeat(1 + axis))
        mode = decoder.mode(decoder(torch.randn(4, LATENT_SIZE)))["x"].movedim(1 if axis == 0 else -1, 0)
    assert mode[0].shape == ((4, 9, 8), (4, 2, 9, 8))[axis]
    assert (mode[0] == 0).all() and (mode[2] == 255).all() and ((mode[1] > 20) & (mode[1] < 235)).all()


def test_the_mode_is_within_the_bounds_of_each_number():
    low, high = np.array([-3, 0, -(2**63), 5]), np.array([3, 2**63 - 2, -(2**62), 9])
    space = Box(low, high, dtype=np.int64)
    for scale in (-1e30, 0.0, 1e30):
        mode = decoder_of(space).mode({"x": torch.full((4,), scale)})["x"]
        assert space.contains(mode.numpy()), mode


@pytest.mark.parametrize("space", [Box(0, 1, (6, 7, 3), np.uint8), Box(0.0, 1.0, (16, 17, 3))], ids=str)
def test_a_pixel_beyond_its_bounds_is_worth_no_more_than_the_bound(space):
    decoder = decoder_of(space)
    parameters = decoder(9 * torch.randn(4, LATENT_SIZE))
    beyond, bound = (torch.full((4, *space.shape), x).to(torch.from_numpy(space.low).dtype) for x in (200, 1))
    assert torch.equal(decoder.nats(parameters, {"x": beyond})["x"], decoder.nats(parameters, {"x": bound})["x"])


def test_running_marginals_are_those_of_all_windows(space, values_of):
    """Windows of one row each, which is worth nothing to know by itself, have the chance of all rows together."""
    values, decoder = values_of(space, 12, 1), decoder_of(space)
    counts = torch.ones(1, 1, dtype=torch.bool)
    for row in values:
        alone = decoder.update_marginals({"x": row.unsqueeze(0)}, counts)["x"]
        torch.testing.assert_close(alone.double(), torch.zeros((), dtype=torch.float64), atol=1e-3, rtol=0)
    decoder.update_marginals({"x": values[:1]}, ~counts)  # no row counts
    chance = decoder.chance_nats({"x": values})["x"]
    torch.testing.assert_close(decoder.marginal_nats()["x"].double(), chance.double(), rtol=1e-3, atol=1e-3)


def test_what_never_changes_is_worth_exactly_nothing(space, values_of):
    values, decoder = (
        values_of(space, 1, 1).expand(7, 3, *(-1,) * (values_of(space, 1, 1).dim() - 2)),
        decoder_of(space),
    )
    for _ in range(3):
        decoder.update_marginals({"x": values}, torch.rand(7, 3) < 0.7)
    assert decoder.marginal_nats()["x"] == 0


def test_marginals_forget_after_about_a_hundred_windows():
    decoder, counts = decoder_of(Discrete(2)), torch.ones(1, 1, dtype=torch.bool)
    for value in [0] * 150 + [1] * 100:
        decoder.update_marginals({"x": torch.tensor([[value]])}, counts)
    assert decoder.entries[0].marginal.means.tolist() == pytest.approx([0.99**100, 1 - 0.99**100])


def test_running_marginals_of_no_rows_stay_as_they_are(space, values_of):
    decoder = decoder_of(space, grid_rarity=0.5)
    decoder.update_marginals({"x": values_of(space, 3)}, torch.ones(3, dtype=torch.bool))
    before, worth = decoder.state_dict(), decoder.marginal_nats()["x"]
    latent = torch.randn(3, LATENT_SIZE, requires_grad=True)
    for values, counts in ((values_of(space, 3)[:0], torch.ones(0)), (values_of(space, 3), torch.zeros(3))):
        decoder.update_marginals({"x": values}, counts.bool())
        parameters = decoder(latent[: len(values)])
        losses = decoder.losses(parameters, {"x": values}, decoder.nats(parameters, {"x": values}), counts.bool())
        (gradient,) = torch.autograd.grad(torch.where(counts.bool(), losses["x"], 0.0).sum(), latent)
        assert not gradient.any(), "which NaN would be"
    torch.testing.assert_close(decoder.state_dict(), before, rtol=0, atol=0)
    assert worth.isfinite() and decoder.marginal_nats()["x"] == worth


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_decoder_of_another_type_counts_and_restores_integers_as_before(dtype):
    """Whose bound bfloat16 and float16 round, and whose running means they would."""
    decoder = decoder_of(Box(0, 60_001, (1,), np.uint16)).to(dtype)
    assert {x.dtype for x in decoder.entries[0].marginal.buffers()} == {torch.float64}
    with torch.no_grad():
        decoder.entries[0].linear.bias.fill_(2)
        decoder.entries[0].linear.weight.zero_()
    assert decoder.mode(decoder(torch.zeros(1, LATENT_SIZE, dtype=dtype)))["x"].tolist() == [[60_001]]
