"""A cue at the first step that the action of the last step must name. Registered as DelayedCue-v0."""

import gymnasium
import numpy as np
from gymnasium import spaces


class DelayedCue(gymnasium.Env):
    """Remember one of two cues for a number of steps of noise.

        step           0          1 ... steps - 2    steps - 1
        observation    cue ±1     0                  0            [0]
                       0          0                  1            [1]: now
                       noise      noise              noise        [2:5], standard normal
        reward         0          0                  1 if the action names the cue, else -1

    Whoever remembers earns 1. Whoever does not earns 0 on average, whatever it does.

    Args:
        steps: Actions of an episode, at least 2.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, steps: int = 20):
        if steps < 2:
            raise ValueError(f"steps must be at least 2, for a first and a last one, but is {steps}: raise it.")
        self.steps = steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_index = 0
        self.cue = int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action):
        is_last = self.step_index == self.steps - 1
        reward = (1.0 if action == self.cue else -1.0) if is_last else 0.0
        self.step_index += 1
        return self._observe(), reward, is_last, False, {}

    def _observe(self):
        observation = self.np_random.normal(size=5).astype(np.float32)
        observation[0] = 2 * self.cue - 1 if self.step_index == 0 else 0
        observation[1] = self.step_index == self.steps - 1
        return observation


gymnasium.register("DelayedCue-v0", entry_point=f"{__name__}:DelayedCue")
