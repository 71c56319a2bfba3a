"""Soft actor-critic on CartPole, the actor's gradient exact or through a relaxed action.

    python examples/discrete_sac.py [--estimator exact gumbel_softmax straight_through] [--seeds 1 2 3] [--steps 20000]

Two critics take an observation and an action that is one-hot, or between one-hots. The actor lessens, in expectation
over actions a of probability p,

    exact         Σ p(a) (α log p(a) − Q(o, a))         Christodoulou 2019, arXiv:1910.07207
    any other     α Σ p log p − Q(o, code),             code: a sample of p with that estimator's gradient

Everything else is the same: the critics learn of the actions that were taken, and bootstrap from the exact expectation.
The table is of greedy play, the mean of 16 episodes; 500 is the most. A run takes about a minute of one core.
"""

import argparse
import copy
import itertools
import statistics
from typing import get_args

import gymnasium
import torch
from torch import Tensor, nn

from merlin.latents import Estimator, OneHots, gumbel
from merlin.networks.heads import mlp

NUM_ENVS, BATCH, UPDATES, WARM_UP, REPORTS = 8, 256, 1, 500, 5
DISCOUNT, TARGET_RATE, LEARNING_RATE = 0.99, 0.02, 3e-3
RELAXATION = 1.0  # temperature of estimators that relax
OBSERVATION, ACTIONS, HIDDEN = 4, 2, (64, 64)
TARGET_ENTROPY_NATS = 0.3 * torch.tensor(float(ACTIONS)).log().item()


class Critics(nn.Module):
    """Two critics, side by side; where they are asked together, the lesser counts."""

    def __init__(self) -> None:
        super().__init__()
        widths = itertools.pairwise((OBSERVATION + ACTIONS, *HIDDEN, 1))
        layers = [[nn.Linear(*width) for _ in range(2)] for width in widths]
        self.weights = nn.ParameterList(torch.stack([layer.weight.T for layer in pair]) for pair in layers)
        self.biases = nn.ParameterList(torch.stack([layer.bias[None] for layer in pair]) for pair in layers)

    def forward(self, observation: Tensor, code: Tensor) -> Tensor:
        """Return Q of each critic, [2, B]."""
        x = torch.cat([observation, code], -1).expand(2, -1, -1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias, x if weight is self.weights[0] else x.relu(), weight)
        return x.squeeze(-1)

    def of_every_action(self, observation: Tensor) -> Tensor:
        """Return the lesser Q of each action, [B, A]."""
        one_hots = torch.eye(ACTIONS).repeat(len(observation), 1)
        return self(observation.repeat_interleave(ACTIONS, 0), one_hots).amin(0).unflatten(0, (-1, ACTIONS))


class SAC:
    """Actor, critics and their slow copies, and the temperature α of the entropy."""

    def __init__(self, estimator: str, generator: torch.Generator) -> None:
        self.estimator, self.generator = estimator, generator
        self.actor = mlp(OBSERVATION, HIDDEN, ACTIONS, 0.1, activation=nn.ReLU)
        self.critics = Critics()
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.actor_optimizer = torch.optim.Adam([*self.actor.parameters(), self.log_alpha], LEARNING_RATE, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), LEARNING_RATE, fused=True)

    def policy(self, observation: Tensor) -> OneHots:
        estimator = "straight_through" if self.estimator == "exact" else self.estimator
        return OneHots(self.actor(observation).unsqueeze(-2), estimator, RELAXATION)

    def sample(self, policy: OneHots) -> Tensor:
        return policy.sample(gumbel(tuple(policy.mean.shape), policy.logits, self.generator))

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool = False) -> Tensor:
        policy = self.policy(observation)
        return (policy.mode if greedy else self.sample(policy)).argmax(-1)

    def value(self, policy: OneHots, observation: Tensor) -> Tensor:
        """Return E[Q] with a gradient for the policy, by the estimator."""
        if self.estimator == "exact":
            return (policy.mean * self.critics.of_every_action(observation)).sum(-1)
        return self.critics(observation, self.sample(policy)).amin(0)

    def update(self, observation: Tensor, action: Tensor, reward: Tensor, after: Tensor, terminated: Tensor) -> None:
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_policy = self.policy(after)
            next_value = (next_policy.mean * self.slow_critics.of_every_action(after)).sum(-1)
            target = reward + DISCOUNT * ~terminated * (next_value + alpha * next_policy.entropy_nats())
        codes = nn.functional.one_hot(action, ACTIONS).float()
        descend(self.critic_optimizer, (self.critics(observation, codes) - target).square().mean())
        self.critics.requires_grad_(False)  # the actor's gradient passes through them
        policy = self.policy(observation)
        entropy = policy.entropy_nats()
        of_alpha = self.log_alpha * (entropy.detach().mean() - TARGET_ENTROPY_NATS)
        descend(self.actor_optimizer, of_alpha - (self.value(policy, observation) + alpha * entropy).mean())
        self.critics.requires_grad_(True)
        with torch.no_grad():
            for slow, fast in zip(self.slow_critics.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, TARGET_RATE)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make(num_envs: int) -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")


