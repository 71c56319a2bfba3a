"""Masks of actions, by infos and by observations, are those of the observations that they come with."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from merlin.environments.batch import Environment, make_environment
from merlin.errors import MerlinError
from merlin.networks.spaces import ACTION_MASK
from tests.environments.examples import allowed, episodes, masked_batch

everywhere = pytest.mark.parametrize("where", ["info", "observation"])


def lawful(mask):
    """An action of each row that is allowed, another with each call."""
    return torch.multinomial(mask.float(), 1).squeeze(1) - 1


def check(environment, at_end="mask", steps=60):
    """Assert that every mask is that of its observation, where an action follows; return how often an end was seen."""
    timestep, ends = environment.reset(5), 0
    assert ACTION_MASK not in environment.spaces
    for _ in range(steps):
        mask = timestep.observation[ACTION_MASK]
        assert mask.shape == (environment.num_envs, 3) and mask.dtype == torch.bool
        expected = torch.tensor(allowed(timestep.observation["clock"]))
        acts = ~timestep.is_last
        assert torch.equal(mask[acts], expected[acts])
        action = torch.where(acts, lawful(expected), 7) if at_end == "mask" else lawful(expected)
        timestep = environment.step(action.where(acts, torch.tensor(-1)))
        if timestep.truncated.any():
            final = timestep.final_observation
            expected = torch.tensor(allowed(final["clock"]))
            expected = {"mask": expected, "zeros": torch.zeros_like(expected), "none": torch.ones_like(expected)}[
                at_end
            ]
            rows = timestep.truncated
            assert torch.equal(final[ACTION_MASK][rows], expected[rows])
            ends += int(rows.sum())
    return ends


@everywhere
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("batch", ["sync", "async", "tensors"])
def test_every_mask_is_that_of_its_observation(where, mode, batch):
    with Environment(masked_batch(mode, batch, where=where)) as environment:
        assert environment.is_native == (batch == "tensors")
        assert check(environment) > 5


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("batch", ["sync", "tensors"])
@pytest.mark.parametrize("where, at_end", [("info", "none"), ("info", "zeros"), ("observation", "zeros")])
def test_the_mask_of_a_last_observation_may_allow_nothing_or_be_missing(mode, batch, where, at_end):
    with Environment(masked_batch(mode, batch, where=where, at_end=at_end)) as environment:
        assert check(environment, at_end) > 5


@everywhere
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_id_gives_its_masks(where, vectorization):
    with make_environment("test/Masked-v0", 3, vectorization=vectorization, env_kwargs={"where": where}) as environment:
        assert check(environment) > 5


@pytest.mark.parametrize("misdeed, sentence", [
    ("nothing", r"must allow an action, but \S+ allows environment 0 nothing"),
    ("size", "3 numbers"),
    ("value", r"3 numbers 0 or 1.*\S+ gives environment 0 \["),
    ("missing", "gives environment 0 none, having begun with one"),
])  # fmt: skip
@pytest.mark.parametrize("vectorization", ["sync", "async", "a batch of another's"])
def test_a_wrong_mask_is_one_sentence(misdeed, sentence, vectorization):
    if vectorization == "a batch of another's":
        make = lambda: Environment(masked_batch(AutoresetMode.SAME_STEP, misdeed=misdeed))  # noqa: E731
        if misdeed == "size":
            pytest.skip("gymnasium's own batch cannot hold it")
    else:
        make = lambda: make_environment(  # noqa: E731
            "test/Masked-v0", 3, vectorization=vectorization, env_kwargs={"misdeed": misdeed}
        )
    with make() as environment, pytest.raises(MerlinError, match=sentence) as raised:
        check(environment)
    assert "\n" not in str(raised.value) and ("test/Masked-v0" in str(raised.value))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_mask_of_a_box_is_one_sentence(vectorization):
    env_kwargs = {"action_space": spaces.Box(-1, 1, (3,))}
    with (
        make_environment("test/Masked-v0", 2, vectorization=vectorization, env_kwargs=env_kwargs) as environment,
        pytest.raises(MerlinError, match=r"is of choices, but test/Masked-v0 .* are a Box"),
    ):
        environment.reset(0)


def test_an_entry_that_cannot_be_a_mask_is_one_sentence():
    vector_env = episodes(AutoresetMode.SAME_STEP)
    entries = vector_env.single_observation_space.spaces
    for entry in (spaces.Discrete(3), spaces.MultiBinary(4), spaces.Tuple([spaces.MultiBinary(3)])):
        vector_env.single_observation_space = spaces.Dict(entries | {ACTION_MASK: entry})
        with pytest.raises(MerlinError, match=r"must be 3 numbers 0 or 1, .*; test/Episodes-v0 has an entry"):
            Environment(vector_env)


def test_masks_that_begin_late_are_one_sentence():
    with Environment(episodes(AutoresetMode.SAME_STEP)) as environment:
        environment.reset(0)
        step = environment.vector_env.step
        environment.vector_env.step = lambda action: (*step(action)[:-1], {ACTION_MASK: np.ones((3, 3))})
        with pytest.raises(MerlinError, match="gave none with the reset"):
            environment.step(torch.zeros(3, dtype=torch.int64))


def test_without_masks_observations_have_none():
    with Environment(episodes(AutoresetMode.SAME_STEP)) as environment:
        timestep = environment.reset(0)
        for _ in range(10):
            assert ACTION_MASK not in timestep.observation
            timestep = environment.step(torch.zeros(3, dtype=torch.int64))
