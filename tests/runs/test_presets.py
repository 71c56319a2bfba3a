"""Presets: every family is a whole table for every agent, and a name that means nothing is refused."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

import merlin
from merlin import presets as old_name
from merlin import tasks
from merlin.agents import AGENTS, Agent
from merlin.agents.merlin import Merlin, MerlinConfig
from merlin.environments.sight import Sight
from merlin.errors import MerlinError
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.runs import presets
from merlin.runs.presets import FAMILIES, dreamer, family_of, ftw, general, paper, paper_values, preset, recommended
from merlin.runs.run import load_config, write_config
from merlin.runs.settings import list_settings, to_dict

GAME, MAZE, MEMORY = "merlin/MemoryGame-v0", "merlin/TMaze-v0", "merlin/Memory-v0"
VARIANTS = [
    ("memory-game", GAME, {}),
    ("memory-game", GAME, {"pairs": 4}),
    ("memory-game", GAME, {"pairs": 8}),
    ("memory-game", GAME, {"pairs": 8, "view": "picture"}),
    ("tmaze", MAZE, {}),
    ("tmaze", MAZE, {"length": 200}),
    ("symbols", "merlin/RepeatPrevious-v0", {}),
    ("symbols", "merlin/Playback-v0", {"length": 20}),
    ("symbols", "merlin/VisuomotorMapping-v0", {}),
    ("minigrid-memory", MEMORY, {}),
    ("minigrid-memory", MEMORY, {"size": 17}),
    ("minigrid-memory", "MiniGrid-MemoryS7-v0", {}),
    ("minigrid-memory", "minigrid:MiniGrid-MemoryS17Random-v0", {}),
    ("matching", "merlin/LatentLearning-v0", {}),
    ("matching", "merlin/TransientInstruction-v0", {}),
    ("capture-the-flag", "merlin/CaptureTheFlag-v0", {"size": 9}),
    ("grid-world", "merlin/Maze-v0", {"size": 9}),
    ("general", "CartPole-v1", {}),
    ("general", "my.tasks:Mine-v0", {}),
]


def values(config) -> dict:
    return {setting.path: setting.value for setting in list_settings(config)}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(("name", "task", "env_kwargs"), VARIANTS)
def test_a_task_is_trained_as_its_family_is(agent, name, task, env_kwargs):
    assert family_of(task) == name
    config = preset(agent, task, env_kwargs)
    assert (config.agent, config.task, config.env_kwargs, config.preset) == (agent, task, env_kwargs, name)
    assert config == preset(agent, task, env_kwargs, name=name)
    assert type(config.model) is AGENTS[agent].config_class


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_has_a_block_for_each_agent_and_no_row_that_says_nothing(name):
    """A row whose value is the default for each task and setting of the family says nothing; the paper's do."""
    variants = [(task, kwargs) for family, task, kwargs in VARIANTS if family == name] or [(GAME, {}), (MAZE, {})]
    sights = [Sight(frozenset({"vector"}), False, *speed) for speed in ((True, 0.0), (False, 1e-5), (False, 0.1))]
    of_name = FAMILIES[name].table
    tables = [general.table(sight) for sight in sights] if of_name is None else [of_name(*x) for x in variants]
    of_dreamer = [dreamer.table(family, is_continuous) for family in FAMILIES for is_continuous in (False, True)]
    of_ftw = [ftw.table(name, kwargs) for _, kwargs in variants]
    ours = [{"dreamer": x, "ftw": y} for x in of_dreamer for y in of_ftw]
    tables = [table | of for of in ours for table in tables]
    for agent, entry in AGENTS.items():
        assert name == "general" or all(table[agent].keys() == tables[0][agent].keys() for table in tables)
        training = presets.TrainingConfig()
        default = to_dict(presets.RunConfig(model=entry.config_class(), training=training))
        for path in tables[0][agent] if name != "paper" else ():
            of_default = default
            for part in path.split("."):
                of_default = of_default[part]
            assert any(table[agent][path] != of_default for table in tables), f"{name}, {agent}: {path}"


