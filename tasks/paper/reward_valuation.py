"""Rapid reward valuation: taste what there is, then eat only what turned out to be good.

Coloured balls lie in a room. Half of the colours are good and half are bad, drawn anew for every episode. Walking onto
a ball eats it: a good one earns 1, a bad one `bad_reward`, and a ball of its colour appears at another place. Only the
reward tells what a colour is worth. As in Wayne et al. 2018 (MERLIN), arXiv:1803.10760.

With a `bad_reward` of −1 good and bad cancel, so that eating earns nothing before an agent remembers. With a smaller
loss eating anything earns something, and remembering earns more.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..grid import cells
from ..grid.board import Board
from ..grid.cells import BALLS
from ..grid.layouts import Layout
from ..grid.world import Moves, Verdict
from ..solvers.planning import Planner, Stage
from ..solvers.scores import ScoredWorld


class Memoryless:
    """A player that ignores rewards.

    Where eating does not pay it turns on the spot, eats nothing and earns exactly 0, which is the best. Where it does,
    it always walks to the nearest ball of any colour, with the whole room in view.
    """

    def __init__(self, env: "RewardValuation"):
        self.env = env
        self.eater = Planner(env, env.balls) if env.eating_pays else None

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        if self.eater is None:
            return torch.full_like(self.env.position, cells.LEFT)
        return self.eater(observation)


class RewardValuation(ScoredWorld):
    """Rapid reward valuation in a room, until max_steps.

    Actions: 0 turn left, 1 turn right, 2 forward. An episode is a success if no more bad balls were eaten than there
    are bad colours, and more good ones. `info` counts the balls eaten in the episode so far: `num_good`, `num_bad`.

    Args:
        size: Cells along each side of the grid, walls included.
        kinds: How many colours there are, 2, 4 or 6, half of them good.
        objects: How many balls there are at any time; the colours take turns.
        bad_reward: What a bad ball earns, below 1.
        world: More arguments of `GridWorld`.
    """

    num_actions = 3
    players = ScoredWorld.players | {"memoryless": Memoryless}
    score_episodes = dict.fromkeys(players, 256)
    extra_names = ("is_good", "is_tasted", "tastes_new", "chances", "num_good", "num_bad")

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        kinds: int = 4,
        objects: int = 8,
        max_steps: int = 100,
        bad_reward: float = -1.0,
        **world: Any,
    ):
        if bad_reward >= 1:
            raise ValueError(f"bad_reward must be a number below 1, which a good ball earns, but is {bad_reward}.")
        if size < 4:
            raise ValueError(f"size must be at least 4, but is {size}.")
        if kinds not in (2, 4, 6):
            raise ValueError(f"kinds must be 2, 4 or 6, half of them good, but is {kinds}.")
        most = (size - 2) ** 2 - 1
        if not kinds <= objects <= most:
            raise ValueError(
                f"objects must be from {kinds} (kinds) to {most} in a room of size {size}, but is {objects}."
            )
        self.kinds, self.objects, self.bad_reward = kinds, objects, float(bad_reward)
        kind_of = [BALLS.index(code) if code in BALLS else -1 for code in range(len(cells.CELLS))]
        settings = {"size": size, "kinds": kinds, "objects": objects, "bad_reward": bad_reward}
        super().__init__(num_envs, size, size, settings, max_steps=max_steps, **world)
        self.kind_of = torch.tensor(kind_of, device=self.device)

    @cached_property
    def places(self) -> Int[Tensor, " places"]:
        """The positions of all cells inside the walls."""
        side = self.width - 2
        inside = torch.arange(side**2, device=self.device)
        return self.place(1 + inside % side, 1 + inside // side)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Expected returns of uniformly random play, of memoryless play and of play that knows the values.

        A ball that is eaten without regard to rewards is good as often as bad. So "random" and "memoryless", which
        means without this regard, are exactly 0 where a bad ball costs what a good one earns, and "memoryless" is where
        it costs more. Otherwise they are means of 256 episodes, "memoryless" of `Memoryless`, as "oracle" is of a
        policy that always walks to the nearest good ball, past bad ones. It has nothing to try out, which no learner is
        spared, but it is not proven to be the best.
        """
        random = 0.0 if self.bad_reward == -1 else self.mean_return("random")
        memoryless = self.mean_return("memoryless") if self.eating_pays else 0.0
        return {"random": random, "memoryless": memoryless, "oracle": self.mean_return("oracle")}

    @property
    def eating_pays(self) -> bool:
        """Whether a ball of an unknown colour is worth something."""
        return self.bad_reward > -1

    def balls(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done without regard to rewards: walk onto a ball."""
        return [Stage(cells.FORWARD, self.kind_of[codes] >= 0)]

    def stages(self, codes: Int[Tensor, "L H W"], rows: Int[Tensor, "L"]) -> list[Stage]:
        """Return what is to be done: walk onto a good ball."""
        kind = self.kind_of[codes]
        is_good = self.is_good[rows].gather(1, kind.clamp(min=0).flatten(1)).view(kind.shape)
        return [Stage(cells.FORWARD, is_good & (kind >= 0))]

    def _outcomes(self) -> cells.Outcomes:
        outcomes = cells.outcomes()
        for table in outcomes:  # walk there and eat
            table[cells.FORWARD, :, list(BALLS)] = table[cells.FORWARD, :, cells.EMPTY].unsqueeze(1)
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
        reward = torch.where(is_good, 1.0, self.bad_reward) * eats
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
