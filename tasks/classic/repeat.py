"""Say what was seen k steps ago: the smallest test of a memory that is always in use.

    step      0    1    2    3    4    5            k = 2, length = 6
    shown     a    b    c    d    e    f
    right     -    -    a    b    c    d

After POPGym's RepeatPrevious (Morad et al. 2023, arXiv:2303.01859), with these differences: the symbols are independent
draws, not cards of a deck that runs out, so that only memory can help; a right answer earns 1 and a wrong one 0, where
POPGym scales the return of an episode to −1..1; its k counts the present card too, so that its k = 4 is k = 3 here.
"""

import torch

from ..base.single import SingleEnv
from . import recall
from .recall import Memoryless, Oracle, SymbolRecall

__all__ = ["Memoryless", "Oracle", "RepeatPrevious", "SingleRepeatPrevious", "scores"]


class RepeatPrevious(SymbolRecall):
    """Repeat previous, batched.

    Args:
        k: How many steps ago the symbol was shown that an action should name.
        num_symbols: How many symbols there are to choose from.
        length: Steps of an episode, the first k of which ask for nothing.
    """

    def __init__(
        self,
        num_envs: int = 1,
        k: int = 4,
        num_symbols: int = 4,
        length: int = 32,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ):
        if k < 1:
            raise ValueError(f"k must be at least 1, but is {k}.")
        if length <= k:
            raise ValueError(f"length must be more than k = {k}, but is {length}.")
        asked = [None] * k + list(range(length - k))
        super().__init__(num_envs, num_symbols, range(length), asked, device, render_mode)


class SingleRepeatPrevious(SingleEnv):
    batched = RepeatPrevious


def scores(k: int = 4, num_symbols: int = 4, length: int = 32, **_) -> dict[str, float]:
    """Return the exact expected returns of uniformly random, memoryless and perfect play.

    "memoryless" is any policy that remembers fewer than k steps, even one with a clock: length − k answers, each right
    once in `num_symbols`.
    """
    return recall.scores(num_symbols, length - k)
