"""`merlin.load`: a trained agent that plays any loop, arrays in and arrays out, also without its environment."""

import inspect
import io
import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import merlin
from merlin.environments.make import find_spec
from merlin.errors import MerlinError
from merlin.runs.agent_spaces import read_spaces
from merlin.runs.run import load_agent, load_config

SIZES = ["model.memory_size=5", "model.hidden_size=7", "training.unroll_length=4"]


class Told(gymnasium.Env):
    """Says a word and shows a number; acts by a Box with bounds of its own."""

    def __init__(self, high: float = 0.5) -> None:
        self.observation_space = spaces.Dict({"say": spaces.Text(4, charset="ab"), "see": spaces.Box(-1, 1, (2,))})
        self.action_space = spaces.Box(np.array([-0.5, 0.0]), high, dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        return self.observation_space.sample(), 0.5, self.count == 3, False, {}


gymnasium.register("test/Told-v0", Told)


def trained(directory: Path, task: str, agent: str = "rl-mem", steps: int = 8, **changes) -> Path:
    settings = ["training.minibatches=1", "num_envs=2", "model.box_actions=gaussian"]
    config = merlin.override(merlin.preset(agent, task), settings)
    config = replace(config, task=task, steps=steps, device="cpu", **changes)
    sizes = SIZES if agent != "rl-lstm" else SIZES[1:]
    merlin.train(merlin.override(config, sizes), directory / "run", stream=io.StringIO())
    return directory / "run"


def seen(card):
    return {"card": card, "position": card}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("told"), "test/Told-v0")


@pytest.fixture(scope="module")
def memory_game(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("game"), "merlin/MemoryGame-v0", "merlin")


def test_one_environment_is_played_as_it_is(told):
    env = gymnasium.make("test/Told-v0")
    player = merlin.load(told)
    for episode in range(2):
        observation, _ = env.reset(seed=episode)
        player.reset()
        reward, is_over = None, False
        while not is_over:
            action = player.act(observation, reward)
            assert env.action_space.contains(action) and isinstance(action, np.ndarray)
            observation, reward, terminated, truncated, _ = env.step(action)
            is_over = terminated or truncated


def test_actions_outside_their_bounds_are_brought_inside(told):
    """A Gaussian of half a range of standard deviation leaves the bounds often."""
    player = merlin.load(told)
    player.reset(64, seed=1)
    observation = {"say": ["ab"] * 64, "see": np.zeros((64, 2), np.float32)}
    actions = player.act(observation)
    assert actions.shape == (64, 2) and actions.dtype == np.float64
    assert all(player.action_space.contains(action) for action in actions)
    assert (actions == player.action_space.high).any() and (actions == player.action_space.low).any()


def test_a_player_acts_as_the_agent_does(memory_game):
    """The same numbers as `Agent.step` with the state carried by hand, resets of rows included."""
    config = load_config(memory_game)
    with merlin.build_environment(config, 3) as environment:
        agent = load_agent(memory_game, environment, config, "last")
        player = merlin.load(memory_game, "last", "cpu")
        player.reset(3, seed=7)
        generator = torch.Generator().manual_seed(7)
        timestep, state = environment.reset(0), agent.initial_state(3)
        for t in range(30):
            seen = timestep.observation, state, timestep.is_first, timestep.reward
            output, state = agent.step(*seen, generator=generator)
            arrays = {name: x.numpy() for name, x in timestep.observation.items()}
            more = (timestep.reward.numpy(), timestep.is_first.numpy()) if t else ()
            assert np.array_equal(player.act(arrays, *more), output.action.numpy())
            timestep = environment.step(output.action)
        assert timestep is not None and t > 12, "an episode has ended"


def test_a_deterministic_player_repeats_itself(memory_game):
    found = []
    for seed in (1, 2):
        player = merlin.load(memory_game)
        player.reset(seed=seed)
        found.append([player.act(seen(3), 0.0, deterministic=True) for _ in range(5)])
        assert all(player.action_space.contains(action) for action in found[-1])
    assert found[0] == found[1]


def test_a_reset_forgets(memory_game):
    player = merlin.load(memory_game)
    player.reset()
    first = [player.act(seen(card), 0.0, deterministic=True) for card in (1, 2, 3)]
    values = player._state
    player.reset()
    assert [player.act(seen(card), 0.0, deterministic=True) for card in (1, 2, 3)] == first
    for x, y in zip(player._state.policy, values.policy, strict=True):
        assert torch.equal(x, y)


def test_a_late_or_missing_reset_is_told(memory_game):
    player = merlin.load(memory_game)
    with pytest.raises(MerlinError, match="must be reset before it acts"):
        player.act(seen(1))
    player.reset()
    with pytest.raises(MerlinError, match="first observation after a reset starts an episode"):
        player.act(seen(1), 0.0, False)
    player.act(seen(1))
    with pytest.raises(MerlinError, match="the reward is missing"):
        player.act(seen(1))
    with pytest.raises(MerlinError, match="as many environments as the state, 1, but is of 2"):
        player.act(seen([1, 2]), 0.0)
    player.act(seen(1), 0.0, True)  # a reset by the flag, where one environment resets itself
    player.reset(2)
    player.act(seen([1, 2]))
    with pytest.raises(MerlinError, match="must say which rows start an episode"):
        player.act(seen([1, 2]), [0.0, 0.0])
    player.act(seen([1, 2]), [0.0, 0.0], [False, True])
    player.reset(1)
    with pytest.raises(MerlinError, match="these are of one environment: call"):
        player.act(seen(1))
    player.act(seen([1]))


