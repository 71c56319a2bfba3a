"""Environments of others in wrappers, and two with action masks that raise when a masked action is taken."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation


class StrictMask(gymnasium.Wrapper):
    """An environment whose `info["action_mask"]` is a rule: what it forbids ends the program."""

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.mask = np.array(info["action_mask"])
        return observation, info

    def step(self, action):
        assert self.mask[action], f"action {action} is masked: {self.mask}"
        *rest, info = self.env.step(action)
        self.mask = np.array(info["action_mask"])
        return *rest, info


class MaskedCards(gymnasium.Env):
    """Take each of 6 cards once, the lowest first for a reward; a card that was taken is masked in the observation."""

    observation_space = spaces.Dict({"observation": spaces.MultiBinary(6), "action_mask": spaces.MultiBinary(6)})
    action_space = spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = np.ones(6, np.int8)
        self.left[self.np_random.integers(6)] = 0
        return self._observe(), {}

    def _observe(self):
        return {"observation": self.left.copy(), "action_mask": self.left.copy()}

    def step(self, action):
        assert self.left[action], f"card {action} is masked: {self.left}"
        reward = float(action == np.flatnonzero(self.left)[0])
        self.left[action] = 0
        is_over = not self.left.any()
        self.left |= is_over  # the last observation allows something
        return self._observe(), reward, bool(is_over), False, {}


def stacked(task, size=4, **kwargs):
    return FrameStackObservation(gymnasium.make(task, disable_env_checker=True, **kwargs), size)


def atari(task="ALE/Pong-v5", size=4, **kwargs):
    """Grey pictures of 84 x 84, the last four of them first: [4, 84, 84]."""
    import ale_py

    gymnasium.register_envs(ale_py)
    game = gymnasium.make(task, frameskip=1, **kwargs)
    return FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(game, noop_max=5), size)


def masked_taxi():
    return StrictMask(gymnasium.make("Taxi-v4"))


for name, entry_point in {
    "MaskedTaxi": masked_taxi,
    "MaskedCards": MaskedCards,
    "StackedCartPole": lambda: stacked("CartPole-v1"),
    "StackedFrozenLake": lambda: stacked("FrozenLake-v1"),
    "StackedBlackjack": lambda: stacked("Blackjack-v1"),
    "StackedPong": atari,
}.items():
    gymnasium.register(f"test/{name}-v0", entry_point=entry_point, max_episode_steps=200)
