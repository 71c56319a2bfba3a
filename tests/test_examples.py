"""The examples run, and are short."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


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