@pytest.mark.parametrize("agent", ["merlin", "rl-mem", "rl-lstm"])
def test_sizes_follow_the_task(agent):
    """An episode of the memory game has a slot for each flip, and a long corridor takes more of everything."""
    for pairs in (2, 3, 6):
        assert getattr(preset(agent, GAME, {"pairs": pairs}).model, "memory_size", 3 * pairs) == 3 * pairs
    for length, num_envs, steps in ((10, 64, 412_000), (50, 64, 700_000), (200, 256, 5_200_000)):
        config = preset(agent, MAZE, {"length": length})
        assert (config.num_envs, config.steps) == (num_envs, steps)
        assert getattr(config.model, "memory_size", min(length + 16, 64)) == min(length + 16, 64)


@pytest.mark.parametrize(
    ("task", "env_kwargs", "rate"),
    [
        (MEMORY, {}, 1e-3),
        (MEMORY, {"size": 9, "agent_view_size": 3}, 3e-4),
        ("MiniGrid-MemoryS7-v0", {}, 1e-3),
        ("minigrid:MiniGrid-MemoryS17Random-v0", {}, 3e-4),
    ],
)
def test_the_policy_takes_small_steps_where_the_cue_is_seldom_seen(task, env_kwargs, rate):
    assert preset("merlin", task, env_kwargs).training.policy_learning_rate == rate
    assert preset("rl-mem", task, env_kwargs).training.policy_learning_rate is None


def test_where_reward_is_to_be_found_again_merlin_asks_for_it():
    asking = {task for task in tasks.TASKS if preset("merlin", task).model.policy_reward_keys}
    assert asking == {"merlin/WaterMaze-v0", "merlin/RewardValuation-v0"}


@pytest.mark.parametrize("agent", ["merlin", "rl-mem", "rl-lstm"])
def test_entropy_falls_slowly_where_choosing_is_learnt_late(agent):
    for name in ("RewardValuation", "TransientInstruction"):
        config = preset(agent, f"merlin/{name}-v0")
        assert (config.model.entropy_cost, config.training.final_entropy_fraction) == (0.06, 0.1)
    assert config.steps >= 10_000_000, "within a million steps nobody leaves a guess"
    assert preset(agent, "merlin/WaterMaze-v0").training.final_entropy_fraction == 1


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("model.kl_reference_natss", "unknown setting 'kl_reference_natss': did you mean 'kl_reference_nats'?"),
        ("model.decoder.grid_feature", "unknown setting 'grid_feature': did you mean 'grid_features'?"),
        ("training.unrol_length", "unknown setting 'unrol_length': did you mean 'unroll_length'?"),
        ("num_env", "unknown setting 'num_env': did you mean 'num_envs'?"),
    ],
)
def test_a_misspelt_name_in_a_table_is_an_error(monkeypatch, path, sentence):
    monkeypatch.setitem(FAMILIES, "tmaze", presets.Family((MAZE,), lambda *_: {"merlin": {path: 3}}))
    with pytest.raises(MerlinError, match="The preset 'tmaze' does not fit the agent 'merlin'") as error:
        preset("merlin", MAZE)
    assert sentence in str(error.value)


