"""Mean returns of reference players in grid worlds."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ..grid import cells
from ..grid.world import GridWorld
from .planning import Planner, Stage
from .reactive import REACH_GOAL, Reactive, Rule

Policy = Callable[[Any], Tensor]


def random_policy(env: GridWorld, seed: int = 0) -> Policy:
    """Return the policy that takes every action with the same probability."""
    generator = torch.Generator(env.device).manual_seed(seed)
    return lambda _: torch.randint(env.num_actions, (env.num_envs,), generator=generator, device=env.device)


def first_returns(env: GridWorld, policy: Policy, seed: int = 0) -> Float64[Tensor, "B"]:
    """Return the return of the first episode in each environment."""
    autoreset, env.autoreset = env.autoreset, False
    observation, _ = env.reset(seed=seed)
    returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    is_playing = torch.ones_like(returns, dtype=torch.bool)
    while is_playing.any():
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        returns += reward * is_playing
        is_playing &= ~(terminated | truncated)
    env.autoreset = autoreset
    return returns


class ScoredWorld(GridWorld):
    """A grid world that knows how it is solved, and what reference players earn in it.

    A task names its `players` and in how many episodes each is scored; unless it does, they are `random_policy`,
    `Reactive` (by `rules`) and `Planner` (by `stages`). The oracle sees the whole grid: a bound for an agent that sees
    a part of it, where its plans are shortest. The memoryless player is a simple one, a function of the present
    observation and of chance: not the best there is, and so no bound.

    Args:
        settings: The arguments that make up the task, beside those named here.
        world: More arguments of `GridWorld`.
    """

    players: ClassVar[dict[str, Callable[..., Policy]]] = {
        "random": random_policy,
        "memoryless": Reactive,
        "oracle": Planner,
    }
    score_episodes: ClassVar[dict[str, int]] = {"random": 1000, "memoryless": 100, "oracle": 200}
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
        """Mean returns of the three players in episodes from seed 0."""
        return {player: self.mean_return(player) for player in self.players}

    def mean_return(self, player: str) -> float:
        """Return what one of the `players` earns on average, computed once for each setting."""
        return _mean_return(type(self), player, tuple(sorted(self.settings.items())))


@lru_cache
def _mean_return(task: type[ScoredWorld], player: str, settings: tuple[tuple[str, Any], ...]) -> float:
    with torch.device("cpu"):  # whatever default device a program has set
        env = task(task.score_episodes[player], **dict(settings))
        return float(first_returns(env, task.players[player](env)).mean())
