"""Trajectories of agents that played, as tensors over steps and environments, for analyses."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.training.play import Moment, Observer, play


class Trajectories(NamedTuple):
    """T steps of B environments, on the CPU. Entries that neither agent nor task tells are None.

    Cells count along the rows of the grid, y · width + x; a goal that is nowhere is −1. `features` are the agent's
    vectors after it saw the observation, by their names. Reads are of the memory before the step writes `slots`. Rows
    that do not count (`is_valid` is false) are those whose action the environment ignored, and those of more episodes
    than were asked of an environment: else fast ones would count more.
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
    slots: Int[Tensor, "T B"] | None  # written by the step, −1 where none was
    slots_before_reads: Int[Tensor, "T B"] | None  # written by it before its reads, −1 where none was
    agent_cell: Int[Tensor, "T B"] | None
    goal_cell: Int[Tensor, "T B"] | None
    sub_episode: Int[Tensor, "T B"] | None
    sub_episode_steps: Int[Tensor, "T B"] | None  # taken in it before
    grid_size: tuple[int, int] | None  # height, width

    @property
    def num_complete(self) -> int:
        """Number of episodes that count and came to their end."""
        return int((self.is_end & self.is_valid).sum())


class TrajectoryRecorder(Observer):
    """Trajectories of an agent until `episodes` are complete in all, as many in each environment."""

    def __init__(self, agent: Agent, environment: Environment, episodes: int) -> None:
        count = environment.num_envs
        self.agent = agent
        self.task: Any = environment.vector_env.unwrapped  # of a grid if it tells of cells
        self.left = torch.full((count,), -(-episodes // count), device=environment.device)
        self.rows: list[dict] = []

    def before_step(self, environment: Environment) -> None:
        """Keep the state of the task."""
        self.task_state = _task_state(self.task)

    def observe(self, moment: Moment) -> None:
        """Keep a step."""
        timestep, output, following = moment.timestep, moment.output, moment.next_timestep
        row = {
            "is_valid": (self.left > 0) & ~timestep.is_last,
            "is_first": timestep.is_first,
            "is_end": following.is_end,
            "is_truncated": following.truncated & ~following.terminated,
            "reward": following.reward,
            "value": output.value,
            "features": self.agent.features(timestep.observation, output, moment.next_state),
            "slots": output.slots,
            "slots_before_reads": self.agent.slots_before_reads(output, moment.next_state),
            "read_weights": output.read_weights,
            "policy_read_weights": output.policy_read_weights,
        }
        self.rows.append(_to_cpu(row | self.task_state))
        self.left = self.left - following.is_end.to(self.left.dtype)
        self.is_done = not bool((self.left > 0).any())

    def trajectories(self) -> Trajectories:
        """Return all steps."""
        columns = {name: _stack([row[name] for row in self.rows]) for name in self.rows[0]}
        size = (self.task.height, self.task.width) if columns["agent_cell"] is not None else None
        return Trajectories(**columns, grid_size=size)


def gather(agent: Agent, environment: Environment, *, episodes: int, seed: int, max_steps: int = 2000) -> Trajectories:
    """Play until as many episodes are complete in each environment as it takes for `episodes` in all, and return it.

    Args:
        seed: Of environments, actions and latents.
        max_steps: Of each environment, at which playing ends whatever is complete.
    """
    recorder = TrajectoryRecorder(agent, environment, episodes)
    play(agent, environment, recorder, seed=seed, max_steps=max_steps)
    return recorder.trajectories()


def discounted_returns(played: Trajectories, discount: float) -> tuple[Float[Tensor, "T B"], Bool[Tensor, "T B"]]:
    """Return the discounted return of each step, and the steps whose episode's end was seen.

    A truncated episode would have gone on: the V of its last step stands for what would have followed.
    """
    returns, is_known = torch.zeros_like(played.reward), torch.zeros_like(played.is_end)
    ahead, known = torch.zeros_like(played.reward[0]), torch.zeros_like(played.is_end[0])
    for t in range(len(returns) - 1, -1, -1):
        ahead = torch.where(played.is_truncated[t], played.value[t], ahead.masked_fill(played.is_end[t], 0))
        ahead = played.reward[t] + discount * ahead
        known = known | played.is_end[t]
        returns[t], is_known[t] = ahead, known & played.is_valid[t]
    return returns, is_known


def _task_state(task: object) -> dict[str, Tensor | None]:
    """Return the state of a task that tells of it, as those of `tasks.grid` do."""
    state: dict[str, Tensor | None] = {name: getattr(task, name, None) for name in ("sub_episode", "sub_episode_steps")}
    for name, ask in (("agent_cell", "cell_of_agent"), ("goal_cell", "cell_of_goal")):
        state[name] = getattr(task, ask)() if hasattr(task, ask) else None
    return state


def _stack(column: list):
    if column[0] is None:
        return None
    if isinstance(column[0], dict):
        return {name: _stack([row[name] for row in column]) for name in column[0]}
    return torch.stack(column)


def _to_cpu(row: dict) -> dict:
    return {name: _to_cpu(x) if isinstance(x, dict) else None if x is None else x.cpu() for name, x in row.items()}
