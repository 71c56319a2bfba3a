import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from merlin.errors import MerlinError
from merlin.networks.encoders import Encoder, EncoderConfig
from merlin.networks.images import stages
from merlin.networks.spaces import Tokens, flatten_space, settle
from merlin.networks.texts import TextEncoder

SMALL = EncoderConfig(image_features=9, image_channels=12, grid_features=8, grid_channels=6, text_features=7)


def encoder_of(space: gymnasium.Space) -> Encoder:
    return Encoder({"x": space}, SMALL)


def test_leading_dimensions_do_not_matter(space, values_of):
    values = values_of(space, 2, 3)
    encoder = encoder_of(space)
    encoding = encoder({"x": values})
    assert encoding.shape == (2, 3, encoder.output_size) and encoding.dtype == torch.float32
    flat = encoder({"x": values.flatten(0, 1)})
    torch.testing.assert_close(encoding.flatten(0, 1), flat, rtol=1e-4, atol=1e-5)
    for index in range(6):
        alone = encoder({"x": values.flatten(0, 1)[index]})
        torch.testing.assert_close(alone, flat[index], rtol=1e-4, atol=1e-5)


def test_different_values_have_different_encodings_and_every_parameter_learns(space, values_of):
    encoder = encoder_of(space)
    encoding = encoder({"x": values_of(space, 16)})
    assert encoding.std(0).max() > 1e-3
    if list(encoder.parameters()):
        encoding.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4, start=-1),
        Discrete(2000),
        MultiDiscrete([3, 2, 4], start=[0, 5, 1]),
        MultiBinary(3),
        MultiDiscrete([4]),
    ],
)
def test_categories_are_one_hot(space, values_of):
    values = values_of(space, 3, 2)
    if isinstance(space, Discrete):
        sizes, starts = [space.n], [space.start]
    elif isinstance(space, MultiBinary):
        sizes, starts = [2] * 3, [0] * 3
    else:
        sizes, starts = space.nvec, space.start
    encoding = encoder_of(space)({"x": values}).numpy()
    for row in np.ndindex(3, 2):
        entries = np.atleast_1d(values[row].numpy())
        expected = np.concatenate([np.eye(k)[v - s] for k, v, s in zip(sizes, entries, starts, strict=True)])
        np.testing.assert_array_equal(encoding[row], expected)


def test_vectors_are_divided_by_bounds_above_one():
    space = Box(np.array([-8, -0.5, -np.inf, -3e38, 0]), np.array([2, 0.5, np.inf, 3e38, 200]), dtype=np.float64)
    encoding = encoder_of(space)({"x": torch.tensor([4.0, 0.25, 7.0, 9.0, 50.0])})
    torch.testing.assert_close(encoding, torch.tensor([0.5, 0.25, 7.0, 9.0, 0.25]))


def test_entries_are_concatenated_in_order(values_of):
    spaces = flatten_space(Dict(b=Discrete(3), a=Dict(v=Box(-1, 1, (2,)))))
    observation = {name: values_of(space, 4) for name, space in spaces.items()}
    encoder = Encoder(spaces, SMALL)
    expected = torch.cat([encoder_of(space)({"x": observation[name]}) for name, space in spaces.items()], dim=-1)
    torch.testing.assert_close(encoder(observation), expected)
    assert encoder.output_size == 5


def test_an_image_of_the_papers_size_has_its_strides():
    assert [stage.stride for stage in stages((64, 64))] == [2, 1, 2, 1, 2, 1]
    assert stages((64, 64))[-1].reduced_size == (8, 8)
    assert [stage.stride for stage in stages((7, 7))] == [1, 1]


