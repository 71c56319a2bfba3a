"""A memory of your own: the last N words in a ring, read by content. MERLIN and RL-MEM take it by its name.

From the folder of this file:

    merlin train --set model.memory=memory_of_your_own:RingMemory
    merlin compare merlin/MemoryGame-v0 --agents merlin rl-mem --set model.memory=memory_of_your_own:RingMemory

Alone it trains MERLIN for half a minute of a core: python memory_of_your_own.py [STEPS] [RUN_DIR]
"""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

from merlin import memory as memories
from merlin.memory import Memory, MemoryConfig, Read


class RingState(NamedTuple):
    """Tensors, batch first, all zeros when empty: an episode's start zeroes them."""

    words: Tensor  # [B, N, Z]
    num_written: Tensor  # [B]


class RingMemory(Memory):
    """Slot t mod N holds the word of step t. Nothing is chosen by usage, and words have no trace of later ones."""

    def __init__(self, word_size: int, config: MemoryConfig) -> None:
        super().__init__(word_size, config)  # a slot is as wide as a word unless you set self.slot_size

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> RingState:
        words = torch.zeros(batch_size, self.config.memory_size, self.word_size, device=device)
        return RingState(words, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def read(self, state: RingState, keys: Tensor, strengths: Tensor) -> Read:
        slots = torch.arange(self.config.memory_size, device=keys.device)
        return memories.read(state.words, keys, strengths, slots < state.num_written.unsqueeze(1))

    def write(
        self, state: RingState, word: Tensor, read_weights: Tensor, slot: Tensor | None = None
    ) -> tuple[RingState, Tensor]:
        slot = state.num_written % self.config.memory_size
        index = slot.view(-1, 1, 1).expand(-1, 1, self.word_size)
        return RingState(state.words.scatter(1, index, word.unsqueeze(1)), state.num_written + 1), slot

    def last_word(self, state: RingState) -> Tensor:
        """For `merlin evaluate --memory shuffled` and films, which ask what was just written."""
        last = ((state.num_written - 1) % self.config.memory_size).view(-1, 1, 1).expand(-1, 1, self.word_size)
        return state.words.gather(1, last).squeeze(1)


def main(steps: int = 300_000, run_dir: str | None = None) -> float:
    """Train MERLIN with it, and return the last mean return: 2.5 of 3 needs a memory."""
    import merlin

    config = merlin.override(merlin.preset(), [f"model.memory={__name__}:RingMemory", f"steps={steps}"])
    return merlin.train(config, run_dir).episode_return_mean


if __name__ == "__main__":
    from memory_of_your_own import main  # by the name that the run directory will ask for

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=300_000)
    parser.add_argument("run_dir", nargs="?")
    print(main(**vars(parser.parse_args())))
