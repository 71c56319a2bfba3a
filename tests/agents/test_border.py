"""The border of `Agent.step`: whatever a user's loop holds is taken, and what does not fit is told by its name."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from merlin.agents import AGENTS
from merlin.agents.border import convert
from merlin.errors import MerlinError
from merlin.networks.spaces import flatten_space
from merlin.runs.presets import preset
from tests.agents.helpers import EVERY_KIND, make_agent, tensors

B = 3
FIRST = [True, False, True]


def observations(seed: int = 0) -> dict:
    """Return a batch of arrays of every kind."""
    for number, space in enumerate(EVERY_KIND.values()):
        space.seed(seed + number)
    return {name: np.stack([space.sample() for _ in range(B)]) for name, space in EVERY_KIND.items()}


def step(agent, state, *arguments, **more):
    return agent.step(*arguments[:1], state, *arguments[1:], generator=torch.Generator().manual_seed(1), **more)


FORMS = {
    "arrays": lambda x: x,
    "lists": lambda x: x.tolist(),
    "tensors": torch.from_numpy,
    "double": lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x.astype(np.int32),
    "long": lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x.astype(np.uint16),
    "big endian, read only and reversed": lambda x: np.broadcast_to(
        x[::-1].astype(x.dtype.newbyteorder(">"))[::-1], x.shape
    ),
}


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_numbers_gives_the_same_step(name, form):
    agent = make_agent(name, spaces=EVERY_KIND)
    state = agent.initial_state(B)
    arrays, reward = observations(), np.array([0.5, -1.0, 2.0])
    expected, after = step(
        agent,
        state,
        {key: torch.from_numpy(x) for key, x in arrays.items()},
        torch.tensor(FIRST),
        torch.tensor(reward, dtype=torch.float32),
    )
    given = {key: FORMS[form](x) for key, x in arrays.items()}
    found, state = step(agent, state, given, FORMS[form](np.array(FIRST)), FORMS[form](reward))
    for x, y in zip(tensors(found) + tensors(state), tensors(expected) + tensors(after), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("is_first", [[1, 0, 1], np.array([1.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, -1.0])])
def test_flags_may_be_numbers(is_first):
    seen = convert(EVERY_KIND, observations(), is_first, None, torch.zeros(B, 1))
    assert seen.is_first.tolist() == FIRST and seen.is_first.dtype == torch.bool
    assert seen.reward.tolist() == [0, 0, 0]


def test_one_flag_and_one_reward_do_for_all_rows():
    seen = convert(EVERY_KIND, observations(), True, 2, torch.zeros(B, 1, dtype=torch.float64))
    assert seen.is_first.tolist() == [True] * B and seen.reward.tolist() == [2.0] * B
    assert seen.reward.dtype == seen.observation["place"].dtype == torch.float64


@pytest.mark.parametrize("name", AGENTS)
def test_one_observation_without_a_batch_gives_one_action(name):
    agent = make_agent(name, spaces=EVERY_KIND)
    arrays = observations()
    batched, after = step(agent, agent.initial_state(1), {key: x[:1] for key, x in arrays.items()}, [True], [0.5])
    single, state = step(agent, agent.initial_state(1), {key: x[0] for key, x in arrays.items()}, True, 0.5)
    assert batched.action.shape == (1,) and single.action.shape == () and single.action == batched.action[0]
    for x, y in zip(tensors(single), tensors(batched), strict=True):
        torch.testing.assert_close(x, y[0])
    for x, y in zip(tensors(state), tensors(after), strict=True):
        torch.testing.assert_close(x, y)


def test_a_loop_over_a_batch_of_arrays():
    env = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    agent = AGENTS["merlin"].agent_class(
        flatten_space(env.single_observation_space), env.single_action_space, preset("merlin", "X").model
    )
    state, reward, is_first = agent.initial_state(2), np.zeros(2), np.ones(2, bool)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        output, state = agent.step(observation, state, is_first, reward)
        kept = observation.copy()
        observation, reward, terminated, truncated, _ = env.step(output.action.numpy())
        is_first = terminated | truncated
        assert not np.array_equal(kept, observation)
    env.close()


def test_nested_observations_and_lists_that_are_no_tuples():
    nested = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))]), "b": spaces.Discrete(2)})
    seen = convert(
        flatten_space(nested), {"a": ([1, 2], [[0.0, 1.0], [1.0, 0.0]]), "b": [0, 1]}, 0, 0, torch.zeros(2, 1)
    )
    assert seen.observation["a.0"].tolist() == [1, 2] and seen.observation["a.1"].shape == (2, 2)
    root = flatten_space(spaces.Box(0, 1, (2,)))
    assert convert(root, [0.5, 0.25], True, 0, torch.zeros(1, 1)).observation["observation"].tolist() == [[0.5, 0.25]]


def change(name, value):
    return lambda arrays: (arrays | {name: value}, FIRST, 0)


WRONG = {
    r"'place' of an observation must have shape \[3\], or \[B, 3\] for a batch, but has \[3, 2\]": change(
        "place", np.zeros((B, 2), np.float32)
    ),
    r"'grid'.* must have shape \[3, 5, 2\].* but has \[3, 3, 2\]": change("grid", np.zeros((3, 3, 2), np.int64)),
    "'card' is missing": lambda arrays: ({key: x for key, x in arrays.items() if key != "card"}, FIRST, 0),
    "as many environments as the state, 3, but is of .*4": change("card", np.zeros(4, np.int64)),
    "but is of .*without a batch axis": change("card", 2),
    "entry 'place' of an observation must be finite, but nan came": change("place", np.full((B, 3), [0, np.nan, 0])),
    "entry 'place' of an observation must be finite, but -inf came": change("place", [[0, 0, -np.inf]] * B),
    "'place' must be an array of numbers": change("place", "abc"),
    "'place' must be an array of numbers.*": change("place", [[1.0], [1.0, 2.0], []]),
    "'card' of an observation must hold categories, integers from 0 to 4, but 5 came": change("card", [0, 5, 1]),
    "'card' .* but -1 came": change("card", torch.tensor([0, -1, 1])),
    "'card' .* but 0.5 came": change("card", np.array([0, 0.5, 1])),
    "'switches' .* but 2 came": change("switches", [[0, 1, 2]] * B),
    "'grid' .* integers from 0 to 2, but 3 came": change("grid", np.full((B, 3, 5, 2), [0, 3])),
    r"is_first of a step must have shape \[3\], .* but has \[2\]": lambda arrays: (arrays, [True, False], 0),
    r"reward of a step must have shape \[3\], .* but has \[3, 1\]": lambda arrays: (arrays, FIRST, np.zeros((B, 1))),
    "The reward of a step must be finite, but nan came": lambda arrays: (arrays, FIRST, [0.0, np.nan, 1.0]),
    "The reward of a step must be finite, but inf came": lambda arrays: (arrays, FIRST, float("inf")),
    "The reward of a step must be finite, but -inf came": lambda arrays: (arrays, FIRST, torch.tensor([-np.inf, 0, 1])),
    "'picture' of an observation must hold integers, as its space is of uint8, but 0.5 came": change(
        "picture", np.full(EVERY_KIND["picture"].shape, 0.5)[None].repeat(B, 0)
    ),
    "is_first must be an array of numbers": lambda arrays: (arrays, None, 0),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_told_in_a_sentence(message):
    agent = make_agent("rl-lstm", spaces=EVERY_KIND)
    with pytest.raises(MerlinError, match=message):
        step(agent, agent.initial_state(B), *WRONG[message](observations()))


def test_a_mask_of_one_environment_allows_something():
    """Rows of a batch may be of episodes that are over."""
    agent, arrays = make_agent("rl-lstm", spaces=EVERY_KIND), observations()
    nothing = arrays | {"action_mask": np.zeros((B, 4), bool)}
    step(agent, agent.initial_state(B), nothing, FIRST)
    single = {key: x[0] for key, x in nothing.items()}
    with pytest.raises(MerlinError, match="mask must allow an action, but that of this observation allows nothing"):
        step(agent, agent.initial_state(1), single, True)


def test_a_state_of_many_environments_wants_a_batch():
    agent = make_agent("rl-lstm", spaces=EVERY_KIND)
    single = {key: x[0] for key, x in observations().items()}
    with pytest.raises(MerlinError, match="as many environments as the state, 3, but is of one without a batch axis"):
        step(agent, agent.initial_state(B), single, True)


@pytest.mark.parametrize("name", AGENTS)
def test_greedy_steps_are_repeatable(name):
    """Whatever the generator draws: value, latent and next state too."""
    agent = make_agent(name)
    observation, found = {"card": 2, "place": [0.5, 0.0, -0.5]}, []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        output, state = agent.step(observation, agent.initial_state(1), True, generator=generator, greedy=True)
        found.append(tensors(output) + tensors(state))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_the_greedy_latent_is_the_posteriors_mean():
    agent = make_agent("merlin")
    observation, state = {"card": torch.tensor([2]), "place": torch.rand(1, 3)}, agent.initial_state(1)
    output, _ = agent.step(observation, state, True, greedy=True)
    code = agent.encode(observation, state.previous_action, torch.zeros(1))
    inference = agent.predictor.perceive(code, torch.randn(1, 6), state.predictor)
    torch.testing.assert_close(output.latent, inference.posterior[:, :6])
    sampled, _ = agent.step(observation, state, True)
    assert not torch.allclose(sampled.latent, output.latent)


def test_a_mask_is_needed_where_the_task_gives_them():
    agent = make_agent("rl-lstm", spaces=EVERY_KIND)
    agent.gives_masks, state = True, agent.initial_state(B)
    step(agent, state, observations() | {"action_mask": np.eye(B, 4)}, FIRST, 0)
    with pytest.raises(MerlinError, match="must have the entry 'action_mask', but it is missing: pass what the env"):
        step(agent, state, observations(), FIRST, 0)