@pytest.mark.parametrize(
    "shape", [(5, 5, 3), (7, 7, 3), (28, 28, 1), (64, 64, 3), (96, 96, 3), (84, 84), (5, 70, 4)], ids=str
)
def test_images_of_any_size_by_their_bounds(shape):
    picture = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    byte, real = encoder_of(Box(0, 255, shape, np.uint8)), encoder_of(settle("x", Box(-1.0, 3.0, shape), "image"))
    real.load_state_dict(byte.state_dict())
    encoding = byte({"x": picture})
    assert encoding.shape == (2, 9)
    torch.testing.assert_close(real({"x": picture / 255 * 4 - 1}), encoding, rtol=1e-4, atol=1e-5)


def test_every_cell_of_a_grid_is_seen(values_of):
    space = MultiDiscrete(np.tile([4, 3], (8, 3, 1)))
    encoder, values = encoder_of(space), values_of(space, 1)
    encoding = encoder({"x": values})
    for index in np.ndindex(space.shape):
        changed = values.clone()
        changed[(0, *index)] = (changed[(0, *index)] + 1) % int(space.nvec[index])
        assert not torch.equal(encoder({"x": changed}), encoding), index


@pytest.mark.parametrize(("size", "least"), [(3, 0.2), (5, 0.1), (7, 0.07)])
def test_every_cell_of_a_view_counts_from_the_start(size, least):
    space = MultiDiscrete(np.tile([11, 6, 3], (size, size, 1)))
    for seed in range(5):
        torch.manual_seed(seed)
        encoder = Encoder({"x": space}, EncoderConfig(grid_features=64, grid_channels=16))
        views = torch.stack([torch.randint(n, (32, size, size)) for n in (11, 6, 3)], -1)
        encoding = encoder({"x": views})
        changes = []
        for row, column in np.ndindex(size, size):
            changed = views.clone()
            changed[:, row, column, 0] = (changed[:, row, column, 0] + 1) % 11
            changes.append((encoder({"x": changed}) - encoding).norm(dim=1).mean() / encoding.norm(dim=1).mean())
        assert min(changes) > least, (seed, torch.stack(changes).view(size, size))


def test_a_small_view_is_not_squeezed():
    space = MultiDiscrete(np.tile([11, 6, 3], (3, 3, 1)))
    encoder = Encoder({"x": space}, EncoderConfig(grid_features=64, grid_channels=16))
    views = torch.stack([torch.randint(n, (500, 3, 3)) for n in (11, 6, 3)], -1)
    assert torch.linalg.matrix_rank(torch.atanh(encoder({"x": views})), rtol=1e-2) == 64


def test_a_text_ends_at_its_first_padding():
    encoder = TextEncoder(Tokens(("", "a", "b", "c"), 5), 7)
    text = torch.tensor([[1, 3, 0, 0, 0], [1, 3, 0, 2, 1], [1, 3, 2, 0, 0], [3, 1, 0, 0, 0], [0, 1, 2, 3, 1]])
    encoding = encoder(text)
    torch.testing.assert_close(encoding[0], encoding[1])
    assert not torch.allclose(encoding[0], encoding[2]) and not torch.allclose(encoding[0], encoding[3])
    assert not encoding[4].any()
    output, _ = encoder.gru(encoder.embedding(text[:1, :2]))
    torch.testing.assert_close(encoding[0], output[0, -1])


def test_equal_texts_are_encoded_once(monkeypatch):
    encoder = TextEncoder(Tokens(("", "a", "b"), 4), 7)
    rows = []
    encoder.gru.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    text = torch.tensor([[1, 2, 0, 0], [2, 1, 1, 0]])
    window = text.repeat(5, 3, 1)
    encoding = encoder(window)
    assert rows == [2]
    torch.testing.assert_close(encoding, encoder(text).repeat(5, 3, 1))


def test_unsupported_entries_are_refused():
    with pytest.raises(MerlinError, match="entry 'x' is a Text"):
        encoder_of(gymnasium.spaces.Text(4))


