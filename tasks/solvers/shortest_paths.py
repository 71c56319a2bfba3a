"""Shortest ways on grids for an agent that turns and walks, and reference policies made of them."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..grid import cells
from ..grid.world import GridWorld

UP = 3  # the direction in which a view looks


def distances(is_free: Bool[Tensor, "B H W"], is_target: Bool[Tensor, "B H W"]) -> Float[Tensor, "B 4 H W"]:
    """Return the steps from each pose, [direction, y, x], to the nearest target; infinite where none can be reached.

        d[pose] = 0 on a target, otherwise 1 + min(d[turned left], d[turned right], d[one cell forward])

    by relaxation, all poses at a time, until nothing changes. Directions are 0 right, 1 down, 2 left, 3 up.
    """
    is_blocked = ~is_free.unsqueeze(1)
    steps = torch.full((len(is_free), 4, *is_free.shape[1:]), torch.inf, device=is_free.device)
    steps = steps.masked_fill(is_target.unsqueeze(1) & ~is_blocked, 0)
    while True:
        nearest = torch.minimum(steps.roll(1, 1), steps.roll(-1, 1))
        nearest = torch.minimum(nearest, _forward(steps)).add_(1).masked_fill_(is_blocked, torch.inf)
        nearest = torch.minimum(nearest, steps)
        if torch.equal(nearest, steps):
            return steps
        steps = nearest


def _forward(values: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 4 H W"]:
    """Return the value one cell forward of each pose; infinite outside."""
    ahead = torch.full_like(values, torch.inf)
    ahead[:, 0, :, :-1] = values[:, 0, :, 1:]
    ahead[:, 1, :-1] = values[:, 1, 1:]
    ahead[:, 2, :, 1:] = values[:, 2, :, :-1]
    ahead[:, 3, 1:] = values[:, 3, :-1]
    return ahead


def at_pose(
    values: Float[Tensor, "B 4 H W"], direction: Int[Tensor, "B"], x: Int[Tensor, "B"], y: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Return the value of each environment's pose."""
    return values[torch.arange(len(values), device=values.device), direction, y, x]


def best_actions(
    steps: Float[Tensor, "B 4 H W"], direction: Int[Tensor, "B"], x: Int[Tensor, "B"], y: Int[Tensor, "B"]
) -> Int[Tensor, "B"]:
    """Return the first action of a shortest way, given `distances`: 0 left, 1 right, 2 forward."""
    options = [
        at_pose(steps, (direction + 3) % 4, x, y),
        at_pose(steps, (direction + 1) % 4, x, y),
        at_pose(_forward(steps), direction, x, y),
    ]
    return torch.stack(options).argmin(0)


class Planner:
    """Walks a shortest way to the target, knowing the whole grid: it reads the environment's state.

    Args:
        find_targets: Returns the cells to reach, [B, H, W]; what lies there may be in the way and is walked into.
    """

    def __init__(self, env: GridWorld, find_targets: Callable[[], Bool[Tensor, "B H W"]]):
        self.env, self.find_targets = env, find_targets
        can_enter = [cells.can_enter(cell) and cell.kind != "lava" for cell in cells.CELLS]
        self.can_enter = torch.tensor(can_enter, device=env.device)
        self.steps = torch.zeros(env.num_envs, 4, env.height, env.width, device=env.device)
        self.known: Tensor | None = None

    def distances(self) -> Float[Tensor, "B 4 H W"]:
        """Return `distances` to the present targets."""
        is_free, is_target = self.can_enter[cells.code_of(self.env.grid()).long()], self.find_targets()
        known = torch.stack([is_free | is_target, is_target])
        changes = torch.ones_like(known) if self.known is None else known != self.known
        is_new = changes.any(0).flatten(1).any(1)
        if is_new.any():
            self.steps[is_new] = distances(*known[:, is_new])
            self.known = known
        return self.steps

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
        return best_actions(self.distances(), self.env.direction, *self.env.coordinates(self.env.position))


class Reactive:
    """Walks to a goal in view the shortest way through what it sees; with none in view, keeps a wall to its right.

    It knows what it sees now and whether it turned right just now, no more: not where it is, nor where it has been.

    Args:
        wander: How often, instead of following the wall, it goes forward if it can and turns at random if it cannot.
    """

    def __init__(self, env: GridWorld, wander: float = 0.0, seed: int = 0):
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.wander = wander
        self.turned_right = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        pose = (UP, env.view_size // 2, env.view_size - 1)  # direction, x and y in the view
        self.pose = [torch.full((env.num_envs,), value, device=env.device) for value in pose]

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, "B"]:
        kind, state = (observation["image"][..., channel].transpose(1, 2) for channel in (0, 2))
        empty, floor, door, goal = (cells.OBJECTS.index(name) for name in ("empty", "floor", "door", "goal"))
        is_free = (kind == empty) | (kind == floor) | (kind == goal) | (kind == door) & (state == cells.OPEN)
        steps = distances(is_free, kind == goal)
        middle = kind.shape[2] // 2
        front, right = is_free[:, -2, middle], is_free[:, -1, middle + 1]
        draw = torch.rand(2, len(kind), generator=self.generator, device=kind.device)
        follow = torch.where(front, cells.FORWARD, cells.LEFT)
        follow = torch.where(right & ~self.turned_right, cells.RIGHT, follow)
        stroll = torch.where(front, cells.FORWARD, (draw[1] < 0.5).long())
        action = torch.where(draw[0] < self.wander, stroll, follow)
        action = torch.where(at_pose(steps, *self.pose).isfinite(), best_actions(steps, *self.pose), action)
        self.turned_right = action == cells.RIGHT
        return action


def random_policy(env: GridWorld, seed: int = 0) -> Callable[[dict[str, Tensor]], Int[Tensor, "B"]]:
    """Return the policy that takes every action with the same probability."""
    generator = torch.Generator(env.device).manual_seed(seed)
    return lambda _: torch.randint(env.num_actions, (env.num_envs,), generator=generator, device=env.device)


def average_return(env: GridWorld, policy: Callable[[dict[str, Tensor]], Int[Tensor, "B"]], seed: int = 0) -> float:
    """Return the mean return of the first episode of each environment of a batch."""
    observation, _ = env.reset(seed=seed)
    total = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    is_playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while is_playing.any():
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total += reward * is_playing
        is_playing &= ~(terminated | truncated)
    return float(total.mean())
