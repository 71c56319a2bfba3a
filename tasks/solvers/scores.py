"""What MiniGrid's tasks on our grid worlds share beside the rules: scores of reference play, averaged over episodes."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..grid import cells
from ..grid.world import GridWorld
from .planning import Planner, Stage
from .reactive import REACH_GOAL, Reflexes, Rule

EPISODES = {"random": 1000, "memoryless": 100, "oracle": 200}
"""Over how many `scores` averages."""


class PlannedTask(GridWorld):
    """A grid world that can say how it is solved.

    Args:
        settings: The arguments that make up the task, beside those named here.
        world: More arguments of `GridWorld`.
    """

    rules: tuple[Rule, ...] = (REACH_GOAL,)

    def __init__(
        self,
        num_envs: int,
        height: int,
        width: int,
        settings: dict[str, Any],
        *,
        max_steps: int,
        agent_view_size: int = 7,
        see_through_walls: bool = False,
        **world: Any,
    ):
        shared = {"max_steps": max_steps, "agent_view_size": agent_view_size, "see_through_walls": see_through_walls}
        self.settings = settings | shared
        super().__init__(num_envs, height, width, **shared, **world)

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done one after the other; unless overridden, go to the goal.

        Args:
            codes: What the cells of `rows` of the batch hold now.
        """
        return [Stage(cells.FORWARD, codes == cells.GOAL)]

    @cached_property
    def scores(self) -> dict[str, float]:
        return scores_of(type(self), **self.settings)


def scores_of(task: type[PlannedTask], **settings: Any) -> dict[str, float]:
    """Return mean returns of random, memoryless (`Reflexes`) and oracle (`Planner`) play.

    These are averages over 1,000, 100 and 200 episodes from seed 0. The oracle sees the whole grid: a bound for an
    agent that sees a part of it. The memoryless player is a simple one, a function of the present observation and of
    chance: not the best there is, and so no bound.
    """
    return dict(_scores(task, tuple(sorted(settings.items()))))


@lru_cache
def _scores(task: type[PlannedTask], settings: tuple[tuple[str, Any], ...]) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    players = {
        "random": lambda env: lambda _: torch.randint(env.num_actions, (env.num_envs,), generator=generator),
        "memoryless": Reflexes,
        "oracle": Planner,
    }
    envs = {name: task(count, **dict(settings)) for name, count in EPISODES.items()}
    return {name: float(first_returns(envs[name], player(envs[name])).mean()) for name, player in players.items()}


def first_returns(env: GridWorld, policy: Callable[[Any], Tensor], seed: int = 0) -> Float64[Tensor, "B"]:
    """Return the return of the first episode in each environment."""
    env.autoreset = False
    observation, _ = env.reset(seed=seed)
    returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    is_playing = torch.ones_like(returns, dtype=torch.bool)
    while is_playing.any():
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        returns += reward * is_playing
        is_playing &= ~(terminated | truncated)
    env.autoreset = True
    return returns


class PickUpTask(PlannedTask):
    """A task that is solved by picking up what lies at `target`."""

    extra_names = ("target",)

    def _judge(self, moves):
        now = cells.code_of(self.cells.view(-1).index_select(0, self.bases + moves.front))
        is_gone = (moves.front == self.target) & (now == cells.EMPTY) & (moves.ahead != cells.EMPTY)
        self.target = torch.where(is_gone, -1, self.target)  # also where a box was opened: it cannot be picked up then
        return self.solved_or_failed(is_gone & (moves.action == cells.PICKUP), torch.zeros_like(is_gone))

    def is_target(self, rows: Int[Tensor, "L"]) -> Bool[Tensor, "L H W"]:
        """Return where the targets of these environments lie."""
        x, y = torch.meshgrid(torch.arange(self.width), torch.arange(self.height), indexing="xy")
        return self.place(x, y).to(self.device) == self.target[rows].view(-1, 1, 1)
