"""TensorBoard's files hold the reports of metrics.jsonl; without the package a sentence says so."""

import importlib.util
import io
import sys

import pytest

import merlin
from merlin.cli import main
from merlin.errors import MerlinError
from merlin.runs.metrics import read_rows

SET = {"training.unroll_length": 4, "model.hidden_size": 8, "training.minibatches": 1, "training.report_steps": 8}
needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is an extra")


@needs_tensorboard
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_has_each_report_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"stream": io.StringIO(), "tensorboard": True}
    merlin.train("merlin/TMaze-v0", tmp_path, agent="rl-lstm", steps=16, num_envs=2, set=SET, **options)
    merlin.train(resume=tmp_path, steps=32, **options)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("entropy_nats")}
    rows = read_rows(tmp_path)
    assert written == pytest.approx({row["env_steps"]: row["entropy_nats"] for row in rows})
    assert len(events.Scalars("entropy_nats")) == len(rows) == 4
    assert events.Tags()["images"] == ["learning_curve"]


def test_without_the_package_a_sentence_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MerlinError, match=r"not installed: pip install .*, or leave out tensorboard\."):
        merlin.train("merlin/TMaze-v0", tmp_path / "a", agent="rl-lstm", steps=16, tensorboard=True)
    assert main(["train", "merlin/TMaze-v0", "--tensorboard", "--run-dir", str(tmp_path / "b")]) == 1
    assert "or leave out --tensorboard." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
