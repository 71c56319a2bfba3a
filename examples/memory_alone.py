"""The memory in an agent of one's own: `merlin.memory` and PyTorch, nothing else of the package.

A REINFORCE agent sees five symbols in random order, then one of them again, and must name the one that came right after
it. A guess earns 1/5. It takes some seconds: python examples/memory_alone.py [UPDATES] [SEED] [SLOTS]
"""

import argparse
import inspect

import torch
from torch import nn
from torch.nn import functional as F

from merlin import memory as memories

SYMBOLS, BATCH, WORD = 5, 256, 32


class Agent(nn.Module):
    """Writes each symbol beside the one before it; reads by the symbol that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * SYMBOLS, WORD)
        self.reader = memories.Reader(SYMBOLS, WORD, num_read_keys=1)
        self.policy = nn.Linear(WORD, SYMBOLS)

    def forward(self, symbols: torch.Tensor, question: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the logits of the answer to `question` [B] after `symbols` [T, B]."""
        state = memories.initial_state(BATCH, memory_size=slots, word_size=WORD)
        nothing_read, before = torch.zeros(BATCH, 1, slots), torch.zeros(BATCH, SYMBOLS)
        for symbol in F.one_hot(symbols, SYMBOLS).float():
            state = memories.write(state, self.embed(torch.cat([before, symbol], -1)), nothing_read)
            before = symbol
        query = self.reader(F.one_hot(question, SYMBOLS).float())  # keys and their strengths
        return self.policy(memories.read(state.memory, *query, memories.written(state)).words[:, 0])


def main(updates: int = 400, seed: int = 0, slots: int = SYMBOLS) -> float:
    torch.manual_seed(seed)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    for update in range(updates):
        symbols = torch.rand(BATCH, SYMBOLS).argsort(-1).T  # every symbol once
        place = torch.randint(SYMBOLS - 1, (1, BATCH))
        question, answer = symbols.gather(0, place)[0], symbols.gather(0, place + 1)[0]
        policy = torch.distributions.Categorical(logits=agent(symbols, question, slots))
        action = policy.sample()
        reward = (action == answer).float()
        loss = -policy.log_prob(action) * (reward - reward.mean()) - 0.01 * policy.entropy()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        if update % 50 == 0 or update == updates - 1:
            print(f"update {update:4d}  right {reward.mean():.2f} of the time; a guess 0.20")
    return reward.mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
