"""One space of every kind, and batches of its values."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from merlin.networks.spaces import Tokens, settle

SPACES: dict[str, tuple[str, gymnasium.Space]] = {
    "discrete": ("category", Discrete(5)),
    "discrete_start": ("category", Discrete(4, start=-2)),
    "multi_discrete": ("category", MultiDiscrete([3, 5, 2])),
    "multi_discrete_equal": ("category", MultiDiscrete([3, 3], start=[1, 7])),
    "multi_discrete_one": ("category", MultiDiscrete([6])),
    "multi_discrete_matrix": ("category", MultiDiscrete([[3, 4], [2, 5]])),
    "multi_binary": ("category", MultiBinary(4)),
    "vector": ("vector", Box(-1.0, 1.0, (3,))),
    "vector_scaled": ("vector", Box(np.array([-8.0, -0.5]), np.array([2.0, 0.5]), dtype=np.float64)),
    "vector_unbounded": ("vector", Box(-np.inf, np.inf, (2,))),
    "vector_integer": ("vector", Box(0, 200, (4,), np.uint8)),
    "scalar": ("vector", Box(-3.0, 3.0, ())),
    "matrix": ("vector", Box(-1.0, 1.0, (2, 3))),
    "discrete_as_number": ("vector", settle("x", Discrete(9, start=-4), "vector")),
    "image_smallest": ("image", Box(0, 255, (5, 5, 1), np.uint8)),
    "image_game": ("image", Box(0, 255, (7, 6, 3), np.uint8)),
    "image_channels_first": ("image", Box(0, 255, (3, 9, 12), np.uint8)),
    "image_stack": ("image", Box(0, 255, (4, 9, 12, 3), np.uint8)),
    "image_stack_channels_first": ("image", Box(0.0, 1.0, (2, 1, 17, 16))),
    "image_grey": ("image", settle("x", Box(-1.0, 3.0, (12, 17)), "image")),
    "image_odd": ("image", settle("x", Box(10, 250, (19, 10, 3), np.uint8), "image")),
    "image_planes": ("image", Box(0, 1, (6, 7, 5), bool)),
    "symbols": ("symbols", MultiDiscrete(np.tile([4, 3, 2], (6, 5, 1)))),
    "symbols_start": ("symbols", MultiDiscrete(np.tile([3, 2], (3, 4, 1)), start=np.tile([2, 1], (3, 4, 1)))),
    "symbols_flat": ("symbols", settle("x", Box(2, 5, (4, 6), np.uint8), "symbols")),
    "symbols_large": ("symbols", MultiDiscrete(np.tile([4, 3], (9, 17, 1)))),
    "text": ("text", Tokens(("", "go", "to", "the", "red"), 6)),
}


@pytest.fixture(params=SPACES)
def name(request) -> str:
    return request.param


@pytest.fixture
def space(name: str) -> gymnasium.Space:
    return SPACES[name][1]


@pytest.fixture
def values_of() -> Callable[..., torch.Tensor]:
    """Return random values of a space under leading dimensions."""

    def values(space: gymnasium.Space, *batch: int, seed: int = 3) -> torch.Tensor:
        space.seed(seed)
        rows = np.stack([space.sample() for _ in range(int(np.prod(batch)))])
        return torch.as_tensor(rows).reshape(*batch, *space.shape)

    return values


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
