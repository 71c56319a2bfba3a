"""Rows whose action the environment ignored count in no loss and no metric: they might as well not be there."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from merlin.agents import AGENTS
from merlin.experience import Unroll
from merlin.networks.decoders import DecoderConfig
from merlin.networks.spaces import Tokens, flatten_space
from merlin.runs.presets import preset
from merlin.states import map_state, stack_states
from tests.agents.helpers import ON_POLICY

SPACES = flatten_space(
    Dict(
        card=Discrete(5),
        hand=MultiDiscrete([2, 4]),
        view=MultiDiscrete(np.tile([4, 3], (3, 4, 1))),
        picture=Box(0, 255, (3, 9, 8), np.uint8),
        place=Box(-8, 8, (3,)),
        said=Tokens(("", "go", "to", "red"), 4),
    )
)
LAST = {2, 7, 8, 11}  # the last rows of an episode: no action follows from what they show


def make_agent(name):
    torch.manual_seed(0)
    config = preset(name).model
    sizes = {"latent_size": 6, "hidden_size": 7, "policy_hidden_size": 9, "memory_size": 5, "expectation_cost": 0.5}
    settings = {key: value for key, value in sizes.items() if hasattr(config, key)} | {"normalize_advantages": True}
    if hasattr(config, "decoder"):
        settings["decoder"] = DecoderConfig(image_features=8, image_channels=4, grid_features=8, grid_rarity=0.7)
    return AGENTS[name].agent_class(SPACES, Discrete(3), replace(config, **settings))


def observe(*shape):
    for space in SPACES.values():
        space.seed(int(torch.randint(1000, ())))
    samples = {name: np.stack([space.sample() for _ in range(int(np.prod(shape)))]) for name, space in SPACES.items()}
    return {name: torch.as_tensor(x).reshape(*shape, *SPACES[name].shape) for name, x in samples.items()}


def act(agent, is_last):
    """Return a window [T, B] in which the rows of `is_last` end episodes, and the state that it starts from."""
    length, batch = is_last.shape
    is_first = torch.cat([torch.ones(1, batch, dtype=torch.bool), is_last[:-1]])
    is_end = torch.cat([is_last[1:], torch.zeros(1, batch, dtype=torch.bool)])
    observation, reward = observe(length, batch), torch.randn(length + 1, batch)
    state, outputs = agent.initial_state(batch), []
    for t in range(length):
        row = {name: x[t] for name, x in observation.items()}
        output, state = agent.step(row, state, is_first[t], reward[t])
        outputs.append(output)
    stack = lambda name: torch.stack([getattr(output, name) for output in outputs])  # noqa: E731
    value = stack("value")
    unroll = Unroll(
        observation=observation,
        is_first=is_first,
        previous_reward=reward[:-1].masked_fill(is_first, 0),
        action=stack("action"),
        log_prob=stack("log_prob") + 0.1 * torch.randn(length, batch),
        reward=reward[1:],
        discount=torch.where(is_end, 0.0, 0.9),
        value=value,
        next_value=torch.cat([value[1:], torch.randn(1, batch)]),
        is_end=is_end,
        is_valid=~is_last,
        extras=stack_states([output.extras for output in outputs]),
    )
    return unroll, agent.initial_state(batch)


def learn(agent, unroll, state):
    """Return the loss, metrics and gradients of a fresh copy of the agent."""
    agent = copy.deepcopy(agent)
    losses, _ = agent.losses(unroll, state)
    losses.total.backward()
    found = {"loss": losses.total.detach(), **losses.metrics}
    return found | {name: x.grad for name, x in agent.named_parameters() if x.grad is not None}


def assert_same(ours, others):
    assert ours.keys() == others.keys()
    for name, x in ours.items():
        torch.testing.assert_close(x, others[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_window_without_them_is_learnt_from_the_same(name):
    agent = make_agent(name)
    is_last = torch.tensor([t in LAST for t in range(12)]).unsqueeze(1)
    unroll, state = act(agent, is_last)
    kept = (~is_last[:, 0]).nonzero()[:, 0]
    without = map_state(lambda x: x[kept], unroll._replace(observation=None))
    without = without._replace(observation={key: x[kept] for key, x in unroll.observation.items()})
    assert_same(learn(agent, unroll, state), learn(agent, without, state))


@pytest.mark.parametrize("name", ON_POLICY)
def test_what_they_hold_changes_nothing(name):
    agent = make_agent(name)
    is_last = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)) < 0.3
    unroll, state = act(agent, is_last)

    def other(x, y):
        return torch.where(is_last.view(*is_last.shape, *[1] * (x.dim() - 2)), y, x)

    observation = {
        key: other(x, y) for (key, x), y in zip(unroll.observation.items(), observe(12, 3).values(), strict=True)
    }
    noise = {key: other(x, torch.randn(12, 3)) for key, x in unroll._asdict().items()
             if key in ("log_prob", "reward", "value", "next_value")}  # fmt: skip
    action = other(unroll.action, torch.randint(3, (12, 3)))
    changed = unroll._replace(observation=observation, action=action, **noise)
    assert_same(learn(agent, unroll, state), learn(agent, changed, state))


def assert_nothing_is_learnt(agent, unroll, state):
    """Losses and metrics of no rows are 0, but for what is explained of what was never seen, and no number goes."""
    before = {name: x.clone() for name, x in agent.named_buffers()}
    losses, _ = agent.losses(unroll, state)
    losses.total.backward()
    for name, x in losses.metrics.items():
        assert x.isnan() if name.endswith("_explained") else x.isfinite(), name
    assert losses.total == 0
    assert not any(x.grad.any() for x in agent.parameters() if x.grad is not None)  # NaN is not 0
    if unroll.reward.shape[1] == 0:
        agent.update_scales(unroll)
    for name, x in agent.named_buffers():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_window_of_nothing_else_leaves_no_trace(name):
    agent = make_agent(name)
    unroll, state = act(agent, torch.tensor([[False], [True]]))
    unroll = unroll._replace(is_valid=torch.zeros(2, 1, dtype=torch.bool))
    if name == "merlin":
        agent.predictor.observation_nats.fill_(3.0)
    assert_nothing_is_learnt(agent, unroll, state)


def test_where_no_action_counts_dreamer_imagines_nothing():
    """It learns what was observed all the same."""
    agent = make_agent("dreamer")
    unroll, state = act(agent, torch.tensor([[False], [True]]))
    losses, _ = agent.losses(unroll._replace(is_valid=torch.zeros(2, 1, dtype=torch.bool)), state)
    losses.total.backward()
    assert losses.metrics["policy_loss"] == losses.metrics["return_loss"] == losses.metrics["reward_nats"] == 0
    assert losses.total == losses.metrics["model_loss"] > 0 and agent.spread == 0
    found = [x.grad for x in agent.parameters() if x.grad is not None]
    assert all(x.isfinite().all() for x in found) and any(x.any() for x in found)


@pytest.mark.parametrize("name", AGENTS)
def test_a_window_of_no_environments_costs_nothing(name):
    agent = make_agent(name)
    state = agent.initial_state(0)
    row = {key: torch.zeros(0, *space.shape, dtype=torch.int64) for key, space in SPACES.items()}
    row["place"] = row["place"].float()
    none = torch.zeros(3, 0)
    output, _ = agent.step(row, state, none[0].bool(), none[0])
    unroll = Unroll(
        observation={key: torch.stack([x] * 3) for key, x in row.items()},
        is_first=none.bool(), previous_reward=none, action=torch.stack([output.action] * 3), log_prob=none, reward=none,
        discount=none, value=none, next_value=none, is_end=none.bool(), is_valid=none.bool(),
        extras=stack_states([output.extras] * 3),
    )  # fmt: skip
    assert_nothing_is_learnt(agent, unroll, state)
