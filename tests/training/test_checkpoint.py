import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.training import checkpoint, storage, weights
from merlin.training.checkpoint import (
    Best,
    load_best,
    load_last_weights,
    load_latest,
    read_best,
    read_best_in_training,
    save,
    save_best,
    set_aside,
    steps,
    tidy,
)
from merlin.training.plain import from_plain, to_plain
from merlin.training.storage import Damaged
from merlin.training.weights import load_weights, read_metadata, write_weights
from tests.agents.helpers import make_agent


class Agent(nn.Module):
    """Two tied weights, a transposed view and a buffer: what safetensors does not take as it is."""

    def __init__(self, size=3):
        super().__init__()
        self.encode = nn.Linear(size, 4, bias=False)
        self.decode = nn.Linear(4, size, bias=False)
        self.head = nn.Linear(size, 4, bias=False)
        self.head.weight = self.encode.weight
        self.decode.weight = nn.Parameter(torch.randn(4, size).T)
        self.register_buffer("visits", torch.arange(5))


class Inner(NamedTuple):
    memory: Tensor
    noise: Tensor | None


class State(NamedTuple):
    inner: Inner
    observation: dict[str, Tensor]
    pair: tuple[Tensor, Tensor]


def make_state(batch=2):
    observation = {"a.b": torch.ones(batch, dtype=torch.bool)}
    return State(Inner(torch.randn(batch, 3), None), observation, (torch.rand(batch), torch.rand(3)))


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_agent_and_the_rest_come_back_exactly(tmp_path):
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.1)
    (agent.encode.weight.sum() + agent.decode.weight.square().sum()).backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(3)
    rest = {
        "optimizer": optimizer.state_dict(), "generator": generator.get_state(), "numpy": 2**127 + 1,
        "scores": [1, 2.5, None, True, "text", (b"1", 2)],
    }  # fmt: skip
    save(tmp_path, 1234, agent, rest)
    assert names(tmp_path) == ["step-000000001234"]

    other = Agent()
    step, loaded = load_latest(tmp_path, other)
    assert step == 1234 and equal(agent.state_dict(), other.state_dict())
    assert other.head.weight is other.encode.weight
    assert loaded["scores"] == rest["scores"] and loaded["numpy"] == 2**127 + 1
    assert torch.equal(loaded["generator"], rest["generator"])
    adam = torch.optim.Adam(other.parameters(), lr=0.1)
    adam.load_state_dict(loaded["optimizer"])
    for before, after in zip(optimizer.state.values(), adam.state.values(), strict=True):
        assert equal(before, after)


def test_a_state_of_named_tuples_comes_back_as_it_was(tmp_path):
    state = make_state()
    save(tmp_path, 1, Agent(), {"state": state})
    restored = from_plain(load_latest(tmp_path, Agent())[1]["state"], make_state())
    assert isinstance(restored, State) and isinstance(restored.inner, Inner) and restored.inner.noise is None
    assert torch.equal(restored.inner.memory, state.inner.memory)
    assert torch.equal(restored.observation["a.b"], state.observation["a.b"])
    assert all(torch.equal(left, right) for left, right in zip(restored.pair, state.pair, strict=True))


def test_plain_trees_are_detached_compact_copies():
    weight = torch.randn(1000, 3, requires_grad=True)
    plain = to_plain({"row": weight[:2]})
    assert not plain["row"].requires_grad and plain["row"].untyped_storage().nbytes() == 2 * 3 * 4
    assert to_plain(weight.T).stride() == weight.T.stride(), "sums over it are taken in the same order"
    with pytest.raises(AssertionError, match="a checkpoint cannot hold a set"):
        to_plain([{1}])


@pytest.mark.parametrize(
    "plain, sentence",
    [
        (to_plain(make_state(batch=3)), r"state.inner.memory must have shape \[2, 3\] and has \[3, 3\]: resume"),
        ({"inner": None}, "the checkpoint's state must hold inner, observation, pair and holds inner: resume with"),
        (None, "the checkpoint's state must hold inner, observation, pair and holds NoneType: resume with"),
    ],
)
def test_a_state_of_another_shape_is_named(plain, sentence):
    with pytest.raises(MerlinError, match=sentence):
        from_plain(plain, make_state())


