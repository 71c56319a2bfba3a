import errno
import os
import resource
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.training import checkpoint
from merlin.training.checkpoint import (
    from_plain,
    load_best,
    load_latest,
    load_weights,
    read_best,
    save,
    save_best,
    steps,
    to_plain,
)


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
    save_best(tmp_path, 1, 0.1, Agent())
    for step in (1, 2, 900_000_000_000, 1_000_000_000_000):  # the last has a digit more
        save(tmp_path, step, Agent(), {}, keep=2)
    assert names(tmp_path) == ["best.safetensors", "step-1000000000000", "step-900000000000"]
    assert load_latest(tmp_path, Agent())[0] == 1_000_000_000_000


def test_an_old_checkpoint_is_never_seen_half_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: (path / "trainer.pt").unlink())
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
    save_best(tmp_path, 10, 0.1, Agent())
    save_best(tmp_path, 20, 1 / 3, agent)
    assert load_best(tmp_path, other) == read_best(tmp_path) == (20, 1 / 3)
    assert equal(agent.state_dict(), other.state_dict())
    assert names(tmp_path) == ["best.safetensors"]
    (tmp_path / "checkpoints/best.safetensors").write_bytes(b"cut")
    for read in (read_best, lambda run_dir: load_best(run_dir, Agent())):
        with pytest.raises(MerlinError, match=r"missing, truncated or of another kind: delete .*best\.safetensors to"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["agent.safetensors", "trainer.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "missing"])
def test_a_damaged_checkpoint_says_which_file_and_what_to_do(tmp_path, name, damage):
    save(tmp_path, 1, Agent(), {})
    path = save(tmp_path, 2, Agent(), {"x": torch.zeros(1000)}) / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "foreign": b"hello " * 100}[damage])
    with pytest.raises(MerlinError) as error:
        load_latest(tmp_path, Agent())
    assert str(path) in str(error.value) and "missing, truncated or of another kind" in str(error.value)
    assert str(error.value).endswith(f"delete {path.parent} to resume from step-000000000001")
    (tmp_path / "checkpoints/step-000000000002").rename(tmp_path / "away")
    assert load_latest(tmp_path, Agent())[0] == 1


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = save(tmp_path, 1, Agent(), {})
    torch.save({"x": Evil()}, path / "trainer.pt")
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
    path = save_best(tmp_path, 1, 0.0, Agent())
    with pytest.raises(MerlinError, match=f"best.safetensors is of another agent or other settings, {sentence}"):
        load_weights(other(), path)


def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(MerlinError, match="has no checkpoint to resume from"):
        load_latest(tmp_path, Agent())


@pytest.mark.parametrize("saver", ["save", "save_best"])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_debris(tmp_path, saver):
    agent = Agent()
    save(tmp_path, 1, agent, {"x": 1})
    save_best(tmp_path, 1, 0.5, agent)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(MerlinError) as error:
            if saver == "save":
                save(tmp_path, 2, agent, {"x": torch.zeros(100_000)})
            else:
                save_best(tmp_path, 2, 0.7, nn.Linear(100, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "(File too large)" in str(error.value) and "\n" not in str(error.value)
    assert f"step-000000000001 is intact, resume with `merlin train --resume {tmp_path}`" in str(error.value)
    assert names(tmp_path) == ["best.safetensors", "step-000000000001"]
    assert load_latest(tmp_path, agent)[0] == 1 and load_best(tmp_path, agent) == (1, 0.5)


def test_no_space_is_told_as_the_system_tells_it(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(MerlinError, match=r"could not write .*step-000000000001 \(No space left on device\)"):
        save(tmp_path, 1, Agent(), {})
    assert names(tmp_path) == []


class Killed(BaseException):
    """Passes every handler, as SIGKILL does."""


def kill_at(line_number, action):
    """Run `action`, ended just before the given number of lines of checkpoint.py; return whether it was."""
    left = line_number

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__:
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
        save_best(run_dir, 2, 0.2, old)

        def advance(run_dir=run_dir):
            save(run_dir, 3, new, {"step": 3}, keep=2)
            save_best(run_dir, 3, 0.3, new)

        killed = kill_at(line_number, advance)
        agent = Agent()
        step, rest = load_latest(run_dir, agent)
        assert step in (2, 3) and rest == {"step": step}
        assert equal(agent.state_dict(), (old if step == 2 else new).state_dict())
        best = load_best(run_dir, agent)
        assert best in ((2, 0.2), (3, 0.3))
        assert equal(agent.state_dict(), (old if best.step == 2 else new).state_dict())
        advance()  # whatever was left behind is cleaned
        assert names(run_dir) == ["best.safetensors", "step-000000000002", "step-000000000003"]
    assert line_number > 40, "the save was cut at every line"


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
