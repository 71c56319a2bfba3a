"""The memory in somebody else's agent: a PPO of one file, in the manner of CleanRL, whose core is `torch.nn.LSTM` or
`merlin.memory.MemoryLSTM`. The task: see a cue, walk a corridor of 20, turn to the cued side.
It takes 60 SECONDS of CPU unless told: python examples/ppo_with_memory.py memory|lstm [SECONDS] [SEED]
"""

import argparse
import time

import gymnasium
import torch
from torch import nn

from merlin.memory import MemoryLSTM  # which registers the tasks too

ENVS, STEPS, EPOCHS, PARTS, HIDDEN = 64, 16, 2, 4, 64
DISCOUNT, LAMBDA, CLIP, ENTROPY, RATE = 0.98, 0.95, 0.2, 0.03, 7e-4


class Agent(nn.Module):
    def __init__(self, inputs: int, actions: int, core: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh())
        made = {"lstm": nn.LSTM, "memory": MemoryLSTM}[core]
        self.core = made(HIDDEN, HIDDEN)
        self.actor, self.critic = nn.Linear(HIDDEN, actions), nn.Linear(HIDDEN, 1)

    def forward(self, x, state, is_first):
        """Return policy and values of [T, B] steps, and the next state."""
        x = self.encoder(x)
        if isinstance(self.core, MemoryLSTM):  # which resets inside of a window
            x, state = self.core(x, state, is_first)
        else:
            rows = []
            for now, first in zip(x, is_first, strict=True):
                keeps = (~first).view(1, -1, 1)
                now, state = self.core(now.unsqueeze(0), state if state is None else tuple(s * keeps for s in state))
                rows.append(now)
            x = torch.cat(rows)
        return torch.distributions.Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1), state


def part_of(state, rows):
    return state[:, rows] if isinstance(state, torch.Tensor) else tuple(s[:, rows] for s in state)


def main(core: str = "memory", seconds: float = 60.0, seed: int = 1) -> float:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec("merlin/TMaze-v0", ENVS, vectorization_mode="vector_entry_point", length=20)
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.n, core)
    optimizer = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
    observation, _ = envs.reset(seed=seed)
    is_first, state, begin, steps, recent = torch.ones(ENVS, dtype=torch.bool), None, time.process_time(), 0, []
    with torch.no_grad():  # a state to begin with
        state = agent(observation.unsqueeze(0), None, is_first.unsqueeze(0))[2]
    while (spent := time.process_time() - begin) < seconds:
        optimizer.param_groups[0]["lr"] = RATE * (1 - spent / seconds)  # else it unlearns what it has learnt
        before, rows = state, []
        for _ in range(STEPS):
            with torch.no_grad():
                policy, value, state = agent(observation.unsqueeze(0), state, is_first.unsqueeze(0))
            action = policy.sample()[0]
            seen, first, log_prob = observation, is_first, policy.log_prob(action)[0]
            observation, reward, terminated, truncated, info = envs.step(action)
            is_first = terminated | truncated  # these tasks reset themselves in the same step
            rows.append((seen, first, action, log_prob, value[0], reward, is_first))
            recent += info["is_success"][is_first].tolist()
        seen, first, action, log_prob, value, reward, over = map(torch.stack, zip(*rows, strict=True))
        with torch.no_grad():
            next_value = agent(observation.unsqueeze(0), state, is_first.unsqueeze(0))[1][0]
        advantages, last = torch.zeros_like(reward), 0
        for t in reversed(range(STEPS)):  # a truncated episode counts as over, as in CleanRL
            goes_on = ~over[t]
            last = reward[t] + DISCOUNT * next_value * goes_on - value[t] + DISCOUNT * LAMBDA * goes_on * last
            advantages[t], next_value = last, value[t]
        returns = advantages + value
        for _ in range(EPOCHS):
            for part in torch.randperm(ENVS).chunk(PARTS):
                policy, now, _ = agent(seen[:, part], part_of(before, part), first[:, part])
                gain = advantages[:, part]
                gain = (gain - gain.mean()) / gain.std().clamp(min=0.1)  # where all goes as expected, it is noise
                ratio = (policy.log_prob(action[:, part]) - log_prob[:, part]).exp()
                loss = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                loss = loss + 0.5 * (now - returns[:, part]).square().mean() - ENTROPY * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        steps, recent = steps + ENVS * STEPS, recent[-1000:]
    success = sum(recent) / max(1, len(recent))
    print(f"{core}: {steps:,} steps in {spent:.0f} s of CPU, {1e6 * spent / steps:.0f} us each; success {success:.2f}")
    return success


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("core", nargs="?", choices=["memory", "lstm"], default="memory")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="of CPU")
    parser.add_argument("seed", nargs="?", type=int, default=1)
    main(**vars(parser.parse_args()))
