"""Every environment looks the same to an agent: entries and types, tasks, pictures, and mistakes in asking for one."""

import re
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

import tests.environments.examples  # noqa: F401 (registers test/...-v0)
from merlin.environments.batch import make_environment
from merlin.errors import EnvironmentFailure, MerlinError, tell
from merlin.networks.spaces import Tokens


def test_entries_have_the_types_that_networks_take():
    with make_environment("test/Speaker-v0", 2) as environment:
        observation = environment.reset(0).observation
    assert {name: entry.dtype for name, entry in observation.items()} == {"said": torch.int64, "heard": torch.float32}
    with make_environment("test/PictureMiniGrid-v0", 2) as environment:
        assert environment.reset(0).observation["image"].dtype == torch.uint8


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_texts_become_tokens_and_boxes_are_clipped(vectorization):
    with make_environment("test/Speaker-v0", 2, vectorization=vectorization) as environment:
        said = environment.spaces["said"]
        assert isinstance(said, Tokens) and said.vocabulary == ("", *" abcxyz") and said.shape == (6,)
        observation = environment.reset(0).observation
        assert [said.vocabulary[index] for index in observation["said"][1]] == ["b", "a", "y", "", "", ""]
        action = torch.tensor([[[-7.0, -7], [-7, -7]], [[1, 2], [3, 7]]])
        observation = environment.step(action).observation
        assert observation["heard"].tolist() == [[[-1, -2], [-3, -4]], [[1, 2], [3, 5]]]
        assert (observation["said"] == 0).all()


def test_our_tasks_are_batches_of_tensors_that_continue_exactly():
    def actions():
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(6, (4,), generator=generator) for _ in range(40)]

    with (
        make_environment("merlin/MemoryGame-v0", 4) as environment,
        make_environment("merlin/MemoryGame-v0", 4) as other,
    ):
        assert environment.is_native
        environment.reset(0)
        for action in actions()[:13]:
            environment.step(action)
        other.reset(1)
        other.load_state_dict(environment.state_dict())
        for action in actions()[13:]:
            timestep, same = environment.step(action), other.step(action)
            assert all(torch.equal(timestep.observation[name], same.observation[name]) for name in timestep.observation)
            assert torch.equal(timestep.reward, same.reward)


def test_success_is_nan_where_the_task_does_not_define_it():
    with make_environment("CartPole-v1", 2) as environment:
        environment.reset(0)
        steps = [environment.step(torch.ones(2, dtype=torch.int64)) for _ in range(20)]
    assert any(step.terminated.any() for step in steps) and all(step.success.isnan().all() for step in steps)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_pictures_of_an_environment(vectorization):
    arguments = {"num_envs": 2, "vectorization": vectorization, "render_mode": "rgb_array"}
    with make_environment("test/Speaker-v0", **arguments) as environment:
        environment.reset(0)
        assert environment.render(1).shape == (4, 5, 3)
    with make_environment("test/Episodes-v0", **arguments) as environment:
        assert environment.render(0) is None


class Lengthy(gymnasium.Env):
    """Cannot be made."""

    def __init__(self, length: int | None = None, parts: tuple[float, ...] = (), scale: float = 1.0):
        raise TypeError(f"slices of {length} and {parts}")


gymnasium.register("test/Lengthy-v0", entry_point=Lengthy)


class NoSpaces(gymnasium.Env):
    """Says of neither space which it is."""

    def step(self, action):
        return 0, 0.0, True, False, {}


class NoActions(NoSpaces):
    observation_space = spaces.Discrete(2)


class NoSeed(NoActions):
    action_space = spaces.Discrete(2)

    def reset(self):
        return 0, {}


class NoOptions(NoSeed):
    def reset(self, seed=None):
        return 0, {}


class NoStep(gymnasium.Env):
    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 0, {}


class NoAction(NoStep):
    def step(self):
        return 0, 0.0, True, False, {}


class Fails(NoStep):
    def step(self, action):
        return 0, None + action, True, False, {}


class NoEnv:
    """Has all of an environment's methods, but is none."""

    observation_space, action_space = NoStep.observation_space, NoStep.action_space
    reset, step = NoStep.reset, NoSpaces.step


class Forgetful:
    """Holds functions that make no environments."""

    @staticmethod
    def none():
        NoSeed()

    @staticmethod
    def uncalled():
        return NoSeed

    @staticmethod
    def batch():
        return gymnasium.make_vec("CartPole-v1", num_envs=2)

    @staticmethod
    def other():
        return NoEnv()


