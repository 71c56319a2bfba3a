"""Every setting that is a number has a range, which the dataclass and the command line hold to."""

import math
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, Literal

import pytest
import torch

from merlin.agents import AGENTS
from merlin.errors import MerlinError
from merlin.memory import MemoryConfig
from merlin.ranges import Range, Settings, above
from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.runs.settings import from_dict, list_settings, override, to_dict
from merlin.training.evaluation import evaluate
from merlin.training.trainer import Trainer

SMALL = {
    "seed": 1, "steps": 1000, "num_envs": 3, "model.latent_size": 4, "model.hidden_size": 5, "model.num_layers": 1,
    "model.policy_hidden_size": 6, "model.memory_size": 7, "training.unroll_length": 4, "training.minibatches": 1,
    "model.encoder.grid_features": 5, "model.decoder.grid_features": 5, "model.replay_rows": 16,
    "model.replay_windows": 2, "model.prefill_steps": 0, "model.imagination_length": 2,
}  # fmt: skip
NUMBERS = ["nan", "inf", "-inf", "-1", "0", "0.5", "1e30", "-1e30", "9" * 30, "1", "true", "none", ""]


def small(agent):
    config = preset(agent, "merlin/MemoryGame-v0")
    known = {setting.path for setting in list_settings(config)}
    return override(config, [f"{path}={value}" for path, value in SMALL.items() if path in known])


CONFIGS = {agent: small(agent) for agent in AGENTS}
SETTINGS = [
    (agent, setting)
    for agent, config in CONFIGS.items()
    for setting in list_settings(config)
    if {"int", "float"} & set(setting.annotation.split(" | ")) and not setting.annotation.startswith("tuple")
]


def beside(setting):
    """Return what has to be set beside a setting."""
    if not setting.path.startswith("curriculum."):
        return []
    until = "until_steps=5" if setting.path.endswith("until_return") else "until_return=0"
    return ["curriculum.argument=pairs", "curriculum.values=2", f"curriculum.{until}"]


def names(value):
    return value.path if hasattr(value, "path") else str(value)


def each_once():
    """Return every setting with the first agent that has it."""
    return list({setting.path: (agent, setting) for agent, setting in reversed(SETTINGS)}.values())


@pytest.mark.parametrize(("agent", "setting"), SETTINGS, ids=names)
def test_every_number_is_held_to_its_range_and_refused_by_name(agent, setting):
    assert setting.range is not None, f"{setting.path} must have a range"
    for text in NUMBERS:
        try:
            config = override(CONFIGS[agent], [*beside(setting), f"{setting.path}={text}"])
        except MerlinError as error:
            assert str(error).startswith(f"{setting.path} must be ") and str(error).count(". ") == 0, error
            continue
        value = {x.path: x.value for x in list_settings(config)}[setting.path]
        assert value is None or (math.isfinite(value) and setting.range.holds(value)), (setting.path, text)
        assert from_dict(type(config), to_dict(config), {"model": type(config.model)}) == config


def ends():
    """Return every setting with its smallest number, and with the largest of a part of something."""
    for agent, setting in each_once():
        yield agent, setting, setting.range.low + 1e-6 * setting.range.is_above
        if setting.range.high <= 1:
            yield agent, setting, setting.range.high


@pytest.mark.parametrize(("agent", "setting", "number"), list(ends()), ids=names)
def test_the_ends_of_a_range_train_and_act(agent, setting, number):
    """They may not learn, but they must not fail: else the range is too wide."""
    config = override(CONFIGS[agent], [*beside(setting), f"{setting.path}={number}"])
    if setting.path == "model.replay_rows":  # a replay of one window, of one row
        config = override(config, ["model.replay_windows=1", "training.unroll_length=1"])
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, config.training, total_steps=100, seed=1)
        losses, _ = trainer.update()
        trainer.update()
        evaluate(trainer.agent, environment, episodes=1, seed=1, max_steps=2)
    # Of an entry that did not change there is nothing to explain.
    assert all(x.isfinite() for name, x in losses.items() if not name.endswith("_explained"))


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    share: Annotated[float, Range(0, 1)] = 0.5
    rate: Annotated[float | None, above(0, 10)] = None
    sizes: Annotated[tuple[int, ...], Range(1, 2000)] = (8,)
    how: Literal["fast", "slow"] = "fast"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"share": 1.5}, "share must be from 0 to 1, but is 1.5: take another."),
        ({"share": None}, "share must be from 0 to 1, but is None: take another."),
        ({"share": "a"}, "share must be from 0 to 1, but is 'a': take another."),
        ({"share": math.nan}, "share must be from 0 to 1, but is nan: take another."),
        ({"rate": 0}, "rate must be above 0 and at most 10, or none, but is 0: take another."),
        ({"sizes": (8, 0)}, "sizes must be a whole number from 1 to 2,000, but is 0: take another."),
        ({"sizes": (True,)}, "sizes must be a whole number from 1 to 2,000, but is True: take another."),
        ({"how": "so"}, "how must be one of fast, slow, but is 'so': take one."),
    ],
)
@pytest.mark.parametrize("make", [Example, lambda **values: replace(Example(), **values)])
def test_a_dataclass_refuses_what_is_out_of_range(make, values, sentence):
    with pytest.raises(ValueError) as error:
        make(**values)
    assert isinstance(error.value, MerlinError) and str(error.value) == sentence


def test_what_is_in_range_is_taken_at_both_ends():
    for share in (0, 1, 0.0, torch.tensor(0.5).item()):
        assert Example(share=share).share == share
    assert Example(rate=10).rate == 10 and Example(sizes=(1, 2000)).sizes == (1, 2000)
    assert Example(sizes=()).sizes == ()


def test_settings_that_depend_on_one_another_come_in_any_order():
    with pytest.raises(MerlinError, match="top_k must be at most memory_size, which is 4, but is 5: lower it"):
        MemoryConfig(memory_size=4, top_k=5)
    for assignments in (["memory_size=4", "top_k=4"], ["top_k=4", "memory_size=4"]):
        config = override(CONFIGS["merlin"], [f"model.{assignment}" for assignment in assignments])
        assert (config.model.top_k, config.model.memory_size) == (4, 4)
    with pytest.raises(MerlinError, match=r"^model\.top_k must be at most memory_size"):
        override(CONFIGS["merlin"], ["model.top_k=8"])
    assert override(CONFIGS["merlin"], ["training.minibatches=5", "num_envs=5"]).training.minibatches == 5
    with pytest.raises(MerlinError, match=r"^training\.minibatches must be at most num_envs, 3, .* but is 5: lower it"):
        override(CONFIGS["merlin"], ["training.minibatches=5"])


def test_every_group_of_settings_holds_to_its_ranges():
    def groups(config):
        yield type(config)
        for name in vars(config):
            if is_dataclass(value := getattr(config, name)):
                yield from groups(value)

    for config in CONFIGS.values():
        for group in groups(config):
            assert issubclass(group, Settings), f"{group.__name__} must be Settings, to hold to its ranges"
