import copy
import math
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple

from merlin.errors import MerlinError
from merlin.networks.spaces import (
    Picture,
    Symbols,
    Tokens,
    Vector,
    describe_entries,
    flatten_observation,
    flatten_space,
    kind,
    settle,
)

from .conftest import SPACES

NESTED = Dict(
    image=Box(0, 255, (7, 7, 3), np.uint8),
    sensors=Dict(velocity=Box(-1, 1, (2,))),
    pair=Tuple((Discrete(3), Dict(a=Discrete(2)))),
)


def test_nested_spaces_and_observations_get_the_same_dotted_names():
    spaces = flatten_space(NESTED)
    assert set(spaces) == {"image", "sensors.velocity", "pair.0", "pair.1.a"}
    assert spaces["pair.0"] == Discrete(3)
    observation = flatten_observation(NESTED.sample())
    assert set(observation) == set(spaces)
    assert all(spaces[name].contains(value) for name, value in observation.items())


def test_a_bare_space_is_called_observation():
    assert flatten_space(Discrete(3)) == {"observation": Discrete(3)}
    assert list(flatten_observation(torch.zeros(2))) == ["observation"]


def test_flattening_twice_changes_nothing():
    flat = flatten_observation({"a": {"b": torch.zeros(2)}, "c": (torch.ones(1),)})
    assert flatten_observation(flat) == flat


def test_kinds(name):
    expected, space = SPACES[name]
    assert kind(space) == expected


@pytest.mark.parametrize(
    "shape", [(84, 84), (84, 84, 1), (84, 84, 3), (84, 84, 4), (3, 84, 84), (4, 84, 84), (12, 84, 84), (4, 84, 84, 3),
              (4, 3, 84, 84), (210, 160, 3), (5, 5, 1), (7, 6, 3)], ids=str
)  # fmt: skip
def test_bytes_of_a_picture_are_one_wherever_channels_and_frames_are(shape):
    space = settle("x", Box(0, 255, shape, np.uint8))
    assert isinstance(space, Picture) and kind(space) == "image"
    rows, columns = space.size
    assert rows in (84, 210, 5, 7) and columns in (84, 160, 5, 6)
    assert rows * columns * math.prod(space.channel_shape) == math.prod(shape)


@pytest.mark.parametrize(
    ("shape", "is_image"),
    [((84, 84, 3), True), ((3, 84, 84), True), ((4, 84, 84), True), ((4, 84, 84, 3), True), ((16, 16, 1), True),
     ((84, 84), False), ((15, 16, 3), False), ((84, 84, 5), False), ((17, 84, 84, 3), False)],
)  # fmt: skip
@pytest.mark.parametrize("high", [1.0, 255.0])
def test_floats_are_a_picture_where_nothing_else_is_likely(shape, is_image, high):
    assert kind(Box(0.0, high, shape)) == ("image" if is_image else "vector")


@pytest.mark.parametrize(
    "space",
    [
        Box(-1e10, 1e10, (30, 6)),
        Box(0, 1, (30, 6)),
        Box(0, 255, (30, 6), np.int64),
        Box(-(2**63), 2**63 - 2, (10, 8), np.int64),
        Box(0, 254, (84, 84, 3), np.uint8),
        Box(-1, 1, (84, 84, 3)),
        Box(0, np.inf, (84, 84, 3)),
        Box(-np.inf, 1, (9, 9)),
        Box(0, 255, (4, 64, 3), np.uint8),
        Box(0, 255, (9, 9, 20), np.uint8),
        Box(0, 255, (8, 9, 20), np.uint8),
        Box(0, 255, (2, 2, 84, 84, 3), np.uint8),
        Box(0, np.array([[[255]] * 20] * 19 + [[[1]] * 20], np.float32)),
    ],
    ids=str,
)
def test_other_numbers_are_a_vector(space: Box):
    assert kind(space) == kind(settle("x", space)) == "vector"