@pytest.mark.parametrize(
    "space",
    [
        Box(-1e10, 1e10, (30, 6)),
        Box(-3e38, 3e38, (10, 8)),
        Box(-(2**63), 2**63 - 2, (10, 8), np.int64),
        Box(np.array([-np.inf, 0, -1e10]), np.array([1e10, np.inf, 300]), dtype=np.float64),
        Box(0, 2**64 - 1, (4,), np.uint64),
        Box(0, 1e6, (84, 84)),
        Box(-1000, 1000, (84, 84, 3)),
    ],
    ids=str,
)
def test_no_bounds_make_numbers_look_the_same(space: Box):
    encoder = encoder_of(space)
    zero, other = (encoder({"x": torch.full(space.shape, x, dtype=torch.float64)}) for x in (0.0, 250.0))
    assert ((other - zero).abs() > 1e-4).all() and other.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "moved"),
    [((3, 13, 14), (1, 2, 0)), ((4, 13, 14, 3), (1, 2, 0, 3)), ((4, 3, 13, 14), (2, 3, 0, 1))],
    ids=str,
)
def test_where_channels_lie_does_not_matter(shape, moved):
    picture = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    last = picture.permute(0, *(axis + 1 for axis in moved)).flatten(3)
    ours = encoder_of(Box(0, 255, shape, np.uint8))
    theirs = encoder_of(Box(0, 255, (13, 14, last.shape[-1]), np.uint8))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours({"x": picture}), theirs({"x": last}), rtol=1e-4, atol=1e-5)


def test_flat_symbols_are_symbols_of_one_channel():
    flat = settle("x", MultiDiscrete(np.full((4, 6), 3), start=np.full((4, 6), 2)), "symbols")
    deep = MultiDiscrete(np.full((4, 6, 1), 3), start=np.full((4, 6, 1), 2))
    ours, theirs = encoder_of(flat), encoder_of(deep)
    theirs.load_state_dict(ours.state_dict())
    value = torch.randint(2, 5, (5, 4, 6))
    torch.testing.assert_close(ours({"x": value}), theirs({"x": value.unsqueeze(-1)}))


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (MultiDiscrete([5, 5]), [5, 0], "Variable 0 of entry 'x' must be a category from 0 to 4, but is 5"),
        (MultiDiscrete([5, 3], start=[2, 1]), [3, 0], "Variable 1 of entry 'x' .* from 1 to 3, but is 0"),
        (MultiBinary(3), [0, 1, 2], "Variable 2 of entry 'x' must be a category from 0 to 1, but is 2"),
        (Discrete(5, start=-2), 3, "Entry 'x' must be a category from -2 to 2, but is 3"),
        (Discrete(5, start=-2), -3, "Entry 'x' must be a category from -2 to 2, but is -3"),
        (Discrete(2000), 2000, "Entry 'x' must be a category from 0 to 1999, but is 2000"),
        (MultiDiscrete(np.tile([4, 3], (2, 3, 1))), [[[0, 0], [0, 3], [0, 0]]] * 2, "1 of a cell of entry 'x' .* 3"),
    ],
)
def test_a_category_that_does_not_exist_is_told(space, value, message):
    with pytest.raises(MerlinError, match=message):
        encoder_of(space)({"x": torch.tensor([value])})


def test_a_category_that_does_not_exist_is_never_anothers(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # where nobody can be told, as on a GPU
    encoding = encoder_of(MultiDiscrete([5, 3]))({"x": torch.tensor([[5, 0], [-1, 2], [4, 3], [2, -9]])})
    assert encoding.argmax(1).tolist() == [5, 7, 4, 2] and encoding.sum(1).tolist() == [1.0] * 4


def test_no_rows_have_no_encodings(space, values_of):
    """As of a window that is too short for what is learnt from it."""
    encoder = encoder_of(space)
    encoding = encoder({"x": values_of(space, 1)[:0].expand(3, *values_of(space, 1)[:0].shape)})
    assert encoding.shape == (3, 0, encoder.output_size)
    if encoding.requires_grad:
        encoding.sum().backward()
