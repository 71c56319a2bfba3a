"""Tiny agents of every kind and random experience for them."""

from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces

from merlin.agents import AGENTS, Agent
from merlin.agents.merlin.reward_keys import RewardKeys
from merlin.experience import Unroll
from merlin.networks.spaces import Tokens
from merlin.runs.presets import preset
from merlin.states import map_state, stack_states

SPACES = {"card": spaces.Discrete(5), "place": spaces.Box(-1, 1, (3,), np.float32)}
EVERY_KIND = SPACES | {
    "switches": spaces.MultiBinary(3),
    "grid": spaces.MultiDiscrete(np.broadcast_to([4, 3], (3, 5, 2))),
    "picture": spaces.Box(0, 255, (6, 9, 3), np.uint8),
    "grey": spaces.Box(-1, 1, (6, 7), np.float32),
    "words": Tokens(("", "red", "blue"), 4),
}
ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "binary": spaces.MultiBinary(3),
    "mixed": spaces.Dict(
        {"a": spaces.Discrete(3, start=4), "b": spaces.Box(-1, 2, (2,)), "c": spaces.MultiDiscrete([2, 3])}
    ),
}
DISCOUNT = 0.9
VARIANTS = {
    "merlin-categorical": {"latent": "categorical", "latent_groups": 3, "latent_classes": 2},
    "merlin-policy-encoder": {
        "policy_encoder": True,
        "policy_value_cost": 0.7,
        "policy_latent_scale": 0.3,
        "policy_read_scale": 0.6,
        "policy_reward_keys": 4,
    },
}
"""Settings of agents that differ in what they are made of."""
KINDS = [*AGENTS, *VARIANTS]
"""All agents, MERLIN with both families of latents, and with a policy that sees and judges for itself and reads
what was rewarded."""
ON_POLICY = [name for name in AGENTS if name != "dreamer"]
"""Agents whose policy learns from what it did. Dreamer's learns from what its model imagines."""


def make_agent(name: str, action_space: str = "discrete", seed: int = 0, spaces=SPACES, **settings) -> Agent:
    """Return a small agent, one of `KINDS`, every size another."""
    torch.manual_seed(seed)
    sizes = {
        "latent_size": 6,
        "hidden_size": 7,
        "policy_hidden_size": 9,
        "memory_size": 5,
        "num_read_keys": 2,
        "word_size": 8,
    }
    sizes |= {"tick_steps": 3}  # so that ticks follow something in short windows too
    sizes |= VARIANTS.get(name, {})
    name = "merlin" if name in VARIANTS else name
    config = preset(name).model
    known = {key: value for key, value in {**sizes, **settings}.items() if hasattr(config, key)}
    agent = AGENTS[name].agent_class(spaces, ACTION_SPACES[action_space], replace(config, **known))
    with torch.no_grad():  # biases start at zero, which would hide a bias left out; and let the policy have opinions
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in agent.modules():
            if isinstance(module, RewardKeys):  # as if rewards had been seen
                module.sums.uniform_()
    return agent


def learnt(agent: Agent) -> list[torch.nn.Parameter]:
    """The parameters that learn: all but copies of others."""
    return [parameter for parameter in agent.parameters() if parameter.requires_grad]


def random_observation(*shape: int) -> dict[str, torch.Tensor]:
    return {"card": torch.randint(5, shape), "place": torch.rand(*shape, 3) * 2 - 1}


def act(
    agent: Agent,
    is_first: torch.Tensor,
    state=None,
    seed: int = 0,
    place_unit: float = 1.0,
    reward_unit: float = 1.0,
    masks: torch.Tensor | None = None,
):
    """Let the agent act on random observations [T, B]; return the window, its initial state, that after it, outputs.

    Args:
        place_unit: Of numbers of the observation, as `reward_unit` of rewards; the last value is of order 1.
        masks: Of its actions [T, B, C].
    """
    torch.manual_seed(seed)
    length, batch = is_first.shape
    generator = torch.Generator().manual_seed(seed)
    dtype = next(agent.parameters()).dtype
    observation = random_observation(length, batch)
    observation["place"] = observation["place"].to(dtype) * place_unit
    if masks is not None:
        observation["action_mask"] = masks
    state = initial = cast(agent.initial_state(batch) if state is None else state, dtype)
    reward = torch.randn(length + 1, batch).to(dtype) * reward_unit
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
        next_value=torch.cat([value[1:], torch.randn(1, batch).to(dtype)]),
        is_end=is_end,
        is_valid=torch.ones_like(is_end),
        extras=stack_states([output.extras for output in outputs]),
    )
    return unroll, initial, state, outputs


def window(unroll: Unroll, start: int, stop: int) -> Unroll:
    """Return the rows from `start` to `stop`."""
    observation = {name: x[start:stop] for name, x in unroll.observation.items()}
    return map_state(lambda x: x[start:stop], unroll._replace(observation=None))._replace(observation=observation)


def row(unroll: Unroll, t: int) -> dict[str, torch.Tensor]:
    """Return one step's observation."""
    return {name: x[t] for name, x in unroll.observation.items()}


def cast(state, dtype: torch.dtype):
    """Return a state with its numbers that are no integers in another precision."""
    return map_state(lambda x: x.to(dtype) if x.is_floating_point() else x, state)


def leaves(tree, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a state by their paths, such as `.policy.hidden`."""
    if tree is None:
        return {}
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    return {key: x for part in tree._fields for key, x in leaves(getattr(tree, part), f"{name}.{part}").items()}


def tensors(state) -> list[torch.Tensor]:
    """Return the tensors of a state."""
    return list(leaves(state).values())
