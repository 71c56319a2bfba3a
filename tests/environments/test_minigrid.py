"""MiniGrid's views reach agents as symbols and its missions as words."""

import gymnasium
import pytest
import torch
from gymnasium import spaces

import tests.environments.examples  # noqa: F401 (registers test/...-v0)
from merlin.environments.batch import make_environment, spread_seed
from merlin.networks.spaces import kind


@pytest.mark.parametrize("view", [7, 3])
def test_minigrid_is_symbols(view):
    env_kwargs = {} if view == 7 else {"agent_view_size": 3}
    with make_environment("MiniGrid-MemoryS7-v0", 2, env_kwargs=env_kwargs) as environment:
        image = environment.spaces["image"]
        assert kind(image) == "symbols" and image.shape == (view, view, 3) and image.nvec[0, 0].tolist() == [11, 6, 4]
        alone = gymnasium.make("MiniGrid-MemoryS7-v0", **env_kwargs)
        expected, _ = alone.reset(seed=spread_seed(5, 2)[1])
        observation = environment.reset(5).observation
        assert observation["image"][1].tolist() == expected["image"].tolist()
        assert observation["direction"][1] == expected["direction"]
        assert environment.spaces.keys() == {"direction", "image"}  # the mission is always the same


def test_minigrid_success_is_reaching_the_goal():
    forward, right = 2, 1
    with make_environment("MiniGrid-LavaGapS5-v0", 1) as environment:  # the gap is somewhere, lava everywhere else
        environment.reset(0)
        timestep = environment.step(torch.tensor([forward]))
        while not timestep.terminated:
            timestep = environment.step(torch.tensor([forward]))
        assert timestep.success == 0 and timestep.reward == 0
    with make_environment("MiniGrid-Empty-5x5-v0", 2, env_kwargs={"max_steps": 5}) as environment:
        environment.reset(0)
        for action in (forward, forward, right, forward, forward):
            timestep = environment.step(torch.tensor([action, right]))
        assert timestep.success.tolist() == [1, 0]
        assert timestep.terminated.tolist() == [True, False] and timestep.truncated.tolist() == [True, True]
        assert environment.step(torch.tensor([right, right])).success.isnan().all()


def test_a_minigrid_that_is_drawn_is_a_picture():
    with make_environment("test/PictureMiniGrid-v0", 1) as environment:
        assert isinstance(environment.spaces["image"], spaces.Box) and environment.spaces["image"].shape == (7, 7, 3)


def test_the_words_of_missions_are_those_of_all_missions():
    with make_environment("MiniGrid-GoToDoor-5x5-v0", 5) as environment:
        mission = environment.spaces["mission"]
        colours = {"blue", "green", "grey", "purple", "red", "yellow"}
        assert mission.vocabulary == ("", *sorted({"go", "to", "the", "door"} | colours)) and mission.shape == (5,)
        observation = environment.reset(0).observation["mission"]
        texts = [" ".join(mission.vocabulary[index] for index in row) for row in observation]
    alone = gymnasium.make("MiniGrid-GoToDoor-5x5-v0")
    assert texts == [alone.reset(seed=seed)[0]["mission"] for seed in spread_seed(0, 5)]
