"""Compiled kernels of grid worlds compute what PyTorch's operations do, number by number."""

import logging
import random

import pytest
import torch

from merlin.tasks.grid import GridWorld, native
from tests.tasks.test_tasks import CASES, flat, make_batch

VIEWS = [
    ("merlin/DoorKey-v0", {"size": 8, "agent_view_size": size, "see_through_walls": through})
    for size, through in [(3, False), (5, True), (11, False), (13, False), (53, False), (55, True)]
]
STEPS = 100


@pytest.fixture
def reload():
    """Kernels are looked for anew, in the test and after it."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def is_grid(task_id, kwargs):
    return isinstance(make_batch(task_id, kwargs, 1), GridWorld)


@pytest.mark.skipif(native.load() is None, reason="there is no C compiler")
@pytest.mark.parametrize("task_id, kwargs", [case for case in [*CASES, *VIEWS] if is_grid(*case)])
@pytest.mark.parametrize("num_envs", [1, 7])
def test_kernels_equal_operations(task_id, kwargs, num_envs):
    steps = STEPS // 5 if kwargs.get("view") == "first_person" or kwargs.get("agent_view_size", 0) > 50 else STEPS
    fast, slow = (make_batch(task_id, kwargs, num_envs) for _ in range(2))
    assert fast.kernels is not None
    slow.kernels = None
    assert all(map(torch.equal, flat(fast.reset(seed=1)), flat(slow.reset(seed=1))))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        actions = torch.randint(fast.single_action_space.n, (num_envs,), generator=generator)
        for found, expected in zip(flat(fast.step(actions)), flat(slow.step(actions)), strict=True):
            assert found.dtype == expected.dtype
            assert torch.allclose(found, expected, 0, 0, equal_nan=True)
        assert all(torch.equal(getattr(fast, name), getattr(slow, name)) for name in fast.state_names)


@pytest.mark.skipif(native.load() is None, reason="there is no C compiler")
def test_an_impossible_action_changes_nothing():
    env = make_batch("merlin/DoorKey-v0", {}, 3)
    env.reset(seed=0)
    before = env.state_dict()
    for wrong in (7, -1):
        with pytest.raises(ValueError, match="an action must be from 0 to 6"):
            env.step(torch.tensor([2, 0, wrong]))
    assert all(torch.equal(x, before[name]) for name, x in env.state_dict().items())


@pytest.mark.skipif(native.load() is None, reason="there is no C compiler")
def test_what_a_step_returned_is_never_written_again():
    env, actions = make_batch("merlin/Memory-v0", {"max_steps": 7}, 4), random.Random(0)
    kept = [env.reset(seed=0)]
    copies = [[x.clone() for x in flat(kept[0])]]
    for _ in range(20):
        kept.append(env.step(torch.tensor(actions.choices(range(7), k=4))))
        copies.append([x.clone() for x in flat(kept[-1])])
    for now, then in zip(kept, copies, strict=True):
        assert all(torch.allclose(x, y, 0, 0, equal_nan=True) for x, y in zip(flat(now), then, strict=True))


@pytest.mark.parametrize("lacks", ["wish", "compiler", "space"])
@pytest.mark.usefixtures("reload")
def test_without_kernels_there_are_operations(lacks, monkeypatch, caplog, tmp_path):
    if lacks == "wish":
        monkeypatch.setenv("MERLIN_KERNELS", "0")
    elif lacks == "compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "merlin.tasks"):
        env = make_batch("merlin/Memory-v0", {}, 2)
    assert "grid worlds take PyTorch's operations" in caplog.text
    assert env.kernels is None
    env.reset(seed=0)
    env.step(torch.tensor([2, 2]))


@pytest.mark.skipif(native.load() is None, reason="there is no C compiler")
@pytest.mark.usefixtures("reload")
def test_kernels_are_compiled_once_for_a_user(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO, "merlin.tasks"):
        assert native.load() is not None
    assert caplog.messages == ["grid worlds take compiled kernels"]
    (made,) = (tmp_path / "merlin-agents").iterdir()
    at = made.stat().st_mtime_ns
    native.load.cache_clear()
    assert native.load() is not None and made.stat().st_mtime_ns == at
