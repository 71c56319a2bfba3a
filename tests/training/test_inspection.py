"""A window is looked at before it is learnt from: what cannot be learnt from is told by name."""

import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from merlin.errors import MerlinError
from merlin.networks.kinds import describe_entries
from merlin.runs.run import build_agent, build_environment
from merlin.training import inspection
from merlin.training.inspection import _loosened
from merlin.training.trainer import Trainer
from tests.environments import examples  # noqa: F401 (they register themselves)
from tests.training.test_trainer import tiny


def update(config, poison):
    """Make one update of a window that `poison` has changed, and return its trainer."""
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=64, seed=1)
        collect = trainer.rollout.collect

        def poisoned(length, records):
            window, episodes = collect(length, False)
            poison(window.unroll)
            return window._replace(acting=None), episodes

        trainer.rollout.collect = poisoned
        trainer.update()
    return trainer


def put(entry, value, where=(2, 3)):
    def poison(unroll):
        target = unroll.reward if entry == "reward" else unroll.observation[entry]
        target[where] = value

    return poison


NUMBERS = replace(tiny("rl-lstm"), task="test/Episodes-v0")


@pytest.mark.parametrize(
    ("config", "poison", "sentence"),
    [
        (
            tiny("rl-lstm"),
            put("card", 99),
            "environment 3 of merlin/MemoryGame-v0 returned 99 in entry 'card', Discrete",
        ),
        (
            tiny("rl-lstm"),
            put("card", -1),
            "environment 3 of merlin/MemoryGame-v0 returned -1 in entry 'card', Discrete",
        ),
        (
            NUMBERS,
            put("clock", torch.nan),
            r"environment 3 of test/Episodes-v0 returned nan at \(0,\) in entry 'clock'",
        ),
        (NUMBERS, put("clock", -torch.inf), r"environment 3 of test/Episodes-v0 returned -inf at \(0,\) in entry"),
        (NUMBERS, put("reward", torch.nan), "Rewards must be finite, but test/Episodes-v0 .* in environment 3"),
        (NUMBERS, put("reward", 1e30), r"Gradients must be finite, .* is 1e\+30, in the reward: scale it down"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(config, poison, sentence):
    with pytest.raises(MerlinError, match=sentence):
        update(config, poison)


@pytest.mark.parametrize(
    ("value", "is_told"), [(100.05, False), (103.0, True), (-1.05, False), (-4.0, True), (1e30, True)]
)
def test_numbers_well_beyond_a_box_are_a_warning(value, is_told):
    warnings = update(NUMBERS, put("clock", value)).inspection.warnings
    assert list(warnings) == ["clock"] * is_told
    assert not is_told or "outside of the bounds that it declares, -1 to 100: " in warnings["clock"]


class Gauges(gymnasium.Env):
    """Two numbers of very different units, of which the first leaves its bounds."""

    action_space = Discrete(2)
    observation_space = Box(np.float32([0, -40_000]), np.float32([0.001, 40_000]))

    def reset(self, *, seed=None, options=None):
        return np.float32([0.0005, -39_000]), {}

    def step(self, action):
        return np.float32([0.8, 39_000]), 0.0, False, False, {}


def test_of_numbers_in_several_units_the_one_that_leaves_its_bounds_is_named():
    task = f"{__name__}:Gauges"
    warning = update(replace(NUMBERS, task=task), lambda unroll: None).inspection.warnings["observation"]
    told = "reached 0.0005 to 0.8, outside of the bounds that it declares, 0 to 0.001: numbers are scaled by"
    assert warning.startswith("number 0 of entry 'observation' of ") and told in warning
    with build_environment(replace(NUMBERS, task=task)) as environment:
        assert "0 to 0.001 and -40000 to 40000" in describe_entries(environment.spaces)[0]


class Grid(gymnasium.Env):
    """A picture of one shade, in whose last row something else may be."""

    action_space = Discrete(2)

    def __init__(self, shade=2, dtype=np.uint8, high=255, shape=(16, 16, 1), then=None):
        self.observation_space, self.shades, self.steps = Box(0, high, shape, dtype), (shade, then), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        picture = np.full(self.observation_space.shape, self.shades[0], self.observation_space.dtype)
        picture[..., -1, :] = 0
        if self.shades[1] is not None and self.steps == 3:
            picture[..., -1, :] = self.shades[1]
        return picture, {}

    def step(self, action):
        self.steps += 1
        return self.reset()[0], 0.0, False, False, {}


gymnasium.register("test/Grid-v0", Grid)
SYMBOLS = "or read categories with .*environment.kinds.observation.*symbols"


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({}, f"stayed within 0 to 2 for 32 steps, where it declares 0 to 255, .* the bounds that it has, {SYMBOLS}"),
        ({"shade": 15}, "stayed within 0 to 15 for 32 steps"),
        ({"shade": 16}, None),
        ({"then": 30}, None),
        ({"shade": 0}, "stayed within 0 to 0 for 32 steps"),
        ({"shade": 0.01, "dtype": np.float32, "high": 1}, "stayed within 0 to 0.01 .* declares 0 to 1, .* it has$"),
        ({"shade": 1, "shape": (2, 16, 16)}, "0 to 1 for 32 steps, .* the bounds that it has$"),
        ({"shade": 1, "shape": (64, 64, 3)}, "0 to 1 for 32 steps, .* the bounds that it has$"),  # too many categories
        ({"shade": 1, "high": 1}, None),
    ],
)
@pytest.mark.parametrize("sure", [32, 33])
def test_a_picture_of_which_next_to_nothing_is_seen_is_a_warning(kwargs, told, sure, monkeypatch):
    """A network sees 2 of 255 as 0.008; with true bounds, or as symbols, the same grids are learnt from."""
    monkeypatch.setattr(inspection, "SURE", sure)  # a window has 32 steps
    config = replace(NUMBERS, task="test/Grid-v0", env_kwargs=kwargs)
    warnings = update(config, lambda unroll: None).inspection.warnings
    told = told if sure == 32 else None
    assert list(warnings) == ["observation"] * bool(told)
    assert not told or re.search(told, warnings["observation"])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint64, np.float16, np.float32, np.float64])
def test_a_box_of_any_type_has_bounds_or_can_hold_nothing_else(dtype):
    bounds = _loosened(Box(0, 1, (2,), dtype))
    assert (bounds is None) == (dtype is bool)
    assert bounds is None or ((bounds[0] <= 0).all() and (bounds[1] >= 1).all())