def test_only_the_last_few_are_kept_and_the_best_stays(tmp_path):
    save_best(tmp_path, Best(1, 0.1), Agent().state_dict())
    for step in (1, 2, 900_000_000_000, 1_000_000_000_000):  # the last has a digit more
        save(tmp_path, step, Agent(), {}, keep=2)
    assert names(tmp_path) == ["best.safetensors", "step-1000000000000", "step-900000000000"]
    assert load_latest(tmp_path, Agent())[0] == 1_000_000_000_000


def test_an_old_checkpoint_is_never_seen_half_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "rmtree", lambda path, **_: (path / "trainer.pt").unlink())
    for step in (1, 2):
        save(tmp_path, step, Agent(), {}, keep=1)
    assert [path.name for path in steps(tmp_path)] == ["step-000000000002"]


def test_saving_a_step_again_leaves_it(tmp_path):
    path = save(tmp_path, 5, Agent(), {"x": 1})
    assert save(tmp_path, 5, Agent(), {"x": 2}) == path
    assert load_latest(tmp_path, Agent())[1] == {"x": 1}


def test_the_best_is_replaced_and_read_with_its_score(tmp_path):
    assert load_best(tmp_path, Agent()) is None and read_best(tmp_path) is None
    agent, other = Agent(), Agent()
    save_best(tmp_path, Best(10, 0.1), Agent().state_dict())
    save_best(tmp_path, Best(20, 1 / 3), agent.state_dict())
    assert load_best(tmp_path, other) == read_best(tmp_path) == Best(20, 1 / 3)
    assert equal(agent.state_dict(), other.state_dict())
    assert names(tmp_path) == ["best.safetensors"]
    (tmp_path / "checkpoints/best.safetensors").write_bytes(b"cut")
    for read in (read_best, lambda run_dir, note: load_best(run_dir, Agent(), note)):
        notes = []
        assert read(tmp_path, notes.append) is None
        assert len(notes) == 1 and "missing, truncated or of another kind: the last checkpoint is taken" in notes[0]


def test_what_a_comparison_replaces_as_the_best_is_kept_until_training_finds_better(tmp_path):
    agents = [Agent() for _ in range(4)]
    trained, compared = Best(10, 0.5, "training", 104, 30), Best(40, 0.25, "comparison", 100, 40)
    better = Best(50, 0.75, "training", 104, 60)
    for best, agent in zip((trained, compared, compared._replace(chosen_at=60)), agents, strict=False):
        save_best(tmp_path, best, agent.state_dict())
        assert read_best(tmp_path) == best and read_best(tmp_path, compared=False) == trained
        found, weights = read_best_in_training(tmp_path, agent)
        assert found == trained and equal(weights, agents[0].state_dict())
    save_best(tmp_path, better, agents[3].state_dict())
    assert read_best(tmp_path) == read_best(tmp_path, compared=False) == better
    assert names(tmp_path) == ["best.safetensors"]


@pytest.mark.parametrize("last", ["comparison", "training"])
def test_a_kill_between_the_writes_of_the_best_and_of_what_it_replaces_loses_neither(tmp_path, monkeypatch, last):
    trained, write = Best(10, 0.5, "training"), checkpoint.write_weights
    save_best(tmp_path, trained, Agent().state_dict())
    if last == "training":
        save_best(tmp_path, Best(20, 0.25, "comparison"), Agent().state_dict())

    def dying(*arguments):
        if last == "training":
            write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_weights", dying)
    with pytest.raises(KeyboardInterrupt):
        save_best(tmp_path, Best(30, 0.75, last), Agent().state_dict())
    for path in (tmp_path / "checkpoints").glob(".*"):
        path.unlink()
    assert read_best(tmp_path, compared=False) == trained
    assert read_best(tmp_path) == (trained if last == "comparison" else Best(20, 0.25, "comparison"))