def test_only_a_grid_of_equal_cells_is_symbols():
    sizes = np.tile([4, 3, 2], (3, 4, 1))
    assert kind(MultiDiscrete(sizes)) == "symbols"
    uneven, starts = sizes.copy(), np.zeros_like(sizes)
    uneven[1, 2, 0] = 5
    starts[1, 2, 0] = 1
    assert kind(MultiDiscrete(uneven)) == kind(MultiDiscrete(sizes, start=starts)) == "category"


@pytest.mark.parametrize(
    ("space", "wanted", "found"),
    [
        (Box(0, 255, (84, 84, 3), np.uint8), "vector", Vector),
        (Box(-3.0, 3.0, (9, 12)), "image", Picture),
        (Box(0, 9, (7, 7, 3), np.uint8), "symbols", Symbols),
        (Box(2, 5, (4, 6), np.int32), "symbols", Symbols),
        (Box(0, 9, (5,), np.uint8), "category", MultiDiscrete),
        (MultiDiscrete([[3, 3], [3, 3]]), "symbols", Symbols),
        (MultiDiscrete([3, 9], start=[-1, 2]), "vector", Vector),
        (MultiBinary((3, 2)), "vector", Vector),
        (Discrete(2**40, start=-7), "vector", Vector),
    ],
    ids=str,
)
def test_a_kind_may_be_chosen_and_travels_with_the_space(space, wanted, found):
    chosen = flatten_space(Dict({"a.b/c": Dict(d=space), "e": Discrete(2)}), {"a.b/c.d": wanted})["a.b/c.d"]
    assert kind(chosen) == wanted and isinstance(chosen, found)
    assert chosen.shape == space.shape
    space.seed(0)
    assert all(chosen.contains(np.asarray(space.sample()).astype(chosen.dtype)) for _ in range(20))
    assert settle("x", chosen) is chosen
    for copied in (copy.deepcopy(chosen), pickle.loads(pickle.dumps(chosen))):
        assert kind(copied) == wanted and copied == chosen and vars(copied).keys() == vars(chosen).keys()


