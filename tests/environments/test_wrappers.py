"""Wrappers that are named by a setting are put around each environment, innermost first, or told to be none."""

import pytest
import torch

from merlin.environments.batch import make_environment
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec, make_env
from merlin.errors import MerlinError

HERE = "tests.environments.examples"


def wrapped(task, *names, **arguments):
    return make_environment(task, 2, config=EnvironmentConfig(wrappers=tuple(names)), **arguments)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("names", "factor", "more"), [(["Doubled", "Incremented"], 2, 1), (["Incremented", "Doubled"], 2, 2)]
)
def test_the_first_wrapper_is_innermost(names, factor, more, vectorization):
    rewards = []
    for wrappers in ([], [f"{HERE}:{name}" for name in names]):
        with wrapped(f"{HERE}:test/Episodes-v0", *wrappers, vectorization=vectorization) as environment:
            environment.reset(0)
            rewards.append(environment.step(torch.zeros(2, dtype=torch.int64)).reward)
    assert torch.equal(rewards[1], factor * rewards[0] + more)


def test_a_task_that_is_a_batch_of_tensors_is_taken_one_by_one_in_wrappers():
    with wrapped("merlin/TMaze-v0", f"{HERE}:Incremented") as environment:
        assert not environment.is_native
        environment.reset(0)
        assert environment.step(torch.zeros(2, dtype=torch.int64)).reward.tolist() == [1, 1]


def test_wrappers_of_gymnasium_and_of_a_single_environment():
    env = make_env(find_spec("CartPole-v1"), {}, None, ["gymnasium.wrappers:FlattenObservation", f"{HERE}:Doubled"])
    env.reset(seed=0)
    assert env.step(0)[1] == 2.0


@pytest.mark.parametrize(
    ("task", "name", "sentence"),
    [
        ("CartPole-v1", "Doubled", "A wrapper is written module:Wrapper, but 'Doubled' came"),
        ("CartPole-v1", "no_such_module:Doubled", "The module of 'no_such_module:Doubled' cannot be imported"),
        ("CartPole-v1", f"{HERE}:Trebled", f"{HERE} has nothing of that name for '{HERE}:Trebled'"),
        ("CartPole-v1", f"{HERE}:NO_WRAPPER", f"{HERE} has an int for"),
        ("CartPole-v1", f"{HERE}:needs_more", f"{HERE}:needs_more failed around CartPole-v1: TypeError: .*'size'"),
        ("CartPole-v1", f"{HERE}:returns_nothing", f"{HERE}:returns_nothing returned None"),
        (
            "CartPole-v1",
            "gymnasium.wrappers:FilterObservation",
            "FilterObservation failed around CartPole-v1: TypeError",
        ),
        ("test/OnlyBatches-v0", f"{HERE}:Doubled", "there are only batches of test/OnlyBatches-v0: leave them out"),
    ],
)
def test_what_is_no_wrapper_is_told(task, name, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        wrapped(task, name)
    assert "\n" not in str(raised.value)
