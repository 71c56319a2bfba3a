"""Old names of modules; ids and `tasks` in a checkout, in an installation, and in an editable one."""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import merlin
from merlin.moved import MOVED

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("old, new", MOVED.items())
def test_an_old_name_is_the_module_that_took_its_place(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)
    assert sys.modules[new].__spec__.name == new


def test_what_lies_in_a_moved_package_moved_with_it():
    from tasks import cells
    from tasks.board import Board, coloured, in_colour
    from tasks.grid import GridWorld, Moves, Verdict, world
    from tasks.single import SingleEnv

    grid = merlin.tasks.grid
    assert (cells, world, GridWorld, Moves) == (grid.cells, grid.world, grid.world.GridWorld, grid.world.Moves)
    assert (Board, coloured, in_colour) == (grid.board.Board, grid.cells.coloured, grid.board.in_colour)
    assert Verdict is grid.Verdict and SingleEnv is merlin.tasks.base.single.SingleEnv
    with pytest.raises(ModuleNotFoundError, match=r"merlin\.tasks\.nothing"):
        importlib.import_module("tasks.nothing")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of what a package is built from."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("merlin", "tasks", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def build(source, folder, kind):
    """Unpack into `folder` what pip would install."""
    program = f"from setuptools.build_meta import {kind} as build; print(build({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", program], cwd=source, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(folder / result.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("installed"), "build_wheel")


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("editable"), "build_editable")


def test_a_wheel_has_the_package_and_nothing_else(installed):
    found = {path.name for path in installed.iterdir() if path.suffix not in (".whl", ".dist-info")}
    assert found == {"merlin"}
    for package in ("merlin", "tasks"):
        names = {path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py")}
        target = installed / ("merlin" if package == "merlin" else "merlin/tasks")
        assert names <= {path.relative_to(target) for path in target.rglob("*.py")}


PROGRAM = """
import site, sys
site.addsitedir(sys.argv[1])
import gymnasium
single = gymnasium.make("merlin:merlin/TMaze-v0")
batch = gymnasium.make_vec("merlin:merlin/MemoryGame-v0", num_envs=4, vectorization_mode="vector_entry_point")
single.reset(seed=0), batch.reset(seed=0)
import tasks
print(single.unwrapped.__module__, getattr(tasks, "OWNER", "ours"))
if not hasattr(tasks, "OWNER"):
    import tasks.grid.cells
    assert tasks is sys.modules["merlin.tasks"] and tasks.grid.cells is sys.modules["merlin.tasks.grid.cells"]
"""


@pytest.mark.parametrize("own", [None, "tasks.py", "tasks/__init__.py"])
@pytest.mark.parametrize("mode", ["checkout", "installed", "editable"])
def test_ids_resolve_and_a_users_own_tasks_stay_theirs(mode, own, request, tmp_path):
    if own:
        (tmp_path / own).parent.mkdir(exist_ok=True)
        (tmp_path / own).write_text("OWNER = 'theirs'\n", encoding="utf-8")
    folder = ROOT if mode == "checkout" else request.getfixturevalue(mode)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder)]
    result = subprocess.run(command, cwd=tmp_path, env=_environment(), text=True, capture_output=True, timeout=120)
    assert result.stdout == f"merlin.tasks.classic.tmaze {'theirs' if own else 'ours'}\n", result.stderr


@pytest.mark.parametrize("first", ["import tasks, merlin", "import merlin, tasks", "import tasks.cells, merlin"])
def test_in_a_checkout_tasks_can_be_imported_first(first):
    program = f"{first}\nimport sys, tasks.grid; assert tasks is merlin.tasks and tasks.grid is merlin.tasks.grid"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=_environment(), check=True, timeout=60)


def _environment():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
