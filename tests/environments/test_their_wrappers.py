"""Gymnasium's wrappers around our tasks: each is tried, and docs/wrappers.md says what came of it."""

import re
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import vector

import merlin  # noqa: F401 (registers the tasks)

PAGE = Path(__file__).parents[2] / "docs" / "wrappers.md"
TASK = {"length": 3, "render_mode": "rgb_array"}
HALF = Box(0.0, 0.5, (4,), np.float32)
EACH = {  # arguments beside the environment; {} where there are none
    "AddRenderObservation": {}, "Autoreset": {}, "ClipReward": {"min_reward": -0.5}, "DelayObservation": {"delay": 1},
    "DiscretizeObservation": {"bins": 3}, "DtypeObservation": {"dtype": np.float64}, "FlattenObservation": {},
    "FrameStackObservation": {"stack_size": 2}, "MaxAndSkipObservation": {"skip": 2}, "NormalizeObservation": {},
    "NormalizeReward": {}, "OrderEnforcing": {}, "PassiveEnvChecker": {}, "RecordEpisodeStatistics": {},
    "RenderCollection": {}, "RepeatAction": {"num_repeats": 2},
    "RescaleObservation": {"min_obs": np.float32(-1), "max_obs": np.float32(1)},
    "ReshapeObservation": {"shape": (2, 2)}, "StickyAction": {"repeat_action_probability": 0.1},
    "TimeAwareObservation": {}, "TimeLimit": {"max_episode_steps": 4},
    "TransformAction": {"func": lambda action: action, "action_space": Discrete(3)},
    "TransformObservation": {"func": lambda x: x / 2, "observation_space": HALF},
    "TransformReward": {"func": lambda reward: reward / 2},
}  # fmt: skip
BATCH = {
    "ClipReward": {"min_reward": -0.5}, "DictInfoToList": {}, "DtypeObservation": {"dtype": np.float64},
    "FlattenObservation": {}, "NormalizeObservation": {}, "NormalizeReward": {}, "RecordEpisodeStatistics": {},
    "RescaleObservation": {"min_obs": np.float32(-1), "max_obs": np.float32(1)},
    "ReshapeObservation": {"shape": (2, 2)}, "TransformAction": {"func": lambda actions: actions},
    "TransformObservation": {"func": lambda x: x / 2, "single_observation_space": HALF},
    "TransformReward": {"func": lambda reward: reward / 2},
    "VectorizeTransformAction": {"wrapper": wrappers.TransformAction, "func": lambda x: x, "action_space": Discrete(3)},
    "VectorizeTransformObservation": {"wrapper": wrappers.TransformObservation, "func": lambda x: x / 2,
                                      "observation_space": HALF},
    "VectorizeTransformReward": {"wrapper": wrappers.TransformReward, "func": lambda x: x / 2},
}  # fmt: skip
OTHERS = {
    "AddWhiteNoise", "AtariPreprocessing", "GrayscaleObservation", "ObstructView", "ResizeObservation",  # of pictures
    "ClipAction", "DiscretizeAction", "RescaleAction",  # of Box actions
    "FilterObservation",  # of Dict observations
    "HumanRendering", "RecordVideo",  # of a screen or a file
    "ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch",  # of other packages
}  # fmt: skip
COLUMNS = ["one", "tensors", "arrays", "arrays, next step"]


def classes(module, arguments):
    for name in sorted(module.__all__):
        if name not in OTHERS and name != "vector":
            yield name, getattr(module, name), arguments[name]


def outcome(make, wrapper, arguments):
    """Return whether a wrapper works around an environment: constructed, reset and stepped, inside its spaces."""
    env = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = wrapper(make(), **arguments)
            observation, _ = env.reset(seed=0)
            for _ in range(12):
                if isinstance(observation, np.ndarray | dict) and not env.observation_space.contains(observation):
                    return False
                action = env.action_space.sample()
                if getattr(env, "metadata", {}).get("tensors"):
                    action = torch.as_tensor(action)
                observation, _, terminated, truncated, _ = env.step(action)
                over = np.asarray(terminated) | np.asarray(truncated)
                if over.ndim == 0 and over and wrapper is not wrappers.Autoreset:
                    observation, _ = env.reset()
    except Exception:
        return False
    return True


def batch(**options):
    return lambda: gymnasium.make_vec(
        "merlin/TMaze-v0", num_envs=3, vectorization_mode="vector_entry_point", **TASK, **options
    )


def tried():
    """Return {wrapper: [outcome in each column]}, None where there is no such wrapper."""
    found = {}
    for name, wrapper, arguments in classes(wrappers, EACH):
        found[name] = [outcome(lambda: gymnasium.make("merlin/TMaze-v0", **TASK), wrapper, arguments), None, None, None]
    for name, wrapper, arguments in classes(vector, BATCH):
        row = found.setdefault(name, [None] * 4)
        kinds = ({}, {"arrays": "numpy"}, {"arrays": "numpy", "autoreset_mode": "NEXT_STEP"})
        row[1:] = [outcome(batch(**kind), wrapper, arguments) for kind in kinds]
    return found


def table(found):
    signs = {True: "yes", False: "no", None: ""}
    head = [f"| wrapper | {' | '.join(COLUMNS)} |", "|---" * 5 + "|"]
    return "\n".join([*head, *(f"| `{name}` | {' | '.join(map(signs.get, row))} |" for name, row in found.items())])


@pytest.mark.skipif(not gymnasium.__version__.startswith("1.4."), reason="the page is of gymnasium 1.4")
def test_the_page_says_what_works():
    shown = re.search(r"\| wrapper \|.*?(?=\n\n)", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None and shown.group() == table(tried())


@pytest.mark.parametrize("module, arguments", [(wrappers, EACH), (vector, BATCH)], ids=["one", "batch"])
@pytest.mark.skipif(not gymnasium.__version__.startswith("1.4."), reason="the page is of gymnasium 1.4")
def test_every_wrapper_of_gymnasium_is_tried_or_of_another_kind(module, arguments):
    assert set(module.__all__) - OTHERS - {"vector"} == set(arguments)


if __name__ == "__main__":
    print(table(tried()))
