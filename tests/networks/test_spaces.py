import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiDiscrete, Sequence, Text, Tuple

from merlin.errors import MerlinError
from merlin.networks.spaces import Tokens, flatten_observation, flatten_space, kind

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


def test_kinds_at_the_borders():
    assert kind(Box(0, 1, (4, 64, 3))) == "vector"
    assert kind(Box(-np.inf, 1, (9, 9))) == "vector"
    assert kind(Box(0, 1, (5, 9))) == "image"
    uneven = np.tile([4, 3, 2], (3, 4, 1))
    uneven[1, 2, 0] = 5
    assert kind(MultiDiscrete(uneven)) == "category"


@pytest.mark.parametrize("space", [Graph(Discrete(2), Discrete(2)), Sequence(Discrete(2)), Text(5)])
def test_unsupported_entries_are_named_in_one_sentence(space: gymnasium.Space):
    with pytest.raises(
        MerlinError, match=rf"entry 'inner.odd' is a {type(space).__name__}: leave it out with a wrapper"
    ):
        flatten_space(Dict(inner=Dict(odd=space, fine=Discrete(2))))


def test_empty_and_channel_first_spaces_are_refused():
    with pytest.raises(MerlinError, match="must have an entry"):
        flatten_space(Dict())
    with pytest.raises(MerlinError, match=r"'observation' has shape \(4, 84, 84\)"):
        flatten_space(Box(0, 255, (4, 84, 84), np.uint8))


def test_tokens_know_their_vocabulary():
    space = Tokens(("", "go", "stop"), 4)
    assert space.shape == (4,) and space.nvec.tolist() == [3] * 4 and space.vocabulary == ("", "go", "stop")
