"""What reaches an environment lies in its action space, in the space's own types, whatever the agent's numbers."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from merlin.environments.actions import EnvironmentActions
from merlin.environments.adapters import AgentView
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.networks.actions import make_action_distribution

B = 3
SPACES = {
    "discrete": spaces.Discrete(4),
    "discrete_start": spaces.Discrete(3, start=-2, dtype=np.int16),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [-3, 2]], dtype=np.int32),
    "multi_binary": spaces.MultiBinary(3),
    "multi_binary_matrix": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-1.0, 1.0, (2, 3)),
    "box_number": spaces.Box(-1.0, 2.0, ()),
    "box_asymmetric": spaces.Box(np.array([0.1, -7.0]), np.array([0.3, -0.1]), dtype=np.float64),
    "box_unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "box_half_bounded": spaces.Box(np.array([0.1, -np.inf]), np.array([np.inf, -0.7]), dtype=np.float64),
    "box_float16": spaces.Box(-0.1, np.inf, (2,), np.float16),
    "box_uint8": spaces.Box(0, 255, (2,), np.uint8),
    "box_int8": spaces.Box(-3, 5, (2,), np.int8),
    "box_int64": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "dict": spaces.Dict({"move": spaces.Discrete(3, start=5), "arm": spaces.Box(-0.1, 0.3, (2,), np.float64)}),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]), spaces.Discrete(4)]),
    "nested": spaces.Dict(
        {
            "z": spaces.Tuple([spaces.Discrete(2, start=7), spaces.Dict({"b": spaces.Box(0, 9, (), np.uint8)})]),
            "a": spaces.Box(-1, 1, (2, 2)),
            "dotted.key": spaces.MultiBinary((1, 2)),
            "dotted": spaces.Dict({"key": spaces.MultiDiscrete([3, 4], dtype=np.uint8)}),
        }
    ),
}
every_space = pytest.mark.parametrize("name", SPACES)


class Listener(gymnasium.Env):
    """Takes nothing but members of its action space; what it heard is its reward."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        assert_own_types(self.action_space, action)
        return np.zeros(2, np.float32), sum(map(float, numbers(action))), False, False, {}


def numbers(action):
    if isinstance(action, dict):
        return [x for value in action.values() for x in numbers(value)]
    if isinstance(action, tuple):
        return [x for value in action for x in numbers(value)]
    return np.asarray(action, np.float64).ravel().clip(-1e6, 1e6).tolist()


def assert_own_types(space, action):
    """Assert that an action is of the types that the space's own samples are of."""
    if isinstance(space, spaces.Dict):
        assert type(action) is dict and list(action) == list(space.spaces)
        for key, child in space.spaces.items():
            assert_own_types(child, action[key])
    elif isinstance(space, spaces.Tuple):
        assert type(action) is tuple
        for child, part in zip(space.spaces, action, strict=True):
            assert_own_types(child, part)
    elif isinstance(space, spaces.Discrete):
        assert isinstance(action, int | np.integer)
    else:
        assert isinstance(action, np.ndarray) and action.dtype == space.dtype and action.shape == space.shape


def drawn(space, scale):
    """Actions of a policy that wants far too much, or little."""
    distribution = make_action_distribution(space)
    parameters = scale * torch.randn(B, distribution.num_parameters, generator=torch.Generator().manual_seed(0))
    return distribution.sample(parameters, torch.Generator().manual_seed(1))


@every_space
@pytest.mark.parametrize("scale", [0.5, 1e7])
def test_actions_lie_in_the_space_in_its_own_types(name, scale):
    space = SPACES[name]
    env_fns = [lambda: AgentView(Listener(space))] * B
    vector_env = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
    with Environment(vector_env) as environment:
        environment.reset(0)
        for _ in range(20):
            reward = environment.step(drawn(space, scale)).reward
        assert len(set(reward.tolist())) > 1  # each environment gets its own


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e5])
def test_what_is_drawn_from_a_beta_is_what_is_executed(size):
    space = spaces.Box(-size, 2 * size, (2, 3), np.float32)
    distribution = make_action_distribution(space, "beta")
    actions = EnvironmentActions(space, B, torch.device("cpu"), False, "this one")
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        parameters = 100 * torch.randn(B, distribution.num_parameters, generator=generator)
        action = distribution.sample(parameters, generator)
        np.testing.assert_array_equal(actions(action), action.numpy())


