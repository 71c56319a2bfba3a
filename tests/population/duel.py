"""A small game of two teams for tests, as a batch of tensors."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from tasks.base.vector import STAGGER, TensorVectorEnv

LENGTH, COHORTS = 8, 2
ID = "tests/Duel-v0"


class Duel(TensorVectorEnv):
    """Two against two: a symbol is shown at each step, and whoever names it scores; the team with more points wins.

    Events of a row: it scored, its mate scored, an opponent scored. Row 4 · g + i is player i of game g. A game takes
    `length` steps; staggered, the second half of the games begins half-way.
    """

    state_names = ("symbol", "points", "num_steps")
    event_signs = (1, 1, -1)
    event_names = ("I scored", "mate scored", "they scored")
    bot_teams = {"random": ("random", "random"), "second": ("all-seeing", "all-seeing")}  # noqa: RUF012
    can_stagger = True
    scores = {}  # noqa: RUF012

    def __init__(
        self,
        num_envs=8,
        length=LENGTH,
        rewards=None,
        tells=True,
        team_of=(0, 0, 1, 1),
        symbols=3,
        device="cpu",
        render_mode=None,
    ):
        space = spaces.Dict({"symbol": spaces.Discrete(symbols), "time": spaces.Box(0, 1, (1,), np.float32)})
        super().__init__(num_envs, space, spaces.Discrete(3), device, render_mode)
        count = num_envs // 4
        self.length, self.weights, self.tells = length, rewards, tells
        self.game = torch.arange(count).repeat_interleave(4)
        self.team = torch.tensor(team_of).repeat(count)
        self.staggers = False

    def reset(self, *, seed=None, options=None):
        self.staggers = bool((options or {}).get(STAGGER))
        return super().reset(seed=seed, options=options)

    def seat_bots(self, names):
        self.bots = names

    @property
    def state(self):
        return self.symbol

    def bot_actions(self, state):
        """Return actions [G, 4]: an all-seeing bot names what is shown, a random one always the same."""
        seeing = torch.tensor([name == "all-seeing" for name in self.bots])
        return torch.where(seeing, state.view(-1, 4), 0)

    def _start(self):
        self.symbol = torch.randint(3, (self.num_envs,), generator=self.generator)
        self.points = torch.zeros(self.num_envs // 4, 2)
        self.num_steps = torch.zeros(self.num_envs // 4, dtype=torch.int64)
        if self.staggers:
            self.num_steps[len(self.num_steps) // 2 :] = self.length // COHORTS

    def _start_where(self, begins):
        assert begins.all(), "games that are not staggered begin together"
        self._start()
        self.has_ended = torch.zeros_like(begins)

    def _observe(self):
        time = (self.num_steps / self.length).float().repeat_interleave(4)
        return {"symbol": self.symbol, "time": time.unsqueeze(1)}

    def _step(self, actions):
        hit = (actions == self.symbol).view(-1, 2, 2).float()  # game, team, member
        self.points = self.points + hit.sum(2)
        self.num_steps = self.num_steps + 1
        over = self.num_steps >= self.length
        is_end = over.repeat_interleave(4)
        lead = (self.points[:, 0] - self.points[:, 1]).sign()
        outcome = torch.stack([lead, lead, -lead, -lead], 1).flatten()
        reward = outcome * is_end
        theirs = hit.sum(2).flip(1).repeat_interleave(2, 1).flatten()
        events = torch.stack([hit.flatten(), hit.flip(2).flatten(), theirs], 1)
        info = {"is_success": torch.where(is_end, (outcome + 1) / 2, torch.nan)}
        if self.tells:
            info["events"] = events
        if self.weights is not None:
            reward = reward + events @ torch.tensor(self.weights)
        self.symbol = torch.randint(3, (self.num_envs,), generator=self.generator)
        if over.any():
            info |= {"final_obs": self._observe(), "_final_obs": is_end}
            self.num_steps = self.num_steps * ~over
            self.points = self.points * ~over.unsqueeze(1)
        return self._observe(), reward, is_end, torch.zeros_like(is_end), info

    def draw(self, index):
        return np.zeros((4, 4, 3), np.uint8)


def register():
    """Register the game's id."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=None, vector_entry_point="tests.population.duel:Duel")


register()