HERE = "tests.environments.test_batch"
AT = r" at \S*test_batch\.py:\d+"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            {"task": "MiniGrid-MemoryS6-v0"},
            "There is no task 'MiniGrid-MemoryS6-v0'.*nearest of which is 'MiniGrid-Mem",
        ),
        ({"task": "merlin/MemoryGame-v1"}, "nearest of which is 'merlin/MemoryGame-v0'"),
        ({"task": "tmaze"}, "nearest of which is 'merlin/TMaze-v0'"),
        ({"task": "merlin/TMaz-v0"}, "nearest of which is 'merlin/TMaze-v0'"),
        ({"task": "memory_game"}, "nearest of which is 'merlin/MemoryGame-v0'"),
        ({"task": "Merln/tmaze"}, "nearest of which is 'merlin/TMaze-v0'"),
        ({"task": "cartpole"}, "nearest of which is 'CartPole-v1'"),
        ({"task": "qqq"}, "use a registered id, or module:Id"),
        (
            {"task": "Elsewhere/Pong-v5"},
            "nobody registered ids that begin with 'Elsewhere': install .* name it as module:Elsewhere/Pong-v5",
        ),
        ({"task": "no_such_module:Id-v0"}, "The module of 'no_such_module:Id-v0' cannot be imported"),
        ({"task": "a:b:Id-v0"}, "cannot be imported"),
        (
            {"task": "tests.environments.misbehaving:Misbehavin"},
            r"tests\.environments\.misbehaving has none named 'Misbehavin': did you mean 'Misbehaving'\?$",
        ),
        (
            {"task": "tests.environments.misbehaving:Qqq-v0"},
            r"registers no 'Qqq-v0': let it call gymnasium.register, or name a class .* as in \S*misbehaving:NAME\.$",
        ),
        ({"task": "tests.environments.misbehaving:CartPole-v9"}, "nearest of which is 'CartPole-v1'"),
        ({"task": "a/b.py:Id-v0"}, "'a/b.py' is a file: write b:Id-v0, and add its folder to sys.path"),
        ({"task": "./b.py"}, "'./b.py' is a file: write b:NAME.$"),
        (
            {"task": "MiniGrid-MemoryS7-v0", "env_kwargs": {"sise": 9}},
            r"^MemoryEnv has no argument sise: did you mean 'size'\? It takes size, random_length, max_steps, .*\.$",
        ),
        (
            {"task": "MiniGrid-MemoryS7-v0", "env_kwargs": {"sise": 9}, "vectorization": "async"},
            r"^MemoryEnv has no argument sise: did you mean 'size'\? It takes size, ",
        ),
        (
            {"task": "merlin/TMaze-v0", "env_kwargs": {"Q": 9}},
            r"^TMaze has no argument Q: leave it out\. It takes length, view\.$",
        ),
        (
            {"task": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": "yes", "x": 1}},
            r"^CartPoleEnv has no argument x: leave it out\. It takes sutton_barto_reward\.$",
        ),
        (
            {"task": "test/Lengthy-v0", "env_kwargs": {"length": "five"}},
            r"^The argument length of Lengthy must be int \| None, but 'five' came: correct it\.$",
        ),
        (
            {"task": "test/Lengthy-v0", "env_kwargs": {"length": True}},
            r"^The argument length of Lengthy must be int \| None, but True came: correct it\.$",
        ),
        (
            {"task": "test/Lengthy-v0", "env_kwargs": {"length": 3, "parts": [1.0, 2]}},
            r"^test/Lengthy-v0 cannot be built with {.*}: TypeError: slices of 3 and \[1.0, 2\]\.$",
        ),
        (
            {"task": f"{HERE}:NoSpaces"},
            f"and an action_space of gymnasium's, but of NoSpaces{AT} the observation_space is missing and the "
            "action_space is missing: set them in __init__ or in the class.",
        ),
        ({"task": f"{HERE}:NoActions"}, f"but of NoActions{AT} the action_space is missing: set them"),
        (
            {"task": f"{HERE}:NoEnv"},
            rf"must extend gymnasium\.Env, but NoEnv{AT} does not: write `class NoEnv\(gymnasium\.Env\)`\.$",
        ),
        (
            {"task": f"{HERE}:NoEnv", "vectorization": "async"},
            rf"^An environment must extend gymnasium\.Env, but NoEnv{AT}",
        ),
        (
            {"task": lambda: 3},
            "^The function that makes environments must return one that extends gymnasium.Env, but the "
            f"lambda{AT} returned an int, 3: return the environment.$",
        ),
        ({"task": f"{HERE}:Forgetful.none"}, f"but none{AT} returned None: return the environment.$"),
        ({"task": f"{HERE}:Forgetful.uncalled"}, r"returned the class NoSeed: return NoSeed\(\)\.$"),
        ({"task": f"{HERE}:Forgetful.batch"}, r"returned a \w*VectorEnv: pass the batch itself\.$"),
        ({"task": f"{HERE}:Forgetful.other"}, r"returned a NoEnv: write `class NoEnv\(gymnasium\.Env\)`\.$"),
        ({"task": "merlin/MemoryGame-v0", "env_kwargs": {"pairs": 1}}, "cannot be built with .*at least 2"),
        ({"task": "CartPole-v1", "env_kwargs": {"num_envs": 3}}, "cannot include num_envs"),
        ({"task": "CartPole-v1", "num_envs": 0}, "The number of environments must be at least 1, but is 0"),
        ({"task": "CartPole-v1", "vectorization": "threads"}, "must be 'sync' or 'async', but is 'threads'"),
        (
            {"task": "test/Misbehaving-v0", "env_kwargs": {"action_space": spaces.Text(3)}},
            "Action spaces are made of Discrete, .*; test/Misbehaving-v0 has a Text",
        ),
        (
            {"task": "test/Misbehaving-v0", "env_kwargs": {"observation_space": spaces.Sequence(spaces.Discrete(2))}},
            "'observation' is a Sequence",
        ),
        (
            {
                "task": "test/Misbehaving-v0",
                "env_kwargs": {"observation_space": spaces.Sequence(spaces.Discrete(2))},
                "vectorization": "async",
            },
            "'observation' is a Sequence",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence(arguments, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        make_environment(**{"num_envs": 2, **arguments})
    assert "\n" not in str(raised.value)


RESET = r"write `def reset\(self, \*, seed=None, options=None\)`\.$"


@pytest.mark.parametrize(
    "task, sentence",
    [
        (NoSeed, rf"^`reset` must take what it is called with, but that of NoSeed is `def reset\(self\)`{AT}: {RESET}"),
        (lambda: gymnasium.wrappers.TimeLimit(NoSeed(), 3), rf"that of NoSeed is `def reset\(self\)`{AT}: {RESET}"),
        (NoOptions, rf"that of NoOptions is `def reset\(self, seed=None\)`{AT}: {RESET}"),
        (
            NoStep,
            rf"^An environment must define `step`, but NoStep{AT} does not: write `def step\(self, action\)` in it\.$",
        ),
        (NoAction, rf"that of NoAction is `def step\(self\)`{AT}: write `def step\(self, action\)`\.$"),
        (Fails, rf"^Fails failed in step: TypeError: .*{AT}\.$"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_method_that_cannot_be_called_is_told_with_how_it_is_written(task, sentence):
    with make_environment(task, 2) as environment, pytest.raises(EnvironmentFailure, match=sentence) as raised:
        environment.reset(0)
        environment.step(torch.zeros(2, dtype=torch.int64))
    assert "\n" not in str(raised.value)


class More(NoSpaces):
    observation_space = spaces.Dict({"in": spaces.Dict({"a": spaces.Discrete(2)})})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"in": {"a": 0, "b": 1}, "what": 1}, {}

    def step(self, action):
        return {"in": {"a": 0}, "else": 1}, 0.0, True, False, {}


class Lumped(VectorEnv):
    """A batch of the same."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs, single_observation_space, single_action_space = 2, More.observation_space, More.action_space

    def reset(self, *, seed=None, options=None):
        return {"in": {"a": np.zeros(2, np.int64), "b": 1}, "what": 1}, {}

    def step(self, actions):
        return {"in": {"a": np.zeros(2, np.int64)}, "else": 1}, np.zeros(2), np.ones(2, bool), np.zeros(2, bool), {}


@pytest.mark.parametrize(("task", "way"), [(More, "sync"), (More, "async"), (Lumped(), "sync")], ids=str)
def test_keys_that_the_space_does_not_declare_are_told_once(task, way, capfd):
    tell.cache_clear()
    with make_environment(task, 2, vectorization=way) as environment:
        environment.reset(0)
        for _ in range(3):
            assert {*environment.step(torch.zeros(2, dtype=torch.int64)).observation} == {"in.a"}
    told = capfd.readouterr().err.splitlines()
    assert sorted(
        re.search(r"returned ('.*') besides: declare that in the space, or leave it out\.$", line)[1] for line in told
    ) == [
        "'else'",
        "'in.b'",
        "'what'",
    ]


@pytest.mark.parametrize("task", ["MiniGrid-Empty-5x5-v0", "CartPole-v1"])
def test_an_observation_of_the_space_is_told_nothing_about(task, capfd):
    tell.cache_clear()
    with make_environment(task, 1) as environment:
        environment.reset(0)
    assert "besides" not in capfd.readouterr().err, "a mission that never changes is left out by us"