@pytest.mark.parametrize(
    ("space", "kinds", "message"),
    [
        (Box(0, 1, (2,)), {"observaton": "vector"}, "names the entry 'observaton', .*: did you mean 'observ"),
        (Box(0, 1, (2,)), {"x": "vector"}, "names the entry 'x', but the observation's are observation: name one"),
        (Box(0, 1, (2,)), {"observation": "picture"}, "a Box .*, can be read as vector, but .* is 'picture': choose"),
        (Box(0, 9, (9, 9), int), {"observation": [1]}, "read as vector, image, symbols or category, .* is .1.: choose"),
        (Box(-np.inf, 1, (9, 9)), {"observation": "image"}, "read as vector,"),
        (Box(-1e10, 1e10, (9, 9)), {"observation": "image"}, "read as vector,"),
        (Discrete(3), {"observation": "image"}, "read as vector or category"),
        (Tokens(("", "go"), 3), {"observation": "vector"}, "read as text,"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_kind_is_told_with_what_fits(space, kinds, message):
    with pytest.raises(MerlinError, match=message):
        flatten_space(space, kinds)


def test_pictures_by_bounds_are_those_of_older_runs():
    older = {"a": Box(-1, 3, (12, 17)), "b": Box(10, 250, (19, 10, 9), np.uint8), "c": Box(0, 9, (5, 5), np.int64)}
    spaces = flatten_space(Dict(older), pictures_by_bounds=True)
    assert [kind(space) for space in spaces.values()] == ["image"] * 3
    assert all(isinstance(space, Picture) and space.row_axis == 0 for space in spaces.values())
    others = Dict(d=Box(0, np.inf, (9, 9)), e=Box(0, 1, (4, 64, 3)), f=Box(0, 1, (9,)), g=Discrete(3))
    assert "image" not in map(kind, flatten_space(others, pictures_by_bounds=True).values())
    assert kind(flatten_space(Dict(older), {"a": "vector"}, pictures_by_bounds=True)["a"]) == "vector"


@pytest.mark.parametrize(
    "space", [Graph(Discrete(2), Discrete(2)), Sequence(Discrete(2)), OneOf([Discrete(2), Discrete(3)])]
)
def test_unsupported_entries_are_named_in_one_sentence(space: gymnasium.Space):
    with pytest.raises(
        MerlinError, match=rf"entry 'inner.odd' is a {type(space).__name__}: leave it out with a wrapper"
    ):
        flatten_space(Dict(inner=Dict(odd=space, fine=Discrete(2))))


def test_a_text_that_nobody_turned_into_tokens_is_told_what_to_do():
    with pytest.raises(MerlinError, match=r"'inner\.said' is a Text of a batch or of a loop of your own: return ids"):
        flatten_space(Dict(inner=Dict(said=Text(5))))


@pytest.mark.usefixtures("on_a_command_line")
@pytest.mark.parametrize(
    ("space", "number", "remedy"),
    [
        (Discrete(2**40), "1,099,511,627,776", "kinds.observation=vector"),
        (MultiDiscrete([2**20, 5]), "1,048,581", "kinds.observation=vector"),
        (MultiBinary(10**6), "2,000,000", "kinds.observation=vector"),
        (Tokens(tuple(map(str, range(1000))), 300), "300,000", "fewer."),
    ],
)
def test_too_many_categories_are_counted(space, number, remedy):
    with pytest.raises(MerlinError, match=f"'observation', a .* has {number}: wrap the environment.*{remedy}"):
        flatten_space(space)


@pytest.mark.parametrize("empty", [Box(0, 1, (0,)), Box(0, 1, (3, 0)), MultiDiscrete([])], ids=str)
def test_entries_of_nothing_are_left_out(empty):
    assert list(flatten_space(Dict(x=empty, y=Tuple([empty, Discrete(2)])))) == ["y.1"]
    with pytest.raises(MerlinError, match="must have an entry that holds something"):
        flatten_space(Dict(x=empty))
    with pytest.raises(MerlinError, match=r"'x', a .*, is empty: leave it out"):
        settle("x", empty)


def test_empty_spaces_and_names_that_meet_are_refused():
    with pytest.raises(MerlinError, match="must have an entry"):
        flatten_space(Dict())
    with pytest.raises(MerlinError, match=r"two are called 'a.b' once nested names are joined by dots"):
        flatten_space(Dict({"a.b": Discrete(2), "a": Dict(b=Discrete(3))}))


def test_entries_are_described_in_words():
    space = Dict(
        a=Box(0, 255, (4, 84, 84), np.uint8),
        b=Box(0, 255, (84, 84), np.uint8),
        c=Box(0, 1, (4, 84, 96, 3)),
        d=Box(-1e10, 1e10, (30, 6)),
        e=Box(-np.inf, np.inf, (1,)),
        f=Discrete(5),
        g=MultiDiscrete([3, 5, 2]),
        h=MultiBinary(4),
        i=MultiDiscrete(np.tile([11, 6, 4], (7, 7, 1))),
        j=Tokens(("", "go", "stop"), 4),
        k=Box(0, 255, (84, 84, 3), np.uint8),
    )
    assert describe_entries(flatten_space(space)) == [
        "a: image of 84 x 84 pixels, 4 channels first, uint8, 0 to 255",
        "b: image of 84 x 84 pixels, grey, uint8, 0 to 255",
        "c: image of 84 x 96 pixels, 4 frames of 3 channels last, float32, 0 to 1",
        "d: vector of 180 numbers (30 x 6), float32, -1e+10 to 1e+10",
        "e: vector of 1 number, float32, no bounds",
        "f: category of 5",
        "g: 3 categories of 2 to 5",
        "h: 4 categories of 2",
        "i: symbols in 7 x 7 cells of 11, 6 and 4 categories",
        "j: text of at most 4 tokens out of 2",
        "k: image of 84 x 84 pixels, 3 channels last, uint8, 0 to 255",
    ]


def test_tokens_know_their_vocabulary():
    space = Tokens(("", "go", "stop"), 4)
    assert space.shape == (4,) and space.nvec.tolist() == [3] * 4 and space.vocabulary == ("", "go", "stop")
