"""What agents went through while they played, as tensors over steps and environments, for analyses."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment


class Experience(NamedTuple):
    """T steps of B environments, on the CPU. What neither agent nor task tells is None.

    Cells count along the rows of the grid, y · width + x; a goal that is nowhere is −1. `features` are what the agent
    knows after it saw the observation, by where it knows it. What is read is the memory before the step's write. Rows
    that do not count (`is_valid`) are those whose action the environment ignored, and those of more episodes than were
    asked of an environment: else fast ones would count more.
    """

    is_valid: Bool[Tensor, "T B"]
    is_first: Bool[Tensor, "T B"]
    is_end: Bool[Tensor, "T B"]  # of an episode, by the step's action
    is_truncated: Bool[Tensor, "T B"]  # an end that time made, and nothing else
    reward: Float[Tensor, "T B"]  # of the step's action
    value: Float[Tensor, "T B"]
    features: dict[str, Float[Tensor, "T B _"]]
    read_weights: Float[Tensor, "T B K N"] | None
    policy_read_weights: Float[Tensor, "T B Q N"] | None
    slots: Int[Tensor, "T B"] | None  # written by the step
    agent_cell: Int[Tensor, "T B"] | None
    goal_cell: Int[Tensor, "T B"] | None
    sub_episode: Int[Tensor, "T B"] | None
    sub_episode_steps: Int[Tensor, "T B"] | None  # taken in it before
    grid_size: tuple[int, int] | None  # height, width
    has_memory: bool

    @property
    def num_complete(self) -> int:
        """How many of the episodes that count came to their end."""
        return int((self.is_end & self.is_valid).sum())


@torch.no_grad()
def gather(agent: Agent, environment: Environment, *, episodes: int, seed: int, max_steps: int = 2000) -> Experience:
    """Play until as many episodes are complete in each environment as it takes for `episodes` in all, and return it.

    What each key read is kept where the task tells on what map.

    Args:
        seed: Of environments, actions and latents.
        max_steps: Of each environment, at which playing ends whatever is complete.
    """
    count, task = environment.num_envs, environment.vector_env.unwrapped
    generator = torch.Generator(environment.device).manual_seed(seed)
    timestep, state = environment.reset(seed), agent.initial_state(count)
    left = torch.full((count,), -(-episodes // count), device=environment.device)
    rows: list[dict] = []
    while bool((left > 0).any()) and len(rows) < max_steps:
        before, facts = timestep, _facts(task)
        output, state = agent.step(before.observation, state, before.is_first, before.reward, generator=generator)
        features = agent.features(before.observation, output, state)
        timestep = environment.step(output.action)
        is_end = timestep.terminated | timestep.truncated
        row = {"is_valid": (left > 0) & ~before.is_last, "is_first": before.is_first, "is_end": is_end}
        row |= {"is_truncated": timestep.truncated & ~timestep.terminated, "reward": timestep.reward}
        row |= {"value": output.value, "features": features, "slots": output.slots}
        reads = {name: getattr(output, name) for name in ("read_weights", "policy_read_weights")}
        row |= reads if facts["agent_cell"] is not None else dict.fromkeys(reads)
        rows.append(_to_cpu(row | facts))
        left = left - is_end.to(left.dtype)
    columns = {name: _stack([row[name] for row in rows]) for name in rows[0]}
    size = (task.height, task.width) if columns["agent_cell"] is not None else None
    return Experience(**columns, grid_size=size, has_memory=output.read_weights is not None)


def discounted_returns(played: Experience, discount: float) -> tuple[Float[Tensor, "T B"], Bool[Tensor, "T B"]]:
    """Return what was earned from each step on to its episode's end, discounted, and where that end was seen.

    Where time ended an episode there would have been more, as V sees it: the V of its last step stands for that.
    """
    returns, is_known = torch.zeros_like(played.reward), torch.zeros_like(played.is_end)
    ahead, known = torch.zeros_like(played.reward[0]), torch.zeros_like(played.is_end[0])
    for t in range(len(returns) - 1, -1, -1):
        ahead = torch.where(played.is_truncated[t], played.value[t], ahead.masked_fill(played.is_end[t], 0))
        ahead = played.reward[t] + discount * ahead
        known = known | played.is_end[t]
        returns[t], is_known[t] = ahead, known & played.is_valid[t]
    return returns, is_known


def _facts(task: object) -> dict[str, Tensor | None]:
    """Return what a task of `tasks.grid` tells of its state."""
    facts: dict[str, Tensor | None] = dict.fromkeys(("agent_cell", "goal_cell", "sub_episode", "sub_episode_steps"))
    for name, ask in (("agent_cell", "cell_of_agent"), ("goal_cell", "cell_of_goal")):
        if hasattr(task, ask):
            facts[name] = getattr(task, ask)()
    for name in ("sub_episode", "sub_episode_steps"):
        facts[name] = getattr(task, name, None)
    return facts


def _stack(column: list):
    if column[0] is None:
        return None
    if isinstance(column[0], dict):
        return {name: _stack([row[name] for row in column]) for name in column[0]}
    return torch.stack(column)


def _to_cpu(row: dict) -> dict:
    return {name: _to_cpu(x) if isinstance(x, dict) else None if x is None else x.cpu() for name, x in row.items()}
