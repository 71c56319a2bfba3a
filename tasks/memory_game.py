"""The card game of MERLIN (Wayne et al. 2018, arXiv:1803.10760): find the pairs among face-down cards.

2·pairs = N cards lie face down, every arrangement equally likely. Each of the 3N/2 steps of an episode flips one card and
shows its face for that step only. When two consecutive flips, t-1 and t, show the two cards of a pair, the second earns
1 and both are removed: flipping a removed card shows nothing. A card flipped twice in a row does not match itself.

    step              0     1     2     3     4   ...
    flip                    3     5     0     3
    card shown        -     A     B     C     A
    position shown    -     3     5     0     3        reward of the flip shown: cards of flips t-1 and t match

Under these rules random play on 8 pairs scores 1.26 and perfect memory 8.0, as reported for the paper's game.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from tasks.glyphs import GLYPH_SIZE, make_glyphs
from tasks.single import SingleEnv
from tasks.vector import TensorVectorEnv


class MemoryGame(TensorVectorEnv):
    """The memory game, batched.

    Observation: `card` (0 nothing, otherwise the face, 1..pairs; with view="picture" its glyph), `position` (0 before the
    first flip, otherwise 1 + the position just flipped). Action: the position to flip. All environments are at the same
    step of their episodes, because every episode has 3·pairs steps.

    Args:
        view: "symbolic" shows the face as a number, "picture" as a 28x28 glyph.
        glyph_seed: Chooses the glyphs; the same for all environments and episodes.
    """

    state_names = ("faces", "shown_as", "card", "position", "num_flips", "num_found")

    def __init__(
        self,
        num_envs: int = 1,
        pairs: int = 3,
        view: str = "symbolic",
        glyph_seed: int = 0,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if pairs < 2:
            raise ValueError(f"pairs must be at least 2, but is {pairs}.")
        if view not in ("symbolic", "picture"):
            raise ValueError(f"view must be 'symbolic' or 'picture', but is {view!r}.")
        self.pairs, self.view = pairs, view
        self.num_cards, self.episode_length = 2 * pairs, 3 * pairs
        card_space = (
            {"card": spaces.Discrete(pairs + 1)}
            if view == "symbolic"
            else {"picture": spaces.Box(0, 255, (GLYPH_SIZE, GLYPH_SIZE, 1), np.uint8)}
        )
        observation_space = spaces.Dict(card_space | {"position": spaces.Discrete(self.num_cards + 1)})
        super().__init__(num_envs, observation_space, spaces.Discrete(self.num_cards), device, render_mode)
        self.glyphs = torch.from_numpy(make_glyphs(pairs, glyph_seed)).to(self.device)
        self._start()

    def _start(self) -> None:
        # double: equal random keys would favour some arrangements
        keys = torch.rand(
            self.num_envs, self.num_cards, dtype=torch.float64, device=self.device, generator=self.generator
        )
        self.faces = keys.argsort(1) // 2 + 1
        # what a face looks like now: itself, or 0 once its pair is removed
        self.shown_as = torch.arange(self.pairs + 1, device=self.device).repeat(self.num_envs, 1)
        self.card = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.position = torch.zeros_like(self.card)
        self.num_found = torch.zeros(self.num_envs, device=self.device)
        self.num_flips = torch.zeros((), dtype=torch.int64)  # on the CPU, so that asking for the end costs no sync

    def _observe(self) -> dict[str, Tensor]:
        card = {"card": self.card} if self.view == "symbolic" else {"picture": self.glyphs[self.card]}
        return card | {"position": self.position}

    def step(
        self, actions: Any
    ) -> tuple[dict[str, Tensor], Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        actions = self._actions(actions)
        face = self.faces.gather(1, actions[:, None])
        card = self.shown_as.gather(1, face)[:, 0]
        position = actions + 1
        is_match = (card == self.card) & (position != self.position) & (card != 0)
        self.shown_as.scatter_(1, face, (card * ~is_match)[:, None])
        reward = is_match.to(torch.float32)
        self.num_found = self.num_found + reward
        self.card, self.position = card, position
        self.num_flips = self.num_flips + 1

        is_end = int(self.num_flips) == self.episode_length
        terminated = torch.full_like(is_match, is_end)
        info = {"is_success": torch.full_like(reward, torch.nan)}
        if is_end:
            info["is_success"] = (self.num_found == self.pairs).to(torch.float32)
            info |= {"final_obs": self._observe(), "_final_obs": terminated}
            self._start()
        return self._observe(), reward, terminated, torch.zeros_like(terminated), info


class SingleMemoryGame(SingleEnv):
    batched = MemoryGame
