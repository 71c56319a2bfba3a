"""Tiny agents of every kind and random experience for them."""

from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces

from merlin.agents import AGENTS, Agent
from merlin.experience import Unroll
from merlin.runs.presets import preset

SPACES = {"card": spaces.Discrete(5), "place": spaces.Box(-1, 1, (3,), np.float32)}
ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}
DISCOUNT = 0.9


def make_agent(name: str, action_space: str = "discrete", **settings) -> Agent:
    """Return a small agent, every size another."""
    torch.manual_seed(0)
    sizes = {"latent_size": 6, "hidden_size": 7, "policy_hidden_size": 9, "memory_size": 5, "num_read_keys": 2}
    config = preset(name).model
    known = {key: value for key, value in {**sizes, **settings}.items() if hasattr(config, key)}
    agent = AGENTS[name].agent_class(SPACES, ACTION_SPACES[action_space], replace(config, **known))
    with torch.no_grad():  # biases start at zero, which would hide a bias left out; and let the policy have opinions
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def random_observation(*shape: int) -> dict[str, torch.Tensor]:
    return {"card": torch.randint(5, shape), "place": torch.rand(*shape, 3) * 2 - 1}


def act(agent: Agent, is_first: torch.Tensor, state=None, seed: int = 0):
    """Let the agent act on random observations [T, B]; return the window, its initial state and the state after it."""
    torch.manual_seed(seed)
    length, batch = is_first.shape
    generator = torch.Generator().manual_seed(seed)
    observation = random_observation(length, batch)
    state = initial = agent.initial_state(batch) if state is None else state
    reward = torch.randn(length + 1, batch)
    outputs = []
    for t in range(length):
        row = {name: x[t] for name, x in observation.items()}
        output, state = agent.step(row, state, is_first[t], reward[t], generator=generator)
        outputs.append(output)
    stack = lambda name: torch.stack([getattr(output, name) for output in outputs])  # noqa: E731
    value = stack("value")
    is_end = torch.cat([is_first[1:], torch.zeros(1, batch, dtype=torch.bool)])
    unroll = Unroll(
        observation=observation,
        is_first=is_first,
        previous_reward=reward[:-1].masked_fill(is_first, 0),
        action=stack("action"),
        log_prob=stack("log_prob"),
        reward=reward[1:],
        discount=torch.where(is_end, 0.0, DISCOUNT),
        value=value,
        next_value=torch.cat([value[1:], torch.randn(1, batch)]),
        is_end=is_end,
        is_valid=torch.ones_like(is_end),
        noise=None if outputs[0].noise is None else stack("noise"),
        slots=None if outputs[0].slots is None else stack("slots"),
        latent=None if outputs[0].latent is None else stack("latent"),
    )
    return unroll, initial, state, outputs


def window(unroll: Unroll, start: int, stop: int) -> Unroll:
    """Return the rows from `start` to `stop`."""
    observation = {name: x[start:stop] for name, x in unroll.observation.items()}
    rest = {k: None if x is None else x[start:stop] for k, x in unroll._asdict().items() if k != "observation"}
    return Unroll(observation=observation, **rest)


def tensors(state) -> list[torch.Tensor]:
    """Return the leaves of a state."""
    return [state] if isinstance(state, torch.Tensor) else [x for child in state for x in tensors(child)]
