"""Shortest plans on grids by dynamic programming, for a batch of grids at once.

A plan is a list of stages; each ends with one action on a cell that the agent then faces. The value of a pose
(direction, y, x) in a stage is the number of actions to the end of the plan:

    value[pose] = min(1 + value[pose turned left], 1 + value[pose turned right], cost of the cell ahead + value[there],
                      1 + value in the next stage[pose]  where a cell of the stage is faced)

Entering costs 1. A closed door costs 2 for those who can open it, which they do first; others cannot pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ..grid import cells
from ..grid.board import ahead, ahead_of
from ..grid.world import GridWorld

ACT = cells.NUM_ACTIONS
"""Among choices of actions: the one that ends the stage."""

NO_LIMIT = 1_000_000

IS_CLOSED_DOOR = torch.tensor([cell.kind == "door" and cell.state == cells.CLOSED for cell in cells.CELLS])
"""By code."""


class Stage(NamedTuple):
    """One step of a plan: an action, facing one of these cells."""

    action: int
    faced: Bool[Tensor, "L H W"]
    clears: bool = False
    """The cell faced can be entered from then on."""


class Plan(NamedTuple):
    choices: UInt8[Tensor, "L S 4 H W"]
    """By stage and pose: turn left or right, go forward, or `ACT`."""
    steps: Float[Tensor, "L S 4 H W"]
    """Number of actions that are left; infinite where there is no way."""


def can_open_doors(env: GridWorld) -> bool:
    """Return whether the actions of an environment include toggling."""
    return env.num_actions > cells.TOGGLE


def passable(can_open: bool) -> Bool[Tensor, "codes"]:
    """Return which cells can be walked onto alive, by code."""
    is_free = torch.tensor([cells.can_enter(cell) and cell.kind != "lava" for cell in cells.CELLS])
    return is_free | IS_CLOSED_DOOR if can_open else is_free


def _costs(can_open: bool) -> Float[Tensor, "codes"]:
    """Return what entering each cell costs; goals end episodes and so are no way to anywhere."""
    is_goal = torch.tensor([cell.kind == "goal" for cell in cells.CELLS])
    return (1.0 + IS_CLOSED_DOOR).masked_fill(is_goal | ~passable(can_open), torch.inf)


def plan(
    codes: Int[Tensor, "L H W"],
    stages: list[Stage],
    first: int = 0,
    can_open: bool = True,
    most_steps: int = NO_LIMIT,
) -> Plan:
    """Return shortest plans that go through the stages in order, from stage `first` on.

    A stage that drops something may do so only where the way goes on with a turn: what is dropped is not in the way.

    Args:
        can_open: Whether closed doors can be opened.
        most_steps: Find no ways that take longer, in a stage.
    """
    cost = _costs(can_open).to(codes.device)[codes.long()]
    costs = []
    for stage in stages[first:]:
        costs.append(cost)
        cost = cost.masked_fill(stage.faced, 1.0) if stage.clears else cost
    value = torch.zeros(len(codes), 4, *codes.shape[1:], device=codes.device)
    steps, choices = [], []
    for stage, cost in zip(reversed(stages[first:]), reversed(costs), strict=True):
        done = torch.where(ahead_of(stage.faced), 1 + value, torch.inf)
        if stage.action == cells.DROP:
            turned = torch.minimum(value.roll(1, 1), value.roll(-1, 1))
            done = done.masked_fill(turned >= value, torch.inf)
        entering, value = cost.unsqueeze(1), done
        for _ in range(most_steps):
            turned = 1 + torch.minimum(value.roll(1, 1), value.roll(-1, 1))
            better = torch.minimum(torch.minimum(value, turned), ahead(value + entering))
            if torch.equal(better, value):
                break
            value = better
        left, right = 1 + value.roll(1, 1), 1 + value.roll(-1, 1)  # roll(1): the value in direction − 1
        choice = torch.stack([left, right, ahead(value + entering), done]).argmin(0)
        steps.append(value)
        choices.append(torch.where(choice == 3, ACT, choice).to(torch.uint8))
    pad = [torch.full_like(value, torch.inf)] * first
    return Plan(
        torch.stack([*[torch.zeros_like(choices[0])] * first, *reversed(choices)], 1),
        torch.stack([*pad, *reversed(steps)], 1),
    )


class Planner:
    """Plays shortest plans, made from the whole grid, of which an agent sees a part.

    It plans at the start of an episode, after it dropped something, and once a plan is done.

    Args:
        stages: Of a task, as `ScoredWorld.stages` returns them; those of `env` unless given.
    """

    def __init__(self, env: GridWorld, stages: Callable[[Tensor, Tensor], list[Stage]] | None = None):
        self.env, self.stages = env, stages or env.stages
        self.stage = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self.needs_plan = torch.ones_like(self.stage, dtype=torch.bool)
        self.is_closed_door = IS_CLOSED_DOOR.to(env.device)
        self.choices: Tensor | None = None

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        env = self.env
        is_first = env.num_steps == 0
        self.stage = self.stage.masked_fill(is_first, 0)
        rows = (is_first | self.needs_plan).nonzero().squeeze(1)
        for stage in self.stage[rows].unique().tolist():
            self._plan(rows[self.stage[rows] == stage], stage)
        x, y = env.coordinates(env.position)
        rows = torch.arange(env.num_envs, device=env.device)
        choice = self.choices[rows, self.stage, env.direction, y, x].long()
        front = env.cells.gather(1, (env.position + env.forward[env.direction]).unsqueeze(1)).squeeze(1)
        opens = (choice == cells.FORWARD) & self.is_closed_door[cells.code_of(front)]
        choice = choice.masked_fill(opens, cells.TOGGLE)
        actions = torch.where(choice == ACT, self.actions[self.stage], choice)
        stage = self.stage + (choice == ACT)
        is_done = stage == len(self.actions)
        self.stage = stage.masked_fill(is_done, 0)
        self.needs_plan = is_done | (actions == cells.DROP)
        return actions

    def _plan(self, rows: Int[Tensor, "R"], first: int) -> None:
        """Plan for these rows, of which the stages before `first` are done: what they cleared is not a way any more."""
        codes = cells.code_of(self.env.grid()[rows])
        stages = self.stages(codes, rows)
        made = plan(codes, stages, first, can_open_doors(self.env)).choices
        if self.choices is None:
            self.choices = made.new_zeros(self.env.num_envs, *made.shape[1:])
            self.actions = torch.tensor([stage.action for stage in stages], device=self.env.device)
        self.choices[rows] = made
