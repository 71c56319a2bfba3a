"""A batch of somebody's own, which says the least that it may."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from merlin.tasks.base.arguments import check_types
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


class Bells(TensorVectorEnv):
    """Rings at each of three steps; a fourth has no bell and fails. Episodes end one by one."""

    state_names = ("time",)
    can_be_cut = True

    def __init__(self, num_envs=1, loud: bool = False, device="cpu", render_mode=None):
        super().__init__(num_envs, gymnasium.spaces.Discrete(4), gymnasium.spaces.Discrete(2), device, render_mode)
        self.bells = torch.tensor([1.0, 2.0, 4.0])

    def _start(self):
        self.time = torch.zeros(self.num_envs, dtype=torch.int64)

    def _observe(self):
        return self.time.clone()

    def _step(self, actions):
        reward = torch.tensor([0.0, 8.0]).index_select(0, actions) + self.bells.index_select(0, self.time)
        self.time += 1  # in place, as kernels do
        ends = self.time == 3
        late = torch.zeros_like(ends) if self.cut is None else self.cut & ~ends
        info = {"is_success": torch.where(ends | late, 1.0, torch.nan), "rings": reward > 0, "pitch": reward}
        return self._observe(), reward, ends, late, info

    def draw(self, index):
        return np.zeros((8, 8, 3), np.uint8)


def bells(num_envs=2, **options):
    env = Bells(num_envs, **options)
    env.reset(seed=0)
    return env


def test_an_ignored_action_leads_to_nothing():
    env, zero = bells(autoreset_mode="NEXT_STEP"), torch.zeros(2, dtype=torch.int64)
    env.step(zero)
    env.reset(options={"reset_mask": torch.tensor([False, True])})  # row 1 is a step behind from here on
    found = [env.step(zero) for _ in range(7)]
    assert [step[0].tolist() for step in found] == [[2, 1], [3, 2], [0, 3], [1, 0], [2, 1], [3, 2], [0, 3]]
    assert [step[1].tolist() for step in found] == [[2, 1], [4, 2], [0, 4], [1, 0], [2, 1], [4, 2], [0, 4]]
    assert [step[2].tolist() for step in found[:4]] == [[False, False], [True, False], [False, True], [False, False]]
    assert found[2][4]["rings"].tolist() == [False, True] and found[2][4]["pitch"].isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="an action must be from 0 to 1"):
        env.step(torch.tensor([0, 2]))
    assert env.time.tolist() == [0, 3] and env.has_ended.tolist() == [False, True], "nothing has changed"
    assert env.step(zero)[0].tolist() == [1, 0]


def test_an_episode_that_ended_is_not_gone_on_with():
    env, zero = bells(autoreset_mode="DISABLED"), torch.zeros(2, dtype=torch.int64)
    for _ in range(3):
        env.step(zero)
    env.reset(options={"reset_mask": torch.tensor([False, True])})
    with pytest.raises(ResetNeeded, match="but 1 of 2 were not"):
        env.step(zero)
    env.reset(options={"reset_mask": torch.tensor([True, False])})
    assert env.step(zero)[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "mask", [torch.tensor([True]), torch.tensor([[True], [True]]), torch.tensor([0, 1]), np.ones(2), True]
)
def test_a_mask_has_a_boolean_for_each(mask):
    env = bells(autoreset_mode="DISABLED")
    with pytest.raises(ValueError, match="reset_mask must be 2 booleans, one for each environment, but came as"):
        env.reset(options={"reset_mask": mask})
    assert env.num_taken.shape == (2,)


def test_no_action_is_rounded():
    env = bells()
    for actions in (np.array([0.9, 0.0]), [0.0, 0.9], torch.tensor([0.9, 1])):
        with pytest.raises(ValueError, match=r"actions must be whole numbers, but 0\.9 came"):
            env.step(actions)
    assert env.step([True, False])[1].tolist() == [9, 1]
    assert bells().step([1.0, 0.0])[1].tolist() == bells().step([1, 0])[1].tolist()  # nothing is lost


def test_a_cut_is_not_left_for_the_next_episode():
    env = bells(max_episode_steps=1)
    with pytest.raises(ValueError, match="an action must be from"):
        env.step([2, 2])
    env.max_episode_steps = None
    env.reset()
    assert not env.step([0, 0])[3].any()


def test_arguments_are_of_their_types():
    with pytest.raises(ValueError, match="loud must be True or False, but is 'no'"):
        Bells(2, "no")
    with pytest.raises(ValueError, match=r"max_episode_steps must be a whole number or None, but is 2\.5"):
        check_types(Bells, max_episode_steps=2.5)
    check_types(Bells, np.int64(2), loud=np.True_, max_episode_steps=None, device=None)


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
