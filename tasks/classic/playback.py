"""A sequence is shown, then played back from memory: the copy task of Neural Turing Machines.

    step      0    1    2    3    4    5            length = 3
    shown     a    b    c    -    -    -
    right     -    -    -    a    b    c            c b a with reverse=True

Graves et al. 2014 (NTM, arXiv:1410.5401) and 2016 (DNC); as an environment, and in reverse, Autoencode of POPGym (Morad
et al. 2023, arXiv:2303.01859), whose cards come from a deck and whose return is scaled to −1..1. Here symbols are
independent draws and a right answer earns 1.
"""

import torch

from ..base.single import SingleEnv
from . import recall
from .recall import Memoryless, Oracle, SymbolRecall

__all__ = ["Memoryless", "Oracle", "Playback", "SinglePlayback", "scores"]


class Playback(SymbolRecall):
    """Playback, batched.

    Args:
        length: Symbols of the sequence; an episode has 2·length steps.
        num_symbols: How many symbols there are to choose from.
        reverse: Ask for the last symbol first.
    """

    def __init__(
        self,
        num_envs: int = 1,
        length: int = 8,
        num_symbols: int = 4,
        reverse: bool = False,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, but is {length}.")
        shown, pause = list(range(length)), [None] * length
        asked = pause + (shown[::-1] if reverse else shown)
        super().__init__(num_envs, num_symbols, shown + pause, asked, device, render_mode)


class SinglePlayback(SingleEnv):
    batched = Playback


def scores(length: int = 8, num_symbols: int = 4, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random, memoryless and perfect play.

    "memoryless" is any policy of the present observation, even one with a clock: nothing is shown while symbols are
    asked for, and each answer is right once in `num_symbols`.
    """
    return recall.scores(num_symbols, length)
