"""One episode in every environment of a batch."""

import torch


def play(env, policy, seed=0):
    """Return the returns and successes, float64 [B], of the first episode of each environment."""
    observation, _ = env.reset(seed=seed)
    returns = torch.zeros(env.num_envs, dtype=torch.float64)
    success = torch.full_like(returns, torch.nan)
    is_playing = torch.ones(env.num_envs, dtype=torch.bool)
    while is_playing.any():
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        returns += reward * is_playing
        success = torch.where(is_playing, info["is_success"].double(), success)
        is_playing &= ~(terminated | truncated)
    return returns, success


def random_policy(env, seed=1):
    generator = torch.Generator().manual_seed(seed)
    num_actions = int(env.single_action_space.n)
    return lambda observation: torch.randint(num_actions, (env.num_envs,), generator=generator)


def assert_mean(samples, expected):
    """Assert that the mean of the samples is within 4 standard errors of the expected one."""
    standard_error = samples.std() / len(samples) ** 0.5
    assert abs(samples.mean() - expected) < 4 * standard_error + 1e-9, (samples.mean(), expected, standard_error)
