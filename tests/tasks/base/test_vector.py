"""A batch of somebody's own, which says the least that it may."""

import gymnasium
import numpy as np
import pytest
import torch

from merlin.tasks.base.single import SingleEnv
from merlin.tasks.base.vector import TensorVectorEnv


class Sums(TensorVectorEnv):
    """Earns what the numbers of an action sum to, for three steps."""

    state_names = ("time",)

    def __init__(self, num_envs=1, device="cpu", render_mode=None):
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        super().__init__(num_envs, gymnasium.spaces.Discrete(4), action_space, device, render_mode)

    def _start(self):
        self.time = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)

    def _observe(self):
        return self.time

    def _step(self, actions):
        self.time = self.time + 1
        return self._end_together(actions.sum(-1), bool(self.time[0] == 3), lambda: actions.sum(-1) > 0)

    def draw(self, index):
        return np.zeros((8, 8, 3), np.uint8)


class Sum(SingleEnv):
    batched = Sums


gymnasium.register("test/Sums-v0", entry_point=Sum, vector_entry_point=Sums)


@pytest.mark.parametrize("arrays", ["torch", "numpy"])
def test_numbers_of_a_box_reach_the_task_as_they_are(arrays):
    envs = gymnasium.make_vec("test/Sums-v0", 2, vectorization_mode="vector_entry_point", arrays=arrays)
    envs.reset(seed=0)
    actions = np.array([[0.25, 0.5], [-0.75, 0.125]])  # float64, as NumPy makes them
    _, reward, *_ = envs.step(torch.tensor(actions) if arrays == "torch" else actions)
    assert np.asarray(reward).tolist() == [0.75, -0.625]


def test_one_environment_needs_no_names_of_actions():
    env = gymnasium.make("test/Sums-v0")
    env.reset(seed=0)
    steps = [env.step(np.array([0.25, 0.5], np.float32)) for _ in range(3)]
    assert [step[1] for step in steps] == [0.75] * 3 and steps[-1][2] and steps[-1][4] == {"is_success": 1.0}
