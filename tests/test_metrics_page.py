"""docs/metrics.md defines what runs report, and nothing else."""

import json
import re
from pathlib import Path

import pytest

import merlin
from merlin.agents import AGENTS

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ENTRIES = ["image", "direction"]
MORE = {
    "merlin": [
        "model.expectation_cost=1",
        "model.policy_encoder=true",
        "model.policy_value_cost=0.5",
        "model.value_transport=0.9",
        "model.transport_min_steps=2",
    ],
    "rl-lstm": ["curriculum.argument=max_steps", "curriculum.values=5", "curriculum.until_steps=32"],
    "ftw": ["model.pixel_control_cost=0.03"],
    "dreamer": ["model.prefill_steps=16", "model.replay_ratio=1", "model.replay_windows=2"],
}


def defined(page: str = PAGE) -> set[str]:
    """Return the names in the first column of the page's tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def undefined(row: dict, entries: list[str], events: tuple[str, ...] = ()) -> set[str]:
    """Return the metrics of a report that the page does not define."""
    names, found = defined(), set()
    for name in row:
        general = [re.sub(rf"^{entry}(?=_)", "KEY", name) for entry in entries] + [re.sub(r"_\d\d$", "_NN", name)]
        general += [f"{name.removesuffix(event)}EVENT" for event in events if name.endswith(f"_{event}")]
        held_out = "evaluation_NAME" in names and name.removeprefix("evaluation_") in names
        found |= set() if names & {name, *general} or held_out else {name}
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The last report of a short run of each agent."""
    found = {}
    for agent in AGENTS:
        config = merlin.preset(agent, "merlin/Empty-v0", {"size": 5, "max_steps": 6})
        small = ["num_envs=4", "steps=96", "training.unroll_length=8", "training.evaluation_steps=48",
                 "training.evaluation_episodes=2", "training.report_steps=32"]  # fmt: skip
        path = tmp_path_factory.mktemp("metrics") / agent
        merlin.train(merlin.override(config, [*small, *MORE.get(agent, [])]), path)
        found[agent] = json.loads((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return found


def test_every_metric_of_every_agent_is_defined(rows):
    assert {agent: undefined(row, ENTRIES) for agent, row in rows.items()} == {agent: set() for agent in AGENTS}
    assert all("episode_return_mean" in row and "loss" in row for row in rows.values())


def test_nothing_is_defined_that_no_agent_reports(rows):
    alone = defined(PAGE.partition("## A population")[0])
    reported = {name for row in rows.values() for name in row}
    reported |= {re.sub(rf"^{entry}(?=_)", "KEY", name) for name in reported for entry in ENTRIES}
    assert alone - reported == {"evaluation_NAME"}


def test_a_metric_without_a_definition_would_be_seen():
    assert undefined({"env_steps": 1, "image_nats": 1, "nats_image": 1, "evaluation_episodes": 1}, ENTRIES) == {
        "nats_image"
    }
