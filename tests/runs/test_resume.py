"""What a run directory survives: kills, damage, a second process, and being moved; and what a run goes on with."""

import io
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merlin.errors import MerlinError
from merlin.runs import choice
from merlin.runs.monitor import Monitor
from merlin.runs.presets import RunConfig, preset
from merlin.runs.run import build_environment, load_agent, load_config, train, write_config
from merlin.training import checkpoint
from merlin.training.checkpoint import Best
from merlin.training.trainer import Trainer, TrainingConfig
from tests.environments import examples as environments  # noqa: F401 (they register themselves)

ROOT = Path(__file__).parents[2]
CLOCK = ("wall_seconds", "env_steps_per_second", "rollout_seconds", "learning_seconds")
WINDOW = 8 * 4
ALWAYS = 1e-9
"""Seconds between checkpoints that make one after each window."""

DRAW = Monitor.draw
pytestmark = pytest.mark.usefixtures("no_pictures")


def tiny(agent="rl-lstm", task="merlin/MemoryGame-v0", windows=24, **training) -> RunConfig:
    config = preset(agent, task)
    sizes = {"latent_size": 4, "hidden_size": 8, "policy_hidden_size": 8, "head_size": 8}
    model = replace(config.model, **{name: size for name, size in sizes.items() if hasattr(config.model, name)})
    training = {
        "unroll_length": 4,
        "minibatches": 1,
        "report_steps": 5 * WINDOW,
        "checkpoint_seconds": ALWAYS,
    } | training
    training = replace(config.training, **training)
    return replace(config, num_envs=8, steps=windows * WINDOW, model=model, training=training, device="cpu")


def rows(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name not in CLOCK} for line in lines]


def weights_of(run_dir, name="last"):
    path = checkpoint.steps(run_dir)[-1] / "agent.safetensors" if name == "last" else run_dir / "checkpoints" / name
    return {name: x.clone() for name, x in load_file(path).items()}  # which maps the file


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Killed(BaseException):
    """Passes every handler, as SIGKILL does."""


def train_until(monkeypatch, window, config, run_dir, **more):
    """Train, and die in the given window, counted from the run's beginning."""
    update = Trainer.update

    def dying(self):
        if self.env_steps == (window - 1) * WINDOW:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dying)
        with pytest.raises(Killed):
            train(config, run_dir, stream=io.StringIO(), **more)


@pytest.mark.parametrize(
    ("agent", "task", "training"),
    [
        ("rl-lstm", "merlin/MemoryGame-v0", {}),
        ("merlin", "merlin/TMaze-v0", {"evaluation_steps": 100, "evaluation_episodes": 4}),
    ],
)
def test_reports_and_the_best_weights_are_those_of_a_run_that_was_never_killed(
    tmp_path, monkeypatch, agent, task, training
):
    monkeypatch.setattr(choice, "EPISODES", 16)
    monkeypatch.setattr(choice, "COMPARISON_FRACTION", math.inf)
    config, whole, killed = tiny(agent, task, **training), tmp_path / "whole", tmp_path / "killed"
    train(config, whole, stream=io.StringIO())
    resume = False
    for window in (3, 6, 7, 13, 21):
        train_until(monkeypatch, window, config, killed, resume=resume)
        if window in (7, 21):  # as if it had been killed before it could save once more
            shutil.rmtree(checkpoint.steps(killed)[-1])
        resume = True
    train(load_config(killed), killed, resume=True, stream=io.StringIO())
    assert rows(killed) == rows(whole) and len(rows(whole)) == 5
    assert sum(row["episodes"] for row in rows(whole)) > 20
    assert equal(weights_of(killed), weights_of(whole))
    assert checkpoint.read_best(killed) == checkpoint.read_best(whole) is not None
    assert equal(weights_of(killed, "best.safetensors"), weights_of(whole, "best.safetensors"))


