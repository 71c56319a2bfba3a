"""The card game of MERLIN (Wayne et al. 2018, arXiv:1803.10760): find the pairs among face-down cards.

2·pairs = N cards lie face down, every arrangement equally likely. Each of the 3N/2 steps of an episode flips one card
and shows its face for that step only. When two consecutive flips, t-1 and t, show the two cards of a pair, the second
earns 1 and both are removed: flipping a removed card shows nothing. A card flipped twice does not match itself.

    step              0     1     2     3     4   ...
    flip                    3     5     0     3
    card shown        -     A     B     C     A
    position shown    -     3     5     0     3        reward of the flip shown: cards of flips t-1 and t match

Under these rules random play on 8 pairs scores 1.26 and perfect memory 8.0, as reported for the paper's game.
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..base.single import SingleEnv
from ..base.vector import TensorVectorEnv
from .glyphs import GLYPH_SIZE, make_glyphs


class MemoryGame(TensorVectorEnv):
    """The memory game, batched.

    Observation: `card` (0 nothing, otherwise the face, 1..pairs) or, with view="picture", its glyph as `picture`; and
    `position` (0 before the first flip, otherwise 1 + the position just flipped). Action: the position to flip. All
    environments are at the same step of their episodes, because every episode has 3·pairs steps.

    Args:
        pairs: Pairs of cards.
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
        self.scores = scores(pairs)
        self.action_names = tuple(f"flip {position}" for position in range(1, self.num_cards + 1))
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
        self.num_flips = torch.zeros((), dtype=torch.int64, device="cpu")  # where asking for the end costs no sync

    def _observe(self) -> dict[str, Tensor]:
        card = {"card": self.card} if self.view == "symbolic" else {"picture": self.glyphs.index_select(0, self.card)}
        return card | {"position": self.position}

    def _step(
        self, actions: Int[Tensor, " B"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        face = self.faces.gather(1, actions[:, None])
        card = self.shown_as.gather(1, face)[:, 0]
        position = actions + 1
        is_match = (card == self.card) & (position != self.position) & (card != 0)
        self.shown_as.scatter_(1, face, (card * ~is_match)[:, None])
        reward = is_match.to(torch.float32)
        self.num_found += reward
        self.card, self.position = card, position
        self.num_flips = self.num_flips + 1

        is_end = int(self.num_flips) == self.episode_length
        return self._end_together(reward, is_end, lambda: self.num_found == self.pairs)

    def draw(self, index: int) -> np.ndarray:
        """Return the cards on the table: grey face down, gone once removed, the one just flipped with its face."""
        columns = math.ceil(math.sqrt(self.num_cards))
        size = GLYPH_SIZE + 4
        picture = np.full((math.ceil(self.num_cards / columns) * size, columns * size, 3), 235, np.uint8)
        for position in range(self.num_cards):
            top, left = position // columns * size + 2, position % columns * size + 2
            card = picture[top : top + GLYPH_SIZE, left : left + GLYPH_SIZE]
            if position + 1 == self.position[index] and self.card[index] > 0:
                card[:] = np.maximum(self.glyphs[self.card[index]].cpu().numpy(), 40)
            elif self.shown_as[index, self.faces[index, position]] > 0:
                card[:] = 150
        return picture


class SingleMemoryGame(SingleEnv):
    batched = MemoryGame


class Oracle:
    """The policy that remembers every card: flip new cards in order, and the mate of a card once it is known.

    N new cards and one more flip for each pair, N/2, at most: it scores exactly `pairs` in every episode.
    """

    def __init__(self, env: MemoryGame):
        self.env = env
        self.faces = torch.zeros(env.num_envs, env.num_cards + 1, dtype=torch.int64, device=env.device)
        self.num_seen = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self.previous = torch.zeros_like(self.num_seen)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        position, card = observation["position"], self._card(observation)
        is_start = position == 0
        self.num_seen = torch.maximum(self.num_seen.masked_fill(is_start, 0), position)
        self.faces = self.faces.masked_fill(is_start[:, None], 0).scatter(1, position[:, None], card[:, None])
        everywhere = torch.arange(self.faces.shape[1], device=position.device)
        is_mate = (self.faces == card[:, None]) & (card[:, None] > 0) & (everywhere != position[:, None])
        mate = is_mate.int().argmax(1)  # 0 if unknown
        is_found = mate == self.previous  # the pair of the last two flips
        self.previous = position
        return torch.where((mate > 0) & ~is_found, mate - 1, self.num_seen.clamp(max=self.env.num_cards - 1))

    def _card(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        if "card" in observation:
            return observation["card"]
        is_glyph = (observation["picture"][:, None] == self.env.glyphs).flatten(2).all(2)
        return is_glyph.int().argmax(1)


class Memoryless:
    """A best policy that ignores the cards, but counts flips: no two positions follow each other twice.

    Flips t = 0, 1, ...: once around the table, 0 1 ... N-1, then every other position, 0 2 ... N-2.
    """

    def __init__(self, env: MemoryGame):
        self.num_cards = env.num_cards
        self.num_flips = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)

    def __call__(self, observation: dict[str, Tensor]) -> Int[Tensor, " B"]:
        flip = self.num_flips.masked_fill(observation["position"] == 0, 0)
        self.num_flips = flip + 1
        return torch.where(flip < self.num_cards, flip, 2 * (flip - self.num_cards))


def scores(pairs: int = 3, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random, memoryless and perfect play.

    "memoryless" is the optimum of policies that ignore the cards, but may count flips. Two given positions hold a pair
    with probability 1/(N-1), and earn once at most: the 3N/2 - 1 consecutive flips earn (3N/2 - 1)/(N - 1) in
    expectation when no two positions follow each other twice, and no policy of this kind earns more.

    For policies that see what they flip, `oracle` is the only proven bound. As a fixed function of the observation, the
    best deterministic one earns 4/3 at 2 pairs (exhaustive search); the best stochastic ones that gradient ascent found
    earn 1.46, 1.38, 1.38 at 2, 3, 4 pairs, less than the 1.67, 1.60, 1.57 of this formula. With a clock besides, the
    position chosen next carries what was seen: 0 1 2 0, then 2 3 if that showed nothing, otherwise 3 1, is perfect at
    2 pairs; at 3 one was found that earns 2.28.
    """
    return {"random": random_score(pairs), "memoryless": (3 * pairs - 1) / (2 * pairs - 1), "oracle": float(pairs)}


def random_score(pairs: int) -> float:
    """Return the expected return of uniformly random play, by backward induction over flips.

    The state is (pairs left, whether the card just flipped is one of these): the next flip shows its mate with
    probability 1/N, and one of the cards left with probability 2·left/N.
    """
    num_cards = 2 * pairs
    after_live = after_dead = [0.0] * (pairs + 1)  # expected return to come, by pairs left
    for _ in range(3 * pairs):
        live, dead = [0.0], [0.0]
        for left in range(1, pairs + 1):
            hidden = num_cards - 2 * left
            miss = (2 * left - 1) * after_live[left] + hidden * after_dead[left]
            live.append((1 + after_dead[left - 1] + miss) / num_cards)
            dead.append((2 * left * after_live[left] + hidden * after_dead[left]) / num_cards)
        after_live, after_dead = live, dead
    return after_dead[pairs]
