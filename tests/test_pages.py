"""The site: pages that are written from the code are current, and navigation and API name everything."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import merlin
from merlin import tasks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
FROM_ELSEWHERE = {"overview.md", "contributing.md", "changelog.md"}
"""Pages that the site takes from outside docs/; see .ci/site.py."""


@pytest.fixture
def pages(monkeypatch):
    """benchmarks/pages.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("pages")
    for name in ("pages", "gallery"):
        sys.modules.pop(name, None)


def test_what_comes_from_the_code_is_current(pages):
    written = pages.written()
    assert {path.name for path in written} >= {"merlin.md", "rl_mem.md", "rl_lstm.md", "dreamer.md", "ftw.md"}
    stale = [path.name for path, text in written.items() if not path.exists() or path.read_text("utf-8") != text]
    assert stale == [], "run: python benchmarks/pages.py"


def test_cards_have_the_pictures_of_their_tasks(pages):
    for task_id in tasks.TASKS:
        with Image.open(DOCS / "tasks" / f"{pages.card_name(task_id)}.png") as image:
            shown, drawn = np.asarray(image.convert("RGB"), np.float32), pages.drawn(task_id)
        assert shown.shape == drawn.shape, task_id
        assert np.abs(shown - drawn).mean() < 2, task_id  # fonts may differ


def test_there_are_cards_of_tasks_alone(pages):
    names = {pages.card_name(task_id) for task_id in tasks.TASKS}
    assert {path.stem for path in (DOCS / "tasks").iterdir()} == names
    assert all(pages.scores(task_id) for task_id in tasks.TASKS)


def test_differences_and_equations_are_told_apart(pages):
    doc = "One:\n\n    a = b\n\nSecond.\n\nDifferences from the paper, all told:\n\n1. One.\n2. Two.\n\nArgs:\n    x: X"
    assert pages.to_markdown(doc) == "One:\n\n```text\na = b\n```\n\nSecond."
    assert pages.differences(doc) == "All told:\n\n1. One.\n2. Two."
    assert pages.differences("Short. Difference from the paper: the size.") == "The size."


def test_navigation_has_every_page_once():
    listed = re.findall(r": ([\w/]+\.md)$", SITE, re.MULTILINE)
    there = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted([*there, *FROM_ELSEWHERE])


def test_the_api_page_has_every_public_name():
    named = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {merlin._MODULE_OF[name] + "." + name for name in merlin.__all__ if name != "__version__"}
    memory = importlib.import_module("merlin.memory")
    public |= {f"{getattr(memory, name).__module__}.{name}" for name in memory.__all__ if name != "EPSILON"}
    public = {_defined_in(name) for name in public}
    assert public <= {_defined_in(name) for name in named}
    assert len(named) == len(set(named))


def _defined_in(name: str) -> str:
    """Return the module and the name that an object was defined by; of a plain value, the name as it is."""
    try:
        importlib.import_module(name)
        return name
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        return f"{getattr(value, '__module__', module)}.{attribute}" if callable(value) else name