def test_a_run_that_was_interrupted_makes_the_whole_report_later(tmp_path):
    config = tiny()
    train(config, tmp_path / "whole", stream=io.StringIO())
    parts = tmp_path / "parts"
    train(config, parts, stream=io.StringIO(), max_seconds=ALWAYS)
    assert [row["env_steps"] for row in rows(parts)] == [WINDOW], "what was seen is told at once"
    for _ in range(6):
        train(config, parts, stream=io.StringIO(), resume=True, max_seconds=ALWAYS)
    assert [row["env_steps"] for row in rows(parts)] == [5 * WINDOW, 7 * WINDOW]
    assert not (parts / "metrics.lost.jsonl").exists(), "what is seen again is not lost"
    stream = io.StringIO()
    train(config, parts, stream=stream, resume=True)
    assert rows(parts) == rows(tmp_path / "whole") and f"going on after {7 * WINDOW} steps" in stream.getvalue()


KILLED = """
import sys
from pathlib import Path
from merlin.runs.run import load_config, train
train(load_config(Path(sys.argv[1])), Path(sys.argv[1]), resume=True)
"""


def test_after_a_real_kill_the_lock_is_free_and_reports_are_whole(tmp_path):
    config = tiny(windows=40)
    train(config, tmp_path / "whole", stream=io.StringIO())
    killed = tmp_path / "killed"
    write_config(config, killed)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (checkpoint.last_step(killed) or 0) > 6 * WINDOW and time.monotonic() < deadline:
            time.sleep(0.003)
        process.send_signal(signal.SIGSTOP)  # which holds the lock as well
        second = io.StringIO()
        with pytest.raises(MerlinError, match=f"process {process.pid} on .* does in {killed}: wait until it has ended"):
            train(config, killed, resume=True, stream=second)
        with pytest.raises(MerlinError, match=f"process {process.pid} on "):
            train(config, killed, stream=second)
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors and checkpoint.last_step(killed) < config.steps
    train(load_config(killed), killed, resume=True, stream=io.StringIO())
    assert rows(killed) == rows(tmp_path / "whole")


@pytest.mark.usefixtures("on_a_command_line")
def test_a_run_without_a_checkpoint_begins_at_its_beginning(tmp_path, monkeypatch):
    config, run_dir, stream = tiny(checkpoint_seconds=1e9), tmp_path / "run", io.StringIO()
    train_until(monkeypatch, 8, config, run_dir)
    assert checkpoint.steps(run_dir) == [] and len(rows(run_dir)) == 1
    with pytest.raises(MerlinError, match=f"holds a run already: continue it with --resume {run_dir}"):
        train(config, run_dir)
    with build_environment(config, 1) as environment:
        with pytest.raises(MerlinError, match="has no checkpoint yet: `merlin train --resume"):
            load_agent(run_dir, environment, config)
    lost, steps = (run_dir / "metrics.jsonl").read_bytes(), rows(run_dir)[0]["env_steps"]
    train(load_config(run_dir), run_dir, resume=True, stream=stream)
    assert f"{run_dir} has no checkpoint: it trains from the beginning" in stream.getvalue()
    assert f"metrics.jsonl had 1 report, up to step {steps}, moved into metrics.lost.jsonl" in stream.getvalue()
    assert (run_dir / "metrics.lost.jsonl").read_bytes() == lost
    train(config, tmp_path / "whole", stream=io.StringIO())
    assert rows(run_dir) == rows(tmp_path / "whole")
    with pytest.raises(MerlinError, match=r"There is no directory .*nowhere: give one that train made"):
        train(config, tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 4 if position is None else position] ^= 64
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["agent.safetensors", "trainer.pt"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, name):
    config, run_dir, stream = tiny(), tmp_path / "run", io.StringIO()
    train(config, run_dir, stream=io.StringIO())
    before, expected = weights_of(run_dir), rows(run_dir)
    damaged = checkpoint.steps(run_dir)[-1]
    flip(damaged / name, None if name == "trainer.pt" else -2)
    train(config, run_dir, resume=True, stream=stream)
    assert f"{damaged / name} does not match its checksum: the checkpoint before it is taken" in stream.getvalue()
    assert equal(weights_of(run_dir), before) and rows(run_dir) == expected
    assert (damaged.parent / f"damaged-{damaged.name}" / name).exists()


