"""One episode in every environment of a batch, and shortest ways by relaxation, a second opinion on planners."""

import torch
from gymnasium.spaces import MultiDiscrete


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


def num_choices(env):
    """Return how many choices an action has, or each part of one has."""
    space = env.single_action_space
    return torch.as_tensor(space.nvec if isinstance(space, MultiDiscrete) else space.n)


def uniform_actions(env, action):
    """Return the same action, or the same number in each of its parts, for all environments."""
    return torch.full((env.num_envs, *num_choices(env).shape), action)


def random_policy(env, seed=1):
    generator = torch.Generator().manual_seed(seed)
    choices = num_choices(env)

    def policy(observation):
        draws = [torch.randint(int(n), (env.num_envs,), generator=generator) for n in choices.flatten()]
        return torch.stack(draws, 1).view(env.num_envs, *choices.shape)

    return policy


def assert_mean(samples, expected):
    """Assert that the mean of the samples is within 4 standard errors of the expected one."""
    standard_error = samples.std() / len(samples) ** 0.5
    assert abs(samples.mean() - expected) < 4 * standard_error + 1e-9, (samples.mean(), expected, standard_error)


def distances(is_free, is_target):
    """Return the steps from each pose, [B, direction, y, x], to the nearest target; infinite where there is no way."""
    steps = torch.full((len(is_free), 4, *is_free.shape[1:]), torch.inf)
    steps = steps.masked_fill(is_target.unsqueeze(1), 0)
    while True:
        forward = torch.full_like(steps, torch.inf)
        forward[:, 0, :, :-1], forward[:, 1, :-1] = steps[:, 0, :, 1:], steps[:, 1, 1:]
        forward[:, 2, :, 1:], forward[:, 3, 1:] = steps[:, 2, :, :-1], steps[:, 3, :-1]
        nearest = torch.stack([steps.roll(1, 1), steps.roll(-1, 1), forward]).amin(0) + 1
        nearest = torch.minimum(nearest.masked_fill(~(is_free | is_target).unsqueeze(1), torch.inf), steps)
        if torch.equal(nearest, steps):
            return steps
        steps = nearest


def at_pose(values, direction, x, y):
    """Return the value, of [B, direction, y, x], of each environment's pose."""
    return values[torch.arange(len(values)), direction, y, x]