@pytest.mark.parametrize("name", ["discrete_start", "nested"])
def test_actions_reach_workers(name):
    space = SPACES[name]
    vector_env = AsyncVectorEnv([lambda: AgentView(Listener(space))] * B, autoreset_mode=AutoresetMode.SAME_STEP)
    with Environment(vector_env) as environment:
        environment.reset(0)
        assert len(set(environment.step(drawn(space, 1.0)).reward.tolist())) > 1


class Batch(VectorEnv):
    """A vector environment of another's, of numpy arrays or of tensors."""

    single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
    num_envs = B

    def __init__(self, action_space, tensors=False):
        self.single_action_space, self.tensors = action_space, tensors
        self.action_space = batch_space(action_space, B)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "tensors": tensors}

    def _array(self, x):
        return torch.as_tensor(x) if self.tensors else x

    def reset(self, *, seed=None, options=None):
        return self._array(np.zeros((B, 2), np.float32)), {}

    def step(self, actions):
        self.heard = copy.deepcopy(to_arrays(actions) if self.tensors else actions)
        assert self.action_space.contains(self.heard)
        spoil(actions)
        flags = self._array(np.zeros(B, bool)), self._array(np.zeros(B, bool))
        return self._array(np.zeros((B, 2), np.float32)), self._array(np.zeros(B)), *flags, {}


def spoil(actions):
    """Write over actions."""
    if isinstance(actions, dict | tuple):
        for child in actions.values() if isinstance(actions, dict) else actions:
            spoil(child)
    else:
        actions[...] = 0


def to_arrays(actions):
    if isinstance(actions, dict):
        return {key: to_arrays(value) for key, value in actions.items()}
    if isinstance(actions, tuple):
        return tuple(map(to_arrays, actions))
    assert isinstance(actions, torch.Tensor)
    return actions.numpy()


@every_space
@pytest.mark.parametrize("tensors", [False, True])
def test_batches_of_others_get_what_gymnasium_says(name, tensors):
    environment = Environment(Batch(SPACES[name], tensors))
    environment.reset(0)
    for scale in (0.5, 1e7):
        action = drawn(SPACES[name], scale)
        before = action.clone()
        environment.step(action)
        assert torch.equal(action, before), "what a batch does to its actions is not done to the agent's"


def test_whole_numbers_are_rounded_and_bounds_are_exact():
    environment = Environment(Batch(SPACES["box_int8"]))
    environment.step(torch.tensor([[0.6, -0.6], [-7.0, 7.0], [2.4, -2.4]]))
    assert environment.vector_env.heard.tolist() == [[1, -1], [-3, 5], [2, -2]]
    environment = Environment(Batch(SPACES["box_asymmetric"]))
    environment.step(torch.tensor([[0.0, -9.0], [9.0, 9.0], [0.25, -0.5]]))
    assert environment.vector_env.heard.tolist() == [[0.1, -7.0], [0.3, -0.1], [0.25, -0.5]]


@pytest.mark.parametrize(
    "name, action, sentence",
    [
        ("discrete", [0, 4, 1], r"must lie in Discrete\(4\), but that of environment 1 of Batch is 4"),
        ("discrete_start", [0, 0, -3], "but that of environment 2 of Batch is -3"),
        ("multi_binary", [[0, 1, 0], [0, 0, 0], [0, 2, 1]], r"environment 2 of Batch is \[0, 2, 1\]"),
    ],
)
def test_choices_outside_the_space_are_told(name, action, sentence):
    with pytest.raises(MerlinError, match=sentence):
        Environment(Batch(SPACES[name])).step(torch.tensor(action))
