"""Rapid reward valuation: taste what there is, then eat only what turned out to be good.

Coloured balls lie in a room. Half of the colours are good and half are bad, drawn anew for every episode. Walking onto
a ball eats it: a good one earns 1, a bad one −1, and a ball of its colour appears at another place. Only the reward
tells what a colour is worth. As in Wayne et al. 2018 (MERLIN), arXiv:1803.10760.
"""

from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.layouts import Layout
from ..grid.world import GridWorld, Moves, Verdict
from ..solvers.shortest_paths import Planner, average_return

BALLS = [cells.code("ball", colour) for colour in cells.COLOURS]
SCORE_EPISODES = 256


class RewardValuation(GridWorld):
    """Rapid reward valuation in a room, until max_steps.

    Actions: 0 turn left, 1 turn right, 2 forward. An episode is a success if no more bad balls were eaten than there
    are bad colours, and more good ones. `info` counts the balls eaten in the episode so far: `num_good`, `num_bad`.

    Args:
        size: Cells along each side of the grid, walls included.
        kinds: How many colours there are, 2, 4 or 6, half of them good.
        objects: How many balls there are at any time; the colours take turns.
    """

    num_actions = 3
    extra_names = ("is_good", "is_tasted", "tastes_new", "chances", "num_good", "num_bad")

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        kinds: int = 4,
        objects: int = 8,
        max_steps: int = 100,
        agent_view_size: int = 7,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
        **view,
    ):
        if size < 4:
            raise ValueError(f"size must be at least 4, but is {size}.")
        if kinds not in (2, 4, 6):
            raise ValueError(f"kinds must be 2, 4 or 6, half of them good, but is {kinds}.")
        most = (size - 2) ** 2 - 1
        if not kinds <= objects <= most:
            raise ValueError(
                f"objects must be from {kinds} (kinds) to {most} in a room of size {size}, but is {objects}."
            )
        self.kinds, self.objects = kinds, objects
        kind_of = [BALLS.index(code) if code in BALLS else -1 for code in range(len(cells.CELLS))]
        self.kind_of = torch.tensor(kind_of, device=device)
        super().__init__(
            num_envs,
            size,
            size,
            max_steps=max_steps,
            agent_view_size=agent_view_size,
            device=device,
            render_mode=render_mode,
            **view,
        )

    @cached_property
    def places(self) -> Int[Tensor, " places"]:
        """The positions of all cells inside the walls."""
        side = self.width - 2
        inside = torch.arange(side**2, device=self.device)
        return self.place(1 + inside % side, 1 + inside // side)

    @cached_property
    def scores(self) -> dict[str, float]:
        return scores(self.width, self.kinds, self.objects, self.max_steps)

    def _outcomes(self) -> cells.Outcomes:
        outcomes = cells.outcomes()
        for table in outcomes:
            table[cells.FORWARD, :, BALLS] = table[cells.FORWARD, :, cells.EMPTY].unsqueeze(1)  # walk there and eat
        return outcomes

    def _generate(self, count: int, generator: torch.Generator) -> Layout:
        def uniform(size: int) -> Tensor:
            return torch.rand(count, size, dtype=torch.float64, device=self.device, generator=generator)

        side, rows = self.width - 2, torch.arange(count, device=self.device).unsqueeze(1)
        inside = torch.full((count, side**2), cells.EMPTY, dtype=torch.uint8, device=self.device)
        order = uniform(side**2).argsort(1)
        balls = torch.tensor(BALLS, dtype=torch.uint8, device=self.device)[: self.kinds]
        inside[rows, order[:, : self.objects]] = balls.repeat(self.objects // self.kinds + 1)[: self.objects]
        board = Board(count, self.height, self.width, generator)
        board.cells[:, 1:-1, 1:-1] = inside.view(count, side, side)
        start, zeros = order[:, self.objects], torch.zeros(count, dtype=torch.int64, device=self.device)
        is_good = uniform(self.kinds).argsort(1) < self.kinds // 2
        extra = {
            "is_good": is_good,
            "is_tasted": torch.zeros_like(is_good),
            "tastes_new": zeros.bool(),
            "chances": uniform(self.max_steps),  # of where balls appear, by step
            "num_good": zeros,
            "num_bad": zeros,
        }
        direction = torch.randint(4, (count,), device=self.device, generator=generator)
        return board.layout(1 + start % side, 1 + start // side, direction, **extra)

    def _judge(self, moves: Moves) -> Verdict:
        kind = self.kind_of.index_select(0, moves.ahead)
        eats = (moves.action == cells.FORWARD) & (kind >= 0)
        self._put(moves.ahead, eats)
        kind = kind.clamp(min=0).unsqueeze(1)
        is_good = self.is_good.gather(1, kind).squeeze(1)
        self.tastes_new = eats & ~self.is_tasted.gather(1, kind).squeeze(1)
        self.is_tasted = self.is_tasted.scatter(1, kind, self.is_tasted.gather(1, kind) | eats.unsqueeze(1))
        self.num_good = self.num_good + (eats & is_good)
        self.num_bad = self.num_bad + (eats & ~is_good)
        reward = (2.0 * is_good - 1) * eats
        is_success = (self.num_bad < self.num_good) & (self.num_bad <= self.kinds // 2)
        info = {"num_good": self.num_good, "num_bad": self.num_bad}
        return Verdict(reward, torch.zeros_like(eats), is_success, info)

    def _put(self, code: Int[Tensor, " B"], where: Bool[Tensor, " B"]) -> None:
        """Put these things, where asked to, on a cell that is empty and not the agent's, each equally likely."""
        inside = self.grid()[:, 1:-1, 1:-1].flatten(1)
        is_free = (inside == self.packed[cells.EMPTY]) & (self.places != self.position.unsqueeze(1))
        number = is_free.cumsum(1)  # the free cells count from 1
        chance = self.chances.gather(1, self.num_steps.unsqueeze(1) - 1)
        chosen = (number <= (chance * number[:, -1:]).to(torch.int64)).sum(1)
        chosen = chosen.clamp(max=len(self.places) - 1)  # a full room, where nothing was eaten, has no free cell
        index = self.bases + self.places.index_select(0, chosen)
        flat = self.cells.view(-1)
        things = torch.where(where, self.packed.index_select(0, code), flat.index_select(0, index))
        flat.index_copy_(0, index, things)

    def shows_cue(self) -> Bool[Tensor, " B"]:
        """Return where a colour was just eaten for the first time: the reward that comes with it tells its value."""
        return self.tastes_new


class SingleRewardValuation(SingleEnv):
    batched = RewardValuation


class Oracle(Planner):
    """Knows what is good and where everything lies; walks the shortest way to the nearest good ball, past bad ones."""

    def __init__(self, env: RewardValuation):
        super().__init__(env, self._good_cells)

    def _good_cells(self) -> Bool[Tensor, "B H W"]:
        kind = self.env.kind_of[cells.code_of(self.env.grid())]
        is_good = self.env.is_good.gather(1, kind.clamp(min=0).flatten(1))
        return is_good.view(kind.shape) & (kind >= 0)


class Memoryless:
    """A best policy of those that ignore rewards: it turns on the spot, eats nothing and earns exactly 0."""

    def __init__(self, env: RewardValuation):
        self.env = env

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        return torch.full_like(self.env.position, cells.LEFT)


@lru_cache
def scores(size: int = 8, kinds: int = 4, objects: int = 8, max_steps: int = 100, **_) -> dict[str, float]:
    """Return the expected returns of uniformly random play, of memoryless play and of play that knows the values.

    "random" and "memoryless" are exactly 0: what happens does not depend on the values but for the rewards, so that
    each ball which is eaten without regard to rewards is good as often as bad. "memoryless" means without this regard.
    "oracle" is the mean of 256 episodes from seed 0 of a policy that always walks to the nearest good ball. It has
    nothing to try out, which no learner is spared, but it is not proven to be the best.
    """
    env = RewardValuation(SCORE_EPISODES, size, kinds, objects, max_steps, agent_view_size=3)
    return {"random": 0.0, "memoryless": 0.0, "oracle": average_return(env, Oracle(env))}
