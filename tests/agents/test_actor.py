"""Acting alone takes the steps of `Agent.step`: the same actions and states, bit for bit."""

import pytest
import torch
from gymnasium.spaces import Discrete

from merlin.agents.actor import Actor
from tests.agents.helpers import ACTION_SPACES, EVERY_KIND, KINDS, make_agent, random_observation, tensors

T = 14  # longer than the memory's 5 slots, so that slots are used again


SEEN = {name: space for name, space in EVERY_KIND.items() if name != "words"}


def sampled(spaces):
    """Observations of two environments, T of them."""
    for number, space in enumerate(spaces.values()):
        space.seed(number)
    rows = [{name: torch.as_tensor(space.sample()) for name, space in spaces.items()} for _ in range(2 * T)]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [{name: torch.stack([one[name], other[name]]) for name in spaces} for one, other in pairs]


def assert_alike(agent, observations, batch, greedy=False):
    """Take the same steps by both; return the actor."""
    actor, luck = Actor(agent), torch.Generator().manual_seed(5)
    twin = torch.Generator().manual_seed(5)
    state = other = agent.initial_state(batch)
    for t, observation in enumerate(observations):
        is_first = torch.arange(batch) + 1 == t % 5  # some rows begin anew, in some steps
        reward = torch.linspace(-1, 1, batch) * t
        output, state = agent.step(observation, state, is_first, reward, generator=luck, greedy=greedy)
        action, other, is_single = actor.step(observation, other, is_first, reward, generator=twin, greedy=greedy)
        assert not is_single
        assert torch.equal(action, output.action), t
        assert all(map(torch.equal, tensors(other), tensors(state))), t
        assert torch.equal(luck.get_state(), twin.get_state()), t
    return actor


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_every_agent_acts_alone_as_in_a_step(name, batch):
    torch.manual_seed(0)
    rows = random_observation(T, batch)
    observations = [{key: x[t] for key, x in rows.items()} for t in range(T)]
    actor = assert_alike(make_agent(name), observations, batch)
    assert actor.is_recorded == (name != "ftw"), "FTW's slow core steps where a counter says so"


@pytest.mark.parametrize("kind", ACTION_SPACES)
@pytest.mark.parametrize("greedy", [False, True])
def test_every_action_and_observation(kind, greedy):
    assert assert_alike(make_agent("merlin", kind, spaces=SEEN), sampled(SEEN), 2, greedy).is_recorded


def test_texts_are_read_in_a_step():
    """Of texts as many tokens are read as the longest has."""
    assert not assert_alike(make_agent("merlin", spaces=EVERY_KIND), sampled(EVERY_KIND), 2).is_recorded


def test_masks_are_obeyed():
    agent = make_agent("rl-mem")
    observations = [random_observation(2) | {"action_mask": torch.rand(2, 4) < 0.5} for _ in range(T)]
    for observation in observations:
        observation["action_mask"][:, 1] = True
    assert assert_alike(agent, observations, 2).is_recorded


def test_noise_that_depends_on_the_policy_is_drawn_in_a_step():
    agent = make_agent("rl-lstm", "box", box_actions="beta")
    assert not assert_alike(agent, [random_observation(2) for _ in range(T)], 2).is_recorded


def test_what_changes_in_parameters_is_seen():
    agent = make_agent("merlin")
    actor, observation, state = Actor(agent), random_observation(1), agent.initial_state(1)
    for _ in range(2):
        action, after, _ = actor.step(observation, state, False, greedy=True)
        output, expected = agent.step(observation, state, False, greedy=True)
        assert torch.equal(action, output.action)
        assert all(map(torch.equal, tensors(after), tensors(expected)))
        agent.load_state_dict({name: 2 * x for name, x in agent.state_dict().items()})
    assert actor.is_recorded


def test_a_single_observation_needs_no_batch():
    agent = make_agent("merlin")
    action, _, is_single = Actor(agent).step({"card": 1, "place": [0.0, 0.1, 0.2]}, agent.initial_state(1), True)
    assert is_single and action.shape == () and Discrete(4).contains(int(action))