def test_readers_pass_over_damaged_weights_with_a_sentence(tmp_path):
    config, run_dir, notes = tiny(), tmp_path / "run", []
    train(config, run_dir, stream=io.StringIO())
    last, before = checkpoint.steps(run_dir)[:-3:-1]
    checkpoint.save_best(run_dir, Best(1, 0.0), load_file(before / "agent.safetensors"))
    with build_environment(config, 1) as environment:

        def load(which):
            return load_agent(run_dir, environment, config, which, notes.append).state_dict()

        assert equal(load("best"), load_file(before / "agent.safetensors")) and notes == []
        flip(run_dir / "checkpoints" / "best.safetensors", -2)
        assert equal(load("best"), load_file(last / "agent.safetensors"))
        assert "best.safetensors does not match its checksum: the last checkpoint is taken" in notes.pop()
        flip(last / "agent.safetensors", -2)
        assert equal(load("last"), load_file(before / "agent.safetensors"))
    assert f"does not match its checksum: the checkpoint before it is taken, {before.name}" in notes.pop() and not notes


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe\x00", b"{" * 10, b"[" * 100_000, b'{"a":' * 100_000, b" " * (2**26 + 1)], ids=len
)
def test_a_damaged_configuration_is_restored_from_the_checkpoint(tmp_path, damage):
    config, run_dir, notes = tiny(windows=1), tmp_path / "run", []
    train(config, run_dir, stream=io.StringIO())
    (run_dir / "config.json").write_bytes(damage)
    assert load_config(run_dir, notes.append) == config
    (note,) = notes
    assert note.endswith(
        "config.json cannot be read: the configuration that the last checkpoint was saved with is taken"
    )
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(
        MerlinError, match=r"^[^\n]*config.json must hold a run's configuration, but cannot be read[^\n]*$"
    ):
        load_config(run_dir)


CHANGED = {
    "seed": {"seed": 7}, "task": {"task": "merlin/TMaze-v0"}, "env_kwargs": {"env_kwargs": {"pairs": 2}},
    "num_envs": {"num_envs": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", [*CHANGED, "model.entropy_cost"])
def test_what_a_run_is_cannot_be_changed_when_it_is_resumed(tmp_path, name):
    config, run_dir = tiny(windows=2), tmp_path / "run"
    train(config, run_dir, stream=io.StringIO())
    change = CHANGED.get(name) or {"model": replace(config.model, entropy_cost=0.5)}
    with pytest.raises(
        MerlinError, match=f"A run goes on as it began, so {name} must be .*, but is .*: resume without"
    ):
        train(replace(config, steps=4 * WINDOW, **change), run_dir, resume=True, stream=io.StringIO())
    assert load_config(run_dir) == config


LEARNING = {
    "passes": 2, "policy_passes": 2, "minibatches": 2, "learning_rate": 3e-2, "policy_learning_rate": 3e-2,
    "final_learning_rate_fraction": 0.0, "final_entropy_fraction": 0.0, "adam_epsilon": 0.5, "max_grad_norm": 1e-3,
    "unroll_length": 8, "truncation_ends": True,
}  # fmt: skip
OTHERS = {
    "report_steps": WINDOW, "checkpoint_seconds": 1e9, "evaluation_steps": 2 * WINDOW, "evaluation_episodes": 3,
    "num_threads": 2, "value_learning_rate": 3e-2, "matmul_precision": "high", "staggered_episodes": True,
}  # fmt: skip


def test_every_setting_of_training_is_known_here():
    assert {*LEARNING, *OTHERS} == {field.name for field in fields(TrainingConfig)}, "say what it changes on resuming"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Runs of MERLIN of 2 windows: by task, configuration and directory; not to be changed."""
    found = {}
    for task in ("merlin/MemoryGame-v0", "merlin/GoalMaze-v0"):
        config, run_dir = tiny("merlin", task, windows=2), tmp_path_factory.mktemp("begun") / "run"
        config = replace(config, env_kwargs={"max_steps": 6} if "Maze" in task else {})
        train(config, run_dir, stream=io.StringIO())
        found[task] = replace(config, steps=6 * WINDOW), run_dir
    return found


@pytest.mark.parametrize("name", LEARNING)
def test_settings_of_learning_take_effect_when_a_run_is_resumed(tmp_path, begun, name):
    config, run_dir = begun["merlin/GoalMaze-v0" if name == "truncation_ends" else "merlin/MemoryGame-v0"]
    learnt = []
    for index, change in enumerate(({}, {name: LEARNING[name]})):
        copy = Path(shutil.copytree(run_dir, tmp_path / str(index)))
        changed = replace(config, training=replace(config.training, **change))
        train(changed, copy, resume=True, stream=io.StringIO())
        assert load_config(copy) == changed
        learnt.append(weights_of(copy))
    assert not equal(*learnt)


def test_other_settings_of_training_take_effect_when_a_run_is_resumed(tmp_path, begun, monkeypatch):
    config, run_dir = begun["merlin/MemoryGame-v0"]
    copy, saves, save = Path(shutil.copytree(run_dir, tmp_path / "run")), [], Monitor.save
    now = lambda: (torch.get_num_threads(), torch.get_float32_matmul_precision())  # noqa: E731
    monkeypatch.setattr(Monitor, "save", lambda self: saves.append((self.trainer.env_steps, *now())) or save(self))
    train(replace(config, training=replace(config.training, **OTHERS)), copy, resume=True, stream=io.StringIO())
    assert saves == [(6 * WINDOW, 2, "high")] and now() == (1, "highest"), "which are the process's own"
    assert [row["env_steps"] for row in rows(copy)] == [WINDOW * n for n in (2, 3, 4, 5, 6)]
    assert [row.get("evaluation_episodes") for row in rows(copy)] == [None, None, 3, None, 3]


def test_options_of_the_optimiser_are_those_of_the_configuration(tmp_path, begun):
    config, run_dir = begun["merlin/MemoryGame-v0"]
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    change = {"adam_epsilon": 0.25, "policy_learning_rate": 0.125, "final_learning_rate_fraction": 1.0}
    train(replace(config, training=replace(config.training, **change)), copy, resume=True, stream=io.StringIO())
    rest = torch.load(checkpoint.steps(copy)[-1] / "trainer.pt", weights_only=True)
    groups = {name: x["param_groups"][0] for name, x in rest["trainer"]["optimizers"].items()}
    assert {group["eps"] for group in groups.values()} == {0.25} and groups["policy"]["lr"] == 0.125
    assert {int(x["step"]) for x in rest["trainer"]["optimizers"]["policy"]["state"].values()} == {
        6 * config.training.policy_passes
    }


def test_an_environment_that_changes_directory_leaves_the_run_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Monitor, "draw", DRAW)
    step = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self: os.chdir(tmp_path / "elsewhere") or step(self))
    train(tiny(), Path("run"), stream=io.StringIO())
    assert (tmp_path / "run" / "learning_curve.png").exists() and checkpoint.last_step(tmp_path / "run") == 24 * WINDOW
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.usefixtures("on_a_command_line")
@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_run_whose_directory_is_gone_is_saved_beside_it(tmp_path, monkeypatch, how):
    config, run_dir = tiny(), tmp_path / "run"
    train(config, tmp_path / "whole", stream=io.StringIO())
    update = Trainer.update

    def losing(self):
        if self.env_steps == 7 * WINDOW:
            shutil.rmtree(run_dir) if how == "removed" else run_dir.rename(tmp_path / "moved")
            if how == "replaced":
                write_config(config, run_dir)
                (run_dir / ".lock").write_text("process 1 on another")
        return update(self)

    monkeypatch.setattr(Trainer, "update", losing)
    with pytest.raises(
        MerlinError, match="was moved or removed while training: all that was learnt in 256 steps is in"
    ) as e:
        train(config, run_dir, stream=io.StringIO())
    monkeypatch.undo()
    (home,) = tmp_path.glob("run-rescued-*")
    assert f"go on with `merlin train --resume {home}`" in str(e.value)
    assert how == "replaced" or not run_dir.exists()
    train(load_config(home), home, resume=True, stream=io.StringIO())
    assert rows(home) == rows(tmp_path / "whole") and equal(weights_of(home), weights_of(tmp_path / "whole"))


def test_a_run_whose_directory_goes_while_a_checkpoint_is_written_is_saved_beside_it(tmp_path, monkeypatch):
    run_dir, write, written = tmp_path / "run", checkpoint._write_rest, []

    def losing(path, plain):
        written.append(path)
        if len(written) == 5:
            shutil.rmtree(run_dir)
        return write(path, plain)

    monkeypatch.setattr(checkpoint, "_write_rest", losing)
    with pytest.raises(MerlinError, match="was moved or removed while training: all that was learnt"):
        train(tiny(), run_dir, stream=io.StringIO())
    (home,) = tmp_path.glob("run-rescued-*")
    assert checkpoint.last_step(home) and not run_dir.exists()


def test_a_setting_that_is_not_the_checkpoints_is_told(tmp_path):
    """As of a flipped bit, after which config.json still reads."""
    train(tiny(windows=2), tmp_path, stream=io.StringIO())
    path, notes = tmp_path / "config.json", []
    assert load_config(tmp_path, notes.append) and not notes
    values = json.loads(path.read_text())
    values["training"]["learning_rate"] *= 2
    path.write_text(json.dumps(values))
    load_config(tmp_path, notes.append)
    rate = values["training"]["learning_rate"]
    assert notes == [f"{tmp_path} was trained with training.learning_rate {rate / 2} rather than {rate}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    config, run_dir = tiny(windows=2), tmp_path / "run"
    train(config, run_dir, stream=io.StringIO())
    run_dir.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(MerlinError, match="must be writable, but Permission denied"):
            train(config, run_dir, resume=True, stream=io.StringIO())
    finally:
        run_dir.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_starts_from_the_weights_of_another(tmp_path, which, monkeypatch):
    source, config = tmp_path / "source", tiny()
    train(config, source, stream=io.StringIO())
    weights = load_file(checkpoint.steps(source)[0] / "agent.safetensors")
    checkpoint.save_best(source, Best(5, 1.0), weights)
    expected = weights if which == "best" else weights_of(source)
    begun = []
    monkeypatch.setattr(Trainer, "run", lambda self, *_: begun.append((self.env_steps, self.agent.state_dict())))
    stream, run_dir = io.StringIO(), tmp_path / "run"
    change = {"started_from": str(source), "started_from_checkpoint": which, "seed": 9}
    train(replace(config, **change), run_dir, stream=stream)
    ((env_steps, found),) = begun
    assert env_steps == 0 and equal(found, expected)
    assert (
        f"starts from the {which} weights of {source}, of {5 if which == 'best' else 24 * WINDOW:,} steps"
        in stream.getvalue()
    )
    assert json.loads((run_dir / "config.json").read_text())["started_from"] == str(source)
    assert rows(source) and (run_dir / "metrics.jsonl").read_text() == ""
    monkeypatch.undo()
    shutil.move(source, tmp_path / "away")
    train(load_config(run_dir), run_dir, resume=True, stream=io.StringIO())  # which needs it no more
    assert checkpoint.last_step(run_dir) == 24 * WINDOW


@pytest.mark.usefixtures("on_a_command_line")
def test_weights_of_other_sizes_are_refused_by_name_and_say_how_to_take_them(tmp_path):
    source, config = tmp_path / "source", tiny(windows=1)
    train(config, source, stream=io.StringIO())
    other = replace(config, model=replace(config.model, hidden_size=16), started_from=str(source))
    with pytest.raises(MerlinError, match=r"must have shape .*needs the same agent, .* --set model.hidden_size=8$"):
        train(other, tmp_path / "run", stream=io.StringIO())
    assert not (tmp_path / "run").exists()
    with pytest.raises(MerlinError, match=r"There is no directory .*nowhere: "):
        train(replace(config, started_from=str(tmp_path / "nowhere")), tmp_path / "run", stream=io.StringIO())


def test_a_device_that_is_not_here_is_no_part_of_what_a_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, run_dir, notes = tiny(windows=2), tmp_path / "run", []
    train(config, run_dir, stream=io.StringIO())
    write_config(replace(config, device="cuda"), run_dir)
    found = load_config(run_dir, notes.append)
    assert found.device == "auto" and found == config
    assert notes == ["the run was made on cuda, which this machine lacks: it goes on without"]
    train(replace(found, steps=4 * WINDOW), run_dir, resume=True, stream=io.StringIO())
    assert checkpoint.last_step(run_dir) == 4 * WINDOW


def test_a_checkpoint_of_another_kind_of_device_goes_on_with_other_episodes(tmp_path):
    """Random states of a GPU mean nothing to a CPU; a GPU's has 16 bytes."""
    config, run_dir, stream = tiny(windows=2), tmp_path / "run", io.StringIO()
    train(config, run_dir, stream=io.StringIO())
    with build_environment(config) as environment:
        agent = load_agent(run_dir, environment, config, "last")
        _, rest = checkpoint.load_latest(run_dir, agent)
        rest["trainer"]["shares"][0]["generator"] = torch.zeros(16, dtype=torch.uint8)
        rest["trainer"]["shares"][0]["environment"]["generator"] = torch.zeros(16, dtype=torch.uint8)
        shutil.rmtree(run_dir / "checkpoints")
        checkpoint.save(run_dir, 2 * WINDOW, agent, rest)
    train(replace(config, steps=4 * WINDOW), run_dir, resume=True, stream=stream)
    assert "its episodes begin anew, with a new seed" in stream.getvalue()
    assert checkpoint.last_step(run_dir) == 4 * WINDOW


@pytest.mark.parametrize(
    "rest", [{}, {"trainer": None}, {"trainer": {}}, {"trainer": {"source": {}, "shares": [7]}}, {"trainer": [], 1: 2}]
)
def test_a_foreign_training_state_is_one_sentence(tmp_path, rest):
    config, run_dir = tiny(windows=1), tmp_path / "run"
    train(config, run_dir, stream=io.StringIO())
    with build_environment(config) as environment:
        agent = load_agent(run_dir, environment, config, "last")
    checkpoint.save(run_dir, 10**6, agent, rest)
    with pytest.raises(MerlinError, match=r"^The checkpoint of 1,000,000 steps in [^\n]* must hold the training state"):
        train(config, run_dir, resume=True, stream=io.StringIO())


def test_a_training_state_of_version_0_1_0_is_told_as_such(tmp_path):
    config, run_dir = tiny(windows=1), tmp_path / "run"
    train(config, run_dir, stream=io.StringIO())
    with build_environment(config) as environment:
        agent = load_agent(run_dir, environment, config, "last")
    old = {"env_steps": 10**6, "optimizers": {}, "shares": [{}]}
    checkpoint.save(run_dir, 10**6, agent, {"trainer": old, "wall_seconds": 1.0})
    with pytest.raises(MerlinError, match=r"^The training state was saved by version 0\.1\.0"):
        train(config, run_dir, resume=True, stream=io.StringIO())


@pytest.mark.parametrize("name", ["learning_curve.png", "metrics.jsonl", "config.json"])
def test_a_full_disk_is_one_sentence_and_can_be_resumed(tmp_path, monkeypatch, name):
    config, run_dir, stream = tiny(), tmp_path / "run", io.StringIO()
    train_until(monkeypatch, 8, config, run_dir)
    full = OSError(28, os.strerror(28))

    def fail(*_, **__):
        raise full

    with monkeypatch.context() as patch:
        if name == "learning_curve.png":
            patch.setattr(Monitor, "draw", DRAW)
            patch.setattr("merlin.runs.learning_curve.plot_learning_curve", fail)
            train(config, run_dir, resume=True, stream=stream)
            assert f"{run_dir / name} could not be drawn: No space left on device" in stream.getvalue()
        else:
            patch.setattr({"metrics.jsonl": "merlin.runs.reporting.keep_rows",
                           "config.json": "merlin.runs.directory.replace_file"}[name], fail)  # fmt: skip
            with pytest.raises(MerlinError, match=r"^[^\n]*No space left on device[^\n]*$"):
                train(config, run_dir, resume=True, stream=stream)
    train(config, run_dir, resume=True, stream=io.StringIO())
    train(config, tmp_path / "whole", stream=io.StringIO())
    assert rows(run_dir) == rows(tmp_path / "whole")


def test_a_lock_is_not_inherited_by_worker_processes(tmp_path):
    """Whose orphans, after a kill, would keep the run from being resumed."""
    from merlin.runs.lock import alone_in

    with alone_in(tmp_path, print):
        (reader, writer), (ready, begun) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.write(begun, b"!")
            os.read(reader, 1)
            os._exit(0)
        os.read(ready, 1)
        for descriptor in (reader, ready, begun):
            os.close(descriptor)
    try:
        with alone_in(tmp_path, print) as is_ours:
            assert is_ours()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_without_locks_a_sentence_says_so(tmp_path, monkeypatch):
    from merlin.runs import lock

    notes = []
    with monkeypatch.context() as patch:
        patch.setattr(lock, "fcntl", None)  # as on Windows
        with lock.alone_in(tmp_path, notes.append) as is_ours:
            assert is_ours()

    def refuse(*_):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.alone_in(tmp_path, notes.append):
        pass
    assert len(notes) == 2 and all("see to it that no other process trains in" in note for note in notes)


def test_a_signal_between_reports_loses_nothing(tmp_path):
    """A real one, through the command line."""
    config = tiny(windows=10**6, report_steps=10**6, checkpoint_seconds=1e9)
    run_dir = tmp_path / "run"
    write_config(config, run_dir)
    command = [sys.executable, "-m", "merlin", "train", "--resume", str(run_dir), "--wandb", "disabled"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **streams) as process:
        try:
            while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(1.0)
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "interrupted after" in out, errors
    (row,) = rows(run_dir)
    assert row["env_steps"] == checkpoint.last_step(run_dir) and row["episodes"] > 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "learning_curve.png"])
def test_a_new_run_writes_over_no_others_files(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(MerlinError, match=rf"over no other's files, but .*{name} is there: choose another run_dir"):
        train(tiny(), tmp_path, stream=io.StringIO())
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_an_agent_of_a_population_goes_on_with_it(tmp_path):
    agent = tmp_path / "agents" / "00"
    write_config(tiny(), agent)
    (tmp_path / "population.json").write_text("{}")
    with pytest.raises(MerlinError, match=f"agent of the population .*merlin population --resume {tmp_path}, or begin"):
        train(resume=agent)
    with pytest.raises(MerlinError, match=f"go on with all of them by merlin population --resume {tmp_path}"):
        train(resume=tmp_path)