@pytest.mark.parametrize(
    "method, name, value",
    [
        ("reset", "num_envs", 0),
        ("reset", "num_envs", 2.0),
        ("reset", "seed", -1),
        ("evaluate", "episodes", 0),
        ("evaluate", "num_envs", 0),
        ("evaluate", "max_steps", -3),
        ("evaluate", "seed", -5),
        ("evaluate", "seed", 2**31),
        ("save", "episodes", -1),
    ],
)
def test_numbers_out_of_range_are_told(told, tmp_path, method, name, value):
    function = inspect.unwrap(getattr(merlin.LoadedAgent, method))  # or its type would be what is told
    arguments = [tmp_path / "folder"] if method == "save" else []
    with pytest.raises(MerlinError, match=f"^{name} must be a whole number from .*, but is {value}"):
        function(merlin.load(told), *arguments, **{name: value})


def test_evaluating_leaves_pytorch_as_it_was(told):
    torch.set_num_threads(2)
    try:
        assert merlin.load(told).evaluate(episodes=1)["episodes"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_mask_goes_beside_the_observation():
    agent = merlin.RLLSTM({"observation": spaces.Discrete(2)}, spaces.Discrete(3), merlin.RLLSTMConfig())
    player = merlin.LoadedAgent(agent)
    player.reset()
    for choice, mask in enumerate(np.eye(3, dtype=np.int8)):
        assert player.act({"observation": 1, "action_mask": mask}, 0.0) == choice
    player.reset(3)
    assert player.act({"observation": [0, 1, 0], "action_mask": np.eye(3)}).tolist() == [0, 1, 2]


def test_whole_numbers_beside_a_box_are_exact():
    """Of a Tuple all numbers are one row, and float32 has no whole number between 2**26 and 2**26 + 8."""
    first = 2**26 + 1
    space = spaces.Tuple([spaces.Discrete(3, start=first), spaces.Box(-1, 1, (1,))])
    player = merlin.LoadedAgent(merlin.RLLSTM({"observation": spaces.Discrete(2)}, space, merlin.RLLSTMConfig()))
    player.reset()
    single = [player.act(0, 0.0)[0] for _ in range(50)]
    player.reset(50)
    for numbers in (single, player.act(np.zeros(50, int))[0].tolist()):
        assert set(numbers) == {first, first + 1, first + 2}


def test_texts_are_those_that_the_agent_knows(told):
    player = merlin.load(told)
    player.reset()
    with pytest.raises(MerlinError, match=r"A text must be of the words that the agent was trained on, but .*'c'"):
        player.act({"say": "abc", "see": np.zeros(2)})


def test_a_run_is_played_where_its_environment_is_not_installed(told, monkeypatch):
    monkeypatch.delitem(gymnasium.registry, "test/Told-v0")
    player = merlin.load(told)
    player.reset()
    assert player.action_space.contains(player.act({"say": "ab", "see": np.zeros(2)}))


def test_a_run_without_spaces_asks_its_environment(told, tmp_path):
    values = json.loads((told / "config.json").read_text())
    kept = values.pop("spaces")
    assert list(kept) == ["observation", "action", "action_masks"] and kept["action_masks"] is False
    assert list(kept["observation"]) == ["say", "see"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "checkpoints").symlink_to(told / "checkpoints")
    (old / "config.json").write_text(json.dumps(values))
    assert load_config(old) == load_config(told) and read_spaces(old) is None
    assert merlin.load(old).spaces == merlin.load(told).spaces
    values["spaces"] = {"observation": {}}
    (old / "config.json").write_text(json.dumps(values))
    with pytest.raises(MerlinError, match="must hold the spaces that train wrote"):
        merlin.load(old)


def test_an_environment_whose_spaces_changed_is_told(told):
    config = replace(load_config(told), env_kwargs={"high": 0.75})
    with merlin.build_environment(config, 1) as environment:
        with pytest.raises(MerlinError, match=r"test/Told-v0 must have the spaces that .* differs in the action space"):
            load_agent(told, environment, config)
    with pytest.raises(MerlinError, match="A run goes on as it began, so env_kwargs must be"):
        merlin.train(config, told, resume=True, stream=io.StringIO())


def test_missions_are_taken_as_they_are(tmp_path):
    run_dir = trained(tmp_path, "MiniGrid-Fetch-5x5-N2-v0", "rl-lstm")
    env, player = gymnasium.make(find_spec("MiniGrid-Fetch-5x5-N2-v0")), merlin.load(run_dir)
    observation, _ = env.reset(seed=1)
    assert isinstance(observation["mission"], str)
    player.reset()
    action = player.act(observation)
    observation, reward, *_ = env.step(action)
    player.act(observation, reward)
    with merlin.build_environment(load_config(run_dir), 1) as environment:
        assert environment.spaces == player.spaces


def test_checkpoints_are_best_or_last(told):
    with pytest.raises(MerlinError, match="must be best or last, but is 'first'"):
        merlin.load(told, "first")
