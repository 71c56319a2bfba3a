"""Sequences of symbols that are shown one a step and named later: what RepeatPrevious and Playback share."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..base.vector import TensorVectorEnv

_SQUARE = 8  # pixels


class SymbolRecall(TensorVectorEnv):
    """Independent symbols, each equally likely, shown and asked for on a fixed timetable.

    Observation: 0 nothing, otherwise the symbol, 1..num_symbols. Action a names the symbol a + 1. Naming the symbol
    that is asked for earns 1, anything else 0. All environments are at the same step of their episodes.

    Args:
        shown: Which of the sequence's symbols each step shows; None shows nothing.
        asked: Which of them the action of each step should name, shown earlier; None asks for nothing.
    """

    state_names = ("symbols", "num_steps", "num_right")

    def __init__(
        self,
        num_envs: int,
        num_symbols: int,
        shown: Sequence[int | None],
        asked: Sequence[int | None],
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if num_symbols < 2:
            raise ValueError(f"num_symbols must be at least 2, but is {num_symbols}.")
        self.num_symbols, self.shown, self.asked = num_symbols, (*shown, None), (*asked, None)
        self.episode_length = len(asked)
        self.num_asked = sum(which is not None for which in asked)
        super().__init__(num_envs, spaces.Discrete(num_symbols + 1), spaces.Discrete(num_symbols), device, render_mode)
        self.names = torch.arange(1, num_symbols + 1, device=self.device)
        self.nothing = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.scores = scores(num_symbols, self.num_asked)
        self.action_names = tuple(f"name {symbol}" for symbol in range(1, num_symbols + 1))
        self._start()

    def _start(self) -> None:
        shape = self.num_envs, sum(which is not None for which in self.shown)
        self.symbols = 1 + torch.randint(self.num_symbols, shape, device=self.device, generator=self.generator)
        self.num_right = torch.zeros(self.num_envs, device=self.device)
        self.num_steps = torch.zeros((), dtype=torch.int64, device="cpu")  # where asking for the end costs no sync

    def _observe(self) -> Int[Tensor, " B"]:
        which = self.shown[int(self.num_steps)]
        return self.nothing if which is None else self.symbols[:, which]

    def _step(
        self, actions: Int[Tensor, " B"]
    ) -> tuple[Tensor, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        named = self.names.index_select(0, actions)
        which = self.asked[int(self.num_steps)]
        answer = self.nothing if which is None else self.symbols[:, which]
        reward = (named == answer).to(torch.float32)
        self.num_right = self.num_right + reward
        self.num_steps = self.num_steps + 1

        is_end = int(self.num_steps) == self.episode_length
        return self._end_together(reward, is_end, lambda: self.num_right == self.num_asked)

    def shows_cue(self) -> Bool[Tensor, " B"]:
        is_cue = self.shown[int(self.num_steps)] in {*self.asked} - {None}
        return torch.full_like(self.nothing, is_cue, dtype=torch.bool)

    def draw(self, index: int) -> np.ndarray:
        """Return time from left to right: above what is shown, below what is to be named; the future is pale."""
        hues = [colorsys.hsv_to_rgb(symbol / self.num_symbols, 0.8, 0.9) for symbol in range(self.num_symbols)]
        colours = (np.array([(0.3, 0.3, 0.3), *hues]) * 255).astype(np.uint8)
        symbols, now = [*self.symbols[index].tolist(), 0], int(self.num_steps)
        rows = [[0 if which is None else symbols[which] for which in row] for row in (self.shown, self.asked)]
        picture = colours[np.array(rows)]
        picture[:, now + 1 :] = 200 + picture[:, now + 1 :] // 8
        picture = picture.repeat(_SQUARE, 0).repeat(_SQUARE, 1)
        frame = np.full((2 * _SQUARE + 4, picture.shape[1], 3), 255, np.uint8)
        frame[2:-2] = picture
        frame[[0, 1, -2, -1], now * _SQUARE : (now + 1) * _SQUARE] = 0  # the present step
        return frame


class Oracle:
    """The policy that remembers what it saw and knows the timetable; names every symbol right."""

    def __init__(self, env: SymbolRecall):
        self.env = env
        self.seen = torch.zeros_like(env.symbols)

    def __call__(self, observation: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        step = int(self.env.num_steps)  # the same everywhere: a clock
        shown, asked = self.env.shown[step], self.env.asked[step]
        if shown is not None:
            self.seen[:, shown] = observation
        return torch.zeros_like(observation) if asked is None else self.seen[:, asked] - 1


class Memoryless:
    """A best policy of the present alone: the symbol asked for is independent of it, so that all actions are equal."""

    def __init__(self, env: SymbolRecall):
        pass

    def __call__(self, observation: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return torch.zeros_like(observation)


def scores(num_symbols: int, num_asked: int) -> dict[str, float]:
    """Return the exact expected returns where `num_asked` answers are asked for.

    An answer is independent of all that is shown with or after its question, and of the clock: without memory it is
    right once in `num_symbols`.
    """
    chance = num_asked / num_symbols
    return {"random": chance, "memoryless": chance, "oracle": float(num_asked)}