@pytest.mark.parametrize("name", ["agent.safetensors", "trainer.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "missing"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_with_a_sentence(tmp_path, name, damage):
    save(tmp_path, 1, Agent(), {"step": 1})
    path = save(tmp_path, 2, Agent(), {"x": torch.zeros(1000)}) / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "foreign": b"hello " * 100}[damage])
    notes = []
    assert load_latest(tmp_path, Agent(), notes.append) == (1, {"step": 1})
    (note,) = notes
    assert str(path) in note and note.endswith("the checkpoint before it is taken, step-000000000001")
    assert len(steps(tmp_path)) == 2, "reading changes nothing"

    set_aside(tmp_path, beyond=1)
    assert names(tmp_path) == ["damaged-step-000000000002", "step-000000000001"]
    save(tmp_path, 2, Agent(), {"step": 2})
    assert load_latest(tmp_path, Agent(), notes.append) == (2, {"step": 2}) and len(notes) == 1

    for step in steps(tmp_path):
        (step / "trainer.pt").unlink()
    with pytest.raises(
        MerlinError, match=r"step-000000000001/trainer.pt must .* no earlier checkpoint is intact: rest"
    ):
        load_latest(tmp_path, Agent(), notes.append)
    assert load_last_weights(tmp_path, Agent(), notes.append) == 2, "whoever plays needs the weights alone"


def flipped(data, position, bit):
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("name", ["agent.safetensors", "trainer.pt", "best.safetensors"])
def test_no_flipped_bit_is_loaded(tmp_path, name):
    about = {"config": '{"a": "\\"sha256\\":\\"' + "0" * 64 + '\\"", "b": 1}'}
    path = save(tmp_path, 1, Agent(), {"x": torch.zeros(3), "y": 1}, about=about) / name
    if name == "best.safetensors":
        path = save_best(tmp_path, Best(1, 0.5), Agent().state_dict(), about)
    data, agent = path.read_bytes(), Agent()
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    for position in range(0, len(data), 1 if name != "trainer.pt" else 7):
        path.write_bytes(flipped(data, position, position % 8))
        if name == "best.safetensors":
            assert load_best(tmp_path, agent, lambda _: None) is None
        else:
            with pytest.raises(MerlinError):
                load_latest(tmp_path, agent)
        if name != "trainer.pt":
            assert equal(agent.state_dict(), before)
    path.write_bytes(data)
    assert load_latest(tmp_path, agent)[0] == 1 and (name != "best.safetensors" or load_best(tmp_path, agent))


def test_weights_name_their_checksum_as_others_compute_it(tmp_path):
    path = save_best(tmp_path, Best(1, 0.5), Agent().state_dict())
    stated = read_metadata(path)["sha256"]
    data = path.read_bytes().replace(stated.encode(), b"0" * 64)
    assert hashlib.sha256(data).hexdigest() == stated
    path = save(tmp_path, 1, Agent(), {"x": 1})
    stated = read_metadata(path / "agent.safetensors")["trainer_sha256"]
    assert hashlib.sha256((path / "trainer.pt").read_bytes()).hexdigest() == stated


def test_checkpoints_without_checksums_load(tmp_path):
    """Those of version 0.2.0."""
    agent = nn.Linear(2, 3)
    path = tmp_path / "checkpoints" / "step-000000000007"
    path.mkdir(parents=True)
    save_file(agent.state_dict(), path / "agent.safetensors")
    torch.save({"x": 1}, path / "trainer.pt")
    save_file(agent.state_dict(), tmp_path / "checkpoints" / "best.safetensors", {"step": "5", "score": "0.25"})
    for load, found in ((load_latest, (7, {"x": 1})), (load_best, Best(5, 0.25))):
        other = nn.Linear(2, 3)
        assert load(tmp_path, other) == found and equal(agent.state_dict(), other.state_dict())