def evaluate(agent: SAC, seed: int, episodes: int = 16) -> float:
    """Return the mean return of greedy play."""
    env, is_on, total = make(episodes), torch.ones(episodes, dtype=torch.bool), 0.0
    observation, _ = env.reset(seed=seed)
    while is_on.any():
        action = agent.act(torch.as_tensor(observation), greedy=True)
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        total += float((torch.as_tensor(reward) * is_on).sum())
        is_on &= ~torch.as_tensor(terminated | truncated)
    return total / episodes


def train(estimator: str, seed: int, steps: int) -> list[float]:
    """Return the mean return of greedy play after each of `REPORTS` equal parts of the steps."""
    torch.manual_seed(seed)
    generator, env = torch.Generator().manual_seed(seed), make(NUM_ENVS)
    agent, returns, size = SAC(estimator, generator), [], 0
    observation, is_over = torch.as_tensor(env.reset(seed=seed)[0]), torch.zeros(NUM_ENVS, dtype=torch.bool)
    like = (observation, torch.zeros(1).long(), torch.zeros(1), observation, is_over)
    replay = [torch.zeros(steps, *x.shape[1:], dtype=x.dtype) for x in like]
    for step in range(NUM_ENVS, steps + 1, NUM_ENVS):
        action = agent.act(observation)
        after, reward, terminated, truncated = map(torch.as_tensor, env.step(action.numpy())[:4])
        end = size + int((~is_over).sum())
        for column, x in zip(replay, (observation, action, reward, after, terminated), strict=True):
            column[size:end] = x[~is_over]  # after an end the environment only resets, whatever the action
        observation, is_over, size = after.clone(), terminated | truncated, end
        for _ in range(UPDATES if step > WARM_UP else 0):
            rows = torch.randint(size, (BATCH,), generator=generator)
            agent.update(*(column[rows] for column in replay))
        if step * REPORTS // steps > (step - NUM_ENVS) * REPORTS // steps:
            returns.append(evaluate(agent, 1_000_000_007 + seed))
    return returns


def main(estimator: list[str], seeds: list[int], steps: int) -> None:
    torch.set_num_threads(1)
    print(f"| estimator | seed |{'|'.join(f' {steps * (i + 1) // REPORTS:,} ' for i in range(REPORTS))}|")
    print("|---" * (2 + REPORTS) + "|")
    for name in estimator:
        curves = []
        for seed in seeds:
            curves.append(train(name, seed, steps))
            print(f"| {name} | {seed} | {' | '.join(f'{x:.0f}' for x in curves[-1])} |", flush=True)
        means = [statistics.fmean(x) for x in zip(*curves, strict=True)]
        print(f"| {name} | mean | {' | '.join(f'{x:.0f}' for x in means)} |", flush=True)


if __name__ == "__main__":
    names = ["exact", *get_args(Estimator)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--estimator", nargs="+", choices=names, default=["exact", "gumbel_softmax", "straight_through"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=20_000)
    main(**vars(parser.parse_args()))
