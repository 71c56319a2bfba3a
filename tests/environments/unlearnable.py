"""Environments of which something cannot be learnt as they are, or with settings that do not suit them; and one of
which all can.

    gymnasium.make("test/Tiny-v0", rewards="never")
"""

import gymnasium
import numpy as np
from gymnasium import spaces

NOISE = 1e-3
"""Of a number that is seen, and of rewards that are too small to be noticed."""


class Tiny(gymnasium.Env):
    """Ten steps, each of which shows a cue out of 4 and a number; two actions, or a number from -1 to 1.

    Args:
        rewards: One of `REWARDS`, by name.
        number: Standard deviation of the number; none leaves it out.
        length: Steps of an episode; none has no end.
    """

    def __init__(self, rewards="cue", number=None, length=10, box=False):
        self.rewards, self.number, self.length = REWARDS[rewards], number, length
        observation = {"cue": spaces.Discrete(4)}
        if number is not None:
            observation["number"] = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Dict(observation)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if box else spaces.Discrete(2)
        self.num_episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps, self.previous = 0, None
        self.num_episodes += 1
        return self._observe(), {}

    def _observe(self):
        self.cue = int(self.np_random.integers(4))
        observation = {"cue": self.cue}
        if self.number is not None:
            observation["number"] = np.float32(self.number * self.np_random.standard_normal(1)).clip(-1, 1)
        return observation

    def step(self, action):
        reward = float(self.rewards(self, action))
        self.num_steps, self.previous = self.num_steps + 1, action
        return self._observe(), reward, self.num_steps == self.length, False, {}


REWARDS = {
    "cue": lambda env, action: action == env.cue % 2,
    "never": lambda env, action: 0,
    "always": lambda env, action: -1,
    # A game of chance that becomes less generous.
    "chance": lambda env, action: env.np_random.choice([-1, 1]) - 0.5 * (env.num_episodes > 6),
    "little": lambda env, action: NOISE * (env.np_random.choice([-1, 1]) - 0.5 * (env.num_episodes > 6)),
    "offset": lambda env, action: 10 + 0.1 * (env.np_random.choice([-1, 1]) - 0.5 * (env.num_episodes > 6)),
    # What pays now costs more later.
    "tempting": lambda env, action: 0.1 * (action == 0) - 0.5 * (env.previous == 0),
    "near 0": lambda env, action: -abs(action[0]),
}

gymnasium.register("test/Tiny-v0", entry_point=Tiny)
