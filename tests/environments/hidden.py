"""Gymnasium's control tasks with their velocities hidden, so that a policy must infer them from what it saw before.

Registered as PoCartPole-v0, PoAcrobot-v0, PoMountainCar-v0, PoPendulum-v0 and PoLunarLander-v0 ("partially observed").
"""

from functools import partial

import gymnasium
import numpy as np
from gymnasium import spaces

SHOWN = {
    "PoCartPole-v0": ("CartPole-v1", (0, 2)),  # position, angle
    "PoAcrobot-v0": ("Acrobot-v1", (0, 1, 2, 3)),  # cosine and sine of both angles
    "PoMountainCar-v0": ("MountainCar-v0", (0,)),  # position
    "PoPendulum-v0": ("Pendulum-v1", (0, 1)),  # cosine and sine of the angle
    "PoLunarLander-v0": ("LunarLander-v3", (0, 1, 4, 6, 7)),  # position, angle, contact of both legs
}
"""The task beneath, and which entries of its observation are shown."""


class Shown(gymnasium.ObservationWrapper):
    """An environment that shows some numbers of its vector, in their order."""

    def __init__(self, env: gymnasium.Env, indices: tuple[int, ...]):
        super().__init__(env)
        whole = env.observation_space
        assert isinstance(whole, spaces.Box), "a vector of numbers"
        self.indices = np.array(indices)
        self.observation_space = spaces.Box(whole.low[self.indices], whole.high[self.indices], dtype=np.float32)

    def observation(self, observation):
        return observation[self.indices]


def make(task: str, indices: tuple[int, ...], **kwargs) -> gymnasium.Env:
    """Return a task, time limit included, that shows these numbers alone."""
    return Shown(gymnasium.make(task, disable_env_checker=True, **kwargs), indices)


for name, (task, indices) in SHOWN.items():
    gymnasium.register(name, entry_point=partial(make, task, indices))