def test_weights_that_are_not_finite_are_not_played_with(tmp_path):
    agent = Agent()
    path = save_best(tmp_path, Best(1, 0.5), agent.state_dict() | {"decode.weight": torch.full((3, 4), torch.nan)})
    with pytest.raises(Damaged, match=r"best.safetensors holds weights that are not finite, such as 'decode.weight'"):
        load_weights(agent, path)
    notes = []
    assert load_best(tmp_path, agent, notes.append) is None and len(notes) == 1
    assert agent.decode.weight.isfinite().all()


def test_what_would_fill_the_memory_is_refused_by_its_size(tmp_path):
    path = tmp_path / "checkpoints" / "step-000000000001"
    path.mkdir(parents=True)
    save_file(
        Agent().encode.state_dict(), path / "agent.safetensors"
    )  # without checksums, as a stranger may hand it on
    torch.save({"x": torch.zeros(30_000_000)}, path / "stored.pt")
    with (
        zipfile.ZipFile(path / "stored.pt") as stored,
        zipfile.ZipFile(path / "trainer.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in stored.infolist():
            bomb.writestr(entry.filename, stored.read(entry))
    assert (path / "trainer.pt").stat().st_size < 1_000_000
    with pytest.raises(MerlinError, match=r"trainer.pt holds more than its size, which no checkpoint does"):
        load_latest(tmp_path, Agent().encode)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 100_000,
        b'{"weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
        b'{"weight":{"dtype":"BOGUS","shape":[1],"data_offsets":[0,8]}}',
        b'{"weight":7}',
        b"[]",
    ],
)
@pytest.mark.parametrize("stated", [None, 0, 2**40, 2**64 - 1])
def test_hostile_headers_are_one_sentence(tmp_path, header, stated):
    path = tmp_path / "best.safetensors"
    length = len(header) if stated is None else stated
    path.write_bytes(length.to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(MerlinError, match=r"^[^\n]*best.safetensors must hold the agent's weights, but[^\n]*$"):
        load_weights(nn.Linear(1, 1), path)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    agent = Agent()
    path = save(tmp_path, 1, agent, {})
    torch.save({"x": Evil()}, path / "trainer.pt")
    digest = hashlib.sha256((path / "trainer.pt").read_bytes()).hexdigest()
    with open(path / "agent.safetensors", "wb") as file:
        write_weights(file, agent.state_dict(), {"trainer_sha256": digest})  # anybody can compute a checksum
    with pytest.raises(MerlinError, match=r"trainer\.pt must hold the training state"):
        load_latest(tmp_path, Agent())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "other, sentence",
    [
        (lambda: Agent(size=5), r"'encode.weight' must have shape \[4, 5\] and has \[4, 3\]"),
        (lambda: nn.Linear(2, 2), "it lacks 'weight'"),
        (lambda: nn.Module(), "it holds '(encode|head|decode).weight', which the agent lacks"),
    ],
)
def test_weights_of_another_agent_are_refused_by_name(tmp_path, other, sentence):
    path = save_best(tmp_path, Best(1, 0.0), Agent().state_dict())
    with pytest.raises(MerlinError, match=f"best.safetensors is of another agent or other settings, {sentence}"):
        load_weights(other(), path)


def test_weights_of_before_marginals_were_kept_load_and_these_begin_anew(tmp_path):
    older, newer = make_agent("merlin"), make_agent("merlin")
    kept = {name: x for name, x in older.state_dict().items() if ".marginal." not in name}
    kept = {name: x for name, x in kept.items() if "reward_marginal" not in name}
    assert len(kept) < len(older.state_dict())
    load_weights(newer, save_best(tmp_path, Best(1, 0.0), kept))
    assert all(torch.equal(x, newer.state_dict()[name]) for name, x in kept.items())
    assert newer.predictor.reward_marginal.windows == 0


@pytest.mark.usefixtures("on_a_command_line")
def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(MerlinError, match="has no checkpoint yet: `merlin train --resume"):
        load_latest(tmp_path, Agent())


