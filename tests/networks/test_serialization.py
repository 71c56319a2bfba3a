"""Spaces are written as JSON and read back the same."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from merlin.errors import MerlinError
from merlin.networks.serialization import space_from_dict, space_to_dict, spaces_from_dict, spaces_to_dict
from merlin.networks.spaces import Tokens

INT64 = np.iinfo(np.int64)
SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-np.inf, np.array([1, np.inf], np.float32)),
    spaces.Box(np.float32(0.1), np.float32(0.3), (2,)),
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(-1, 1, ()),
    spaces.Box(0, 1, (0,)),
    spaces.Box(np.array([[0, 1, 2]] * 2), np.array([[7], [8]]) * np.ones((1, 3), np.int64), dtype=np.int64),
    spaces.Box(INT64.min, INT64.max, (2,), np.int64),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete(np.broadcast_to([11, 6, 4], (7, 7, 3)), dtype=np.uint8),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [1, 0]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Text(5, min_length=2, charset="abé "),
    Tokens(("", "go", "to"), 5),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 0.1, (2,))])}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back_the_same(space):
    text = json.dumps(space_to_dict(space), allow_nan=False)
    assert len(text) < 300, "bounds that are the same along an axis are written once"
    found = space_from_dict(json.loads(text))
    assert type(found) is type(space) and found == space and found.dtype == space.dtype
    if isinstance(space, Tokens):
        assert found.vocabulary == space.vocabulary
    if isinstance(space, spaces.Dict):
        assert list(found) == list(space)


def test_entries_keep_their_order():
    entries = {"z": spaces.Discrete(2), "a.b": spaces.Discrete(3)}
    found = spaces_from_dict(json.loads(json.dumps(spaces_to_dict(entries))))
    assert list(found) == ["z", "a.b"] and found == entries


def test_a_space_that_nobody_registered_is_told_by_its_name():
    class Own(spaces.Discrete):
        pass

    with pytest.raises(MerlinError, match="this one is a Own"):
        space_to_dict(Own(3))
    Own.__name__ = "Discrete"
    with pytest.raises(MerlinError, match="this one is a Discrete"):
        space_to_dict(Own(3))


@pytest.mark.parametrize(
    "values", [None, {}, {"type": "Sphere"}, {"type": "Discrete"}, {"type": "Box", "shape": [2], "dtype": "float32"},
               {"type": "Box", "shape": [2], "dtype": "float32", "low": [0, 1, 2], "high": 3}]
)  # fmt: skip
def test_what_is_no_space_is_told(values):
    with pytest.raises(MerlinError, match="A space must be written as its kind writes it"):
        space_from_dict(values)
