"""The trained agents of `examples/trained` load, and score what their cards say."""

import math
import re
from pathlib import Path

import pytest

import merlin

TRAINED = Path(__file__).parents[1] / "examples" / "trained"
EPISODES = 24


@pytest.mark.parametrize("folder", sorted(path.parent for path in TRAINED.glob("*/config.json")), ids=lambda x: x.name)
def test_a_trained_agent_scores_what_its_card_says(folder):
    card = (folder / "README.md").read_text()
    mean, std = (float(re.search(rf"episode return {name} \| (\S+) \|", card)[1]) for name in ("mean", "std"))
    found = merlin.load(folder).evaluate(episodes=EPISODES, seed=5)["episode_return_mean"]
    assert abs(found - mean) < 4 * max(std, 0.02) / math.sqrt(EPISODES)


def test_all_that_the_script_trains_are_there(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from trained_agents import AGENTS

    assert {path.parent.name for path in TRAINED.glob("*/config.json")} == set(AGENTS)
