"""Shortest plans on grids by dynamic programming, for a batch of grids at once.

A plan is a list of stages; each ends with one action on a cell that the agent then faces. The value of a pose
(direction, y, x) in a stage is the number of actions to the end of the plan:

    value[pose] = min(1 + value[pose turned left], 1 + value[pose turned right], cost of the cell ahead + value[there],
                      1 + value in the next stage[pose]  where a cell of the stage is faced)

Entering costs 1, a closed door 2: it is opened first.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ..grid import cells
from ..grid.board import ahead, ahead_of
from ..grid.world import GridWorld

ACT = cells.NUM_ACTIONS
"""Among choices of actions: the one that ends the stage."""


class Stage(NamedTuple):
    """What is to be done next: an action, facing one of these cells."""

    action: int
    faced: Bool[Tensor, "L H W"]
    clears: bool = False
    """The cell faced can be entered from then on."""


class Plan(NamedTuple):
    choices: UInt8[Tensor, "L S 4 H W"]
    """By stage and pose: turn left or right, go forward, or `ACT`."""
    steps: Float[Tensor, "L S 4 H W"]
    """How many actions are left; infinite where there is no way."""


def _costs() -> list[float]:
    """Return what entering each cell costs; goals and lava end episodes and so are no way to anywhere."""
    free = [cell.kind not in ("goal", "lava") and cells.can_enter(cell) for cell in cells.CELLS]
    closed = [cell.kind == "door" and cell.state == cells.CLOSED for cell in cells.CELLS]
    return [1.0 if f else 2.0 if c else torch.inf for f, c in zip(free, closed, strict=True)]


def plan(codes: Int[Tensor, "L H W"], stages: list[Stage], first: int = 0, most_steps: int = 1_000_000) -> Plan:
    """Return shortest plans that go through the stages in order, from stage `first` on.

    A stage that drops something may do so only where the way goes on with a turn: what is dropped is not in the way.

    Args:
        most_steps: Find no ways that take longer, in a stage.
    """
    cost = torch.tensor(_costs(), device=codes.device)[codes.long()]
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
    """Plays shortest plans, made from the whole grid (of which an agent sees a part) at the start of an episode.

    After it dropped something it plans anew.
    """

    def __init__(self, env: GridWorld):
        self.env = env
        self.stage = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self.has_dropped = torch.zeros_like(self.stage, dtype=torch.bool)
        self.choices: Tensor | None = None

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        env = self.env
        is_first = env.num_steps == 0
        self.stage = self.stage.masked_fill(is_first, 0)
        rows = (is_first | self.has_dropped).nonzero().squeeze(1)
        for stage in self.stage[rows].unique().tolist():
            self._plan(rows[self.stage[rows] == stage], stage)
        x, y = env.coordinates(env.position)
        rows = torch.arange(env.num_envs, device=env.device)
        choice = self.choices[rows, self.stage, env.direction, y, x].long()
        front = env.cells.gather(1, (env.position + env.forward[env.direction]).unsqueeze(1)).squeeze(1)
        is_closed = torch.tensor([c.kind == "door" and c.state == cells.CLOSED for c in cells.CELLS], device=env.device)
        choice = torch.where((choice == cells.FORWARD) & is_closed[cells.code_of(front)], cells.TOGGLE, choice)
        actions = torch.where(choice == ACT, self.actions[self.stage], choice)
        self.has_dropped = actions == cells.DROP
        self.stage = (self.stage + (choice == ACT)).clamp(max=len(self.actions) - 1)
        return actions

    def _plan(self, rows: Int[Tensor, "R"], first: int) -> None:
        """Plan for these rows, of which the stages before `first` are done: what they cleared is not a way any more."""
        codes = cells.code_of(self.env.grid()[rows])
        stages = self.env.stages(codes, rows)
        made = plan(codes, stages, first).choices
        if self.choices is None:
            self.choices = made.new_zeros(self.env.num_envs, *made.shape[1:])
            self.actions = torch.tensor([stage.action for stage in stages], device=self.env.device)
        self.choices[rows] = made
