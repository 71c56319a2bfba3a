"""Tasks of an object that is to be picked up."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..grid import cells
from ..grid.world import Moves, Verdict
from ..solvers.scores import ScoredWorld


class PickUpTask(ScoredWorld):
    """A task that is solved by picking up what lies at `target`."""

    extra_names = ("target",)

    def _judge(self, moves: Moves) -> Verdict:
        now = cells.code_of(self.cells.view(-1).index_select(0, self.bases + moves.front))
        is_gone = (moves.front == self.target) & (now == cells.EMPTY) & (moves.ahead != cells.EMPTY)
        self.target = torch.where(is_gone, -1, self.target)  # also where a box was opened: it cannot be picked up then
        return self.solved_or_failed(is_gone & (moves.action == cells.PICKUP), torch.zeros_like(is_gone))

    def is_target(self, rows: Int[Tensor, "L"]) -> Bool[Tensor, "L H W"]:
        """Return where the targets of these environments lie."""
        return self.grid_positions == self.target[rows].view(-1, 1, 1)
