"""Tasks and a wrapper by the names that pages give to those of a reader."""

import gymnasium
import numpy as np


class Shown(gymnasium.Env):
    """Shows something at random for five steps."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), float(action), self.time == 5, False, {}


def robot():
    camera = gymnasium.spaces.Box(-1, 1, (16, 16, 3), np.float32)
    return Shown(gymnasium.spaces.Dict(sensors=gymnasium.spaces.Dict(camera=camera)))


Wrapper = gymnasium.Wrapper
gymnasium.register("Mine-v0", entry_point=lambda: Shown(gymnasium.spaces.Discrete(3)))
gymnasium.register("Board-v0", entry_point=lambda: Shown(gymnasium.spaces.Box(0, 4, (5, 5), np.int64)))
gymnasium.register("Robot-v0", entry_point=robot)
