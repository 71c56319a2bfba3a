"""The examples run, and are short; what the README prints works."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from merlin.cli import parse_arguments

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load(name: str):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_train_from_python(tmp_path, capsys):
    load("train_from_python").main(2_000, str(tmp_path / "run"))
    assert "of 2.00 with perfect memory" in capsys.readouterr().out


def test_write_your_own_task(tmp_path):
    assert 0 <= load("write_your_own_task").main(2_000, str(tmp_path / "run")) <= 1


def test_memory_alone_learns_what_a_guess_cannot():
    assert load("memory_alone").main(150) > 0.9


def test_predictor_in_your_agent():
    assert 0 <= load("predictor_in_your_agent").main(4) <= 1


def test_watch_an_episode(tmp_path, capsys):
    out = load("watch_an_episode").main(out=tmp_path / "episode.gif", steps=2_000)
    assert out.stat().st_size > 1_000 and "step 9" in capsys.readouterr().out


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_of_the_readme_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    return [line.partition("  #")[0] for block in blocks for line in block.splitlines() if line.startswith("merlin ")]


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_readme_are_understood(command):
    arguments = shlex.split(command)[1:]
    assert parse_arguments(arguments).command == arguments[0]


def test_readme_has_its_two_commands():
    assert "pip install . && merlin train" in README and "pip install '.[test]' && pytest" in README