def test_a_name_that_another_agent_has_is_an_error_too(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tmaze", presets.Family((MAZE,), lambda *_: {"rl-lstm": {"model.memory_size": 3}}))
    with pytest.raises(MerlinError, match="unknown setting 'memory_size'"):
        preset("rl-lstm", MAZE)


def test_any_preset_can_be_taken_for_any_task():
    for name in FAMILIES:
        for agent in AGENTS:
            for task in tasks.TASKS:
                assert preset(agent, task, name=name).preset == name
    of_maze, of_grids = preset("merlin", MAZE, name="grid-world"), preset("merlin", "merlin/Maze-v0")
    assert (of_maze.model, of_maze.training, of_maze.steps) == (of_grids.model, of_grids.training, of_grids.steps)
    with pytest.raises(MerlinError, match=r"'grid-wrld' came: did you mean 'grid-world'\?"):
        preset(name="grid-wrld")
    with pytest.raises(MerlinError, match=r"one of merlin, .*but is 'merlyn': did you mean 'merlin'\?"):
        preset("merlyn")


def test_the_paper_has_its_sizes_and_costs():
    config = preset("merlin", "merlin/GoalMaze-v0", name="paper")
    model, training = config.model, config.training
    assert (model.latent_size, model.hidden_size, model.num_layers, model.memory_size) == (200, 256, 2, 1350)
    assert (model.num_read_keys, model.policy_num_read_keys, model.kl_cost) == (3, 1, 1.0)
    assert (model.discount_factor, model.gae_lambda, model.entropy_cost) == (0.96, 0.9, 0.01)
    assert (training.unroll_length, training.learning_rate) == (20, 1e-4)
    config = preset("merlin", GAME, {"pairs": 8, "view": "picture"}, name="paper")
    model, training = config.model, config.training
    assert (model.latent_size, model.hidden_size, model.memory_size, training.unroll_length) == (100, 150, 40, 24)
    assert (model.discount_factor, model.gae_lambda, model.return_cost) == (1.0, 0.8, 1 / 24)
    assert preset("rl-mem", "CartPole-v1", name="paper").model.memory_size == 1350
    of_dreamer = preset("dreamer", "merlin/Empty-v0", name="paper").model
    assert (of_dreamer.latent_groups, of_dreamer.latent_classes, of_dreamer.kl_cost) == (32, 32, 0.1)
    assert of_dreamer.decoder.image_likelihood == "gaussian"
    assert (of_dreamer.reinforce_fraction, of_dreamer.entropy_cost) == (1, 1e-3)
    of_numbers = preset("dreamer", "Pendulum-v1", name="paper").model
    assert (of_numbers.reinforce_fraction, of_numbers.entropy_cost) == (0, 1e-4)


def test_values_of_the_paper_are_those_that_are_not_ours():
    for task in (GAME, MAZE):
        stated = paper_values("merlin", task, {})
        assert stated["model.kl_cost"] == (1.0, paper.PAPER)
        assert stated["model.memory_size"] == (40 if task == GAME else 1350, paper.SECOND_HAND)
        assert ("model.return_cost" in stated) == (task == GAME)  # swept elsewhere
        config = values(preset("merlin", task, name="paper"))
        assert all(config[path] == value for path, (value, _) in stated.items())
        assert paper_values("dreamer", task, {}) == paper_values("ftw", task, {}) == {}  # agents of other papers
    assert "`--env-kwargs" in paper.__doc__ and all(x.upper().replace("-", "_") in paper.__doc__ for x in (
        paper.PAPER, paper.SECOND_HAND, paper.OURS
    ))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OwnConfig(ActorCriticConfig):
    memory_size: int = 7
    encoder: int = 3


@dataclass(frozen=True, kw_only=True)
class WiderConfig(MerlinConfig):
    width: int = 1


class Wider(Merlin):
    config_class = WiderConfig


class Own(Merlin):
    config_class = OwnConfig


def test_an_agent_of_ones_own_starts_from_what_its_family_says_of_the_nearest_one():
    """From MERLIN's table, whose configuration it extends, or from RL-MEM's, as far as it has such fields."""
    ours, wider = preset("merlin", GAME).model, preset(f"{__name__}:Wider", GAME).model
    assert type(wider) is WiderConfig and wider == WiderConfig(
        **{field.name: getattr(ours, field.name) for field in dataclasses.fields(ours)}
    )
    config, own = preset("rl-mem", GAME), preset(f"{__name__}:Own", GAME)
    assert (own.training, own.steps) == (config.training, config.steps)
    assert own.model == OwnConfig(memory_size=9, entropy_cost=0.02, return_cost=0.5)
    assert not any(path.startswith("model.encoder") for path in recommended(f"{__name__}:Own", GAME, {}, "paper"))


def test_the_name_is_recorded_and_runs_of_before_load(tmp_path):
    config = preset("rl-lstm", MAZE, name="grid-world")
    write_config(config, tmp_path)
    assert load_config(tmp_path).preset == "grid-world" and load_config(tmp_path) == config
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert recorded["version"] == merlin.__version__  # a record only, as the name is
    del recorded["preset"], recorded["version"]
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    assert load_config(tmp_path).preset == "" and load_config(tmp_path) == config


def test_the_old_name_of_the_module_still_works():
    assert old_name.preset is preset and issubclass(Wider, Agent)


@pytest.mark.parametrize("pairs", [-2, 0])
def test_what_the_task_refuses_is_told_in_its_words(pairs):
    """Rather than what the preset's table makes of it."""
    with pytest.raises(MerlinError, match=rf"cannot be built with .*pairs must be at least 2, but is {pairs}"):
        preset("merlin", GAME, {"pairs": pairs})