@pytest.mark.usefixtures("on_a_command_line")
@pytest.mark.parametrize("saver", ["save", "save_best"])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_debris(tmp_path, saver):
    agent = Agent()
    save(tmp_path, 1, agent, {"x": 1})
    save_best(tmp_path, Best(1, 0.5), agent.state_dict())
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(MerlinError) as error:
            if saver == "save":
                save(tmp_path, 2, agent, {"x": torch.zeros(100_000)})
            else:
                save_best(tmp_path, Best(2, 0.7), nn.Linear(100, 100).state_dict())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "(File too large)" in str(error.value) and "\n" not in str(error.value)
    assert f"step-000000000001 is intact, resume with `merlin train --resume {tmp_path}`" in str(error.value)
    assert names(tmp_path) == ["best.safetensors", "step-000000000001"]
    assert load_latest(tmp_path, agent)[0] == 1 and load_best(tmp_path, agent) == Best(1, 0.5)


def test_no_space_is_told_as_the_system_tells_it(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(MerlinError, match=r"could not write .*step-000000000001 \(No space left on device\)"):
        save(tmp_path, 1, Agent(), {})
    assert names(tmp_path) == []


SAVERS = (checkpoint.__file__, storage.__file__, weights.__file__)


class Killed(BaseException):
    """Passes every handler, as SIGKILL does."""


def kill_at(line_number, action):
    """Run `action`, ended just before the given number of lines of what saves; return whether it was."""
    left = line_number

    def trace(frame, event, argument):
        nonlocal left
        code = frame.f_code  # within torch.save a kill cannot be told from a failed write
        if code.co_filename not in SAVERS or code.co_qualname.startswith("HashingFile"):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


# A killed process closes no files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_kill_between_any_two_lines_leaves_the_last_checkpoint(tmp_path):
    old, new = Agent(), Agent()
    killed = True
    line_number = 0
    while killed:
        line_number += 1
        run_dir = tmp_path / str(line_number)
        for step in (1, 2):
            save(run_dir, step, old, {"step": step}, keep=2)
        save_best(run_dir, Best(2, 0.2), old.state_dict())

        def advance(run_dir=run_dir):
            save(run_dir, 3, new, {"step": 3}, keep=2)
            save_best(run_dir, Best(3, 0.3), new.state_dict())

        killed = kill_at(line_number, advance)
        agent = Agent()
        step, rest = load_latest(run_dir, agent)
        assert step in (2, 3) and rest == {"step": step}
        assert equal(agent.state_dict(), (old if step == 2 else new).state_dict())
        best = load_best(run_dir, agent)
        assert best in (Best(2, 0.2), Best(3, 0.3))
        assert equal(agent.state_dict(), (old if best.step == 2 else new).state_dict())
        advance()
        tidy(run_dir)  # whatever was left behind is cleaned
        assert names(run_dir) == ["best.safetensors", "step-000000000002", "step-000000000003"]
    assert line_number > 40, "the save was cut at every line"


SAVE_MANY = """
import sys, torch
from pathlib import Path
from merlin.training.checkpoint import save
agent = torch.nn.Linear(200, 200)
for step in range(1, 61):
    save(Path(sys.argv[1]), step, agent, {"x": torch.zeros(50_000)}, keep=int(sys.argv[2]))
"""


def test_processes_that_save_the_same_steps_destroy_nothing(tmp_path):
    command = [sys.executable, "-c", SAVE_MANY, str(tmp_path), "30"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = steps(tmp_path)
    assert len(found) == 30 and names(tmp_path) == [path.name for path in found]
    for path in found:
        checkpoint._load_rest(path)
        load_weights(nn.Linear(200, 200), path / "agent.safetensors")


def test_sigkill_of_a_saving_process_leaves_a_checkpoint(tmp_path):
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom merlin.training.checkpoint import save\n"
        "agent = torch.nn.Linear(300, 300)\n"
        "for step in range(1, 10**6):\n    save(Path(sys.argv[1]), step, agent, {'step': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(steps(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.003)
    finally:
        process.kill()
        process.wait()
    step, rest = load_latest(tmp_path, nn.Linear(300, 300))
    assert rest == {"step": step} and step >= 3
