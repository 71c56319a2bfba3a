"""How an environment's entries are taken: kinds by setting, entries of nothing, names with dots and slashes."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from merlin.environments.batch import Environment, make_environment
from merlin.environments.config import EnvironmentConfig
from merlin.errors import MerlinError
from merlin.networks.spaces import kind
from merlin.runs.presets import preset
from merlin.runs.run import load_config, write_config
from merlin.runs.settings import from_dict, override, to_dict

NESTED = spaces.Dict(
    {
        "window": spaces.Box(-1e10, 1e10, (30, 6)),
        "frames": spaces.Box(0, 255, (4, 20, 20), np.uint8),
        "absent": spaces.Box(0, 1, (0,)),
        "none": spaces.MultiDiscrete([]),
        "a.b/c": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Dict(board=spaces.Box(0, 4, (6, 7), np.uint8)))),
        "huge": spaces.Discrete(2**40, start=-5),
    }
)
KINDS = {"huge": "vector", "a.b/c.1.board": "symbols"}


class Sampled(gymnasium.Env):
    """Shows anything of its space."""

    observation_space = NESTED
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, bool(self.np_random.random() < 0.3), {}


class Sayings(VectorEnv):
    """Comes in batches only, and says texts."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (gymnasium's own form)
    num_envs = 2
    single_observation_space = spaces.Dict(said=spaces.Text(5))
    single_action_space = spaces.Discrete(2)


gymnasium.register("test/Sampled-v0", entry_point=Sampled)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_entries_are_read_as_is_said(vectorization):
    config = EnvironmentConfig(kinds=KINDS)
    with make_environment("test/Sampled-v0", 3, vectorization=vectorization, config=config) as environment:
        found = {name: kind(space) for name, space in environment.spaces.items()}
        expected = {"window": "vector", "frames": "image", "a.b/c.0": "category", "a.b/c.1.board": "symbols"}
        assert found == expected | {"huge": "vector"}
        timestep = environment.reset(seed=1)
        for _ in range(12):
            assert timestep.observation.keys() == found.keys()
            final = timestep.final_observation
            assert final is None or final.keys() == found.keys()
            for name, value in timestep.observation.items():
                space = environment.spaces[name]
                assert value.shape == (3, *space.shape)
                assert all(space.contains(row.numpy().astype(space.dtype)) for row in value)
            timestep = environment.step(torch.zeros(3, dtype=torch.int64))


def test_what_cannot_be_read_is_told_before_any_step():
    with pytest.raises(
        MerlinError, match=r"'huge', a Discrete, has 1,099,511,627,776: .* set={\"environment.kinds.huge\": \"vector\"}"
    ):
        make_environment("test/Sampled-v0", 2)
    with pytest.raises(MerlinError, match=r"names the entry 'widnow', .*: did you mean 'window'?"):
        make_environment("test/Sampled-v0", 2, config=EnvironmentConfig(kinds=KINDS | {"widnow": "vector"}))
    with pytest.raises(MerlinError, match=r"'window', a Box .*, can be read as vector, but .* is 'image'"):
        make_environment("test/Sampled-v0", 2, config=EnvironmentConfig(kinds=KINDS | {"window": "image"}))


def test_a_text_of_a_batch_is_told_what_to_do():
    with pytest.raises(MerlinError, match="'said' is a Text of a batch or of a loop of your own: return ids"):
        Environment(Sayings())


def test_a_batch_is_read_by_the_rules_unless_told():
    class Board(Sampled):
        observation_space = spaces.Box(0, 4, (6, 7), np.uint8)

    assert kind(Environment(SyncVectorEnv([Board])).spaces["observation"]) == "vector"
    config = EnvironmentConfig(kinds={"observation": "symbols"})
    assert kind(Environment(SyncVectorEnv([Board]), config=config).spaces["observation"]) == "symbols"


def test_keys_with_dots_and_slashes_are_set_and_kept():
    config = override(preset("merlin", "test/Sampled-v0"), [f"environment.kinds.{key}={x}" for key, x in KINDS.items()])
    assert config.environment.kinds == KINDS
    assert from_dict(EnvironmentConfig, to_dict(config.environment)) == config.environment


def test_a_run_of_an_older_version_keeps_its_pictures(tmp_path):
    config = preset("merlin", "CartPole-v1")
    write_config(config, tmp_path)
    assert not load_config(tmp_path).environment.pictures_by_bounds
    values = to_dict(config)
    del values["environment"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    older = load_config(tmp_path)
    assert older.environment.pictures_by_bounds
    write_config(older, tmp_path)  # as resuming does
    assert load_config(tmp_path) == older

    class Picture(Sampled):
        observation_space = spaces.Box(-1, 1, (9, 9))

    with Environment(SyncVectorEnv([Picture]), config=older.environment) as environment:
        assert kind(environment.spaces["observation"]) == "image"
