"""Imports of the tasks point downwards, and to nothing else of merlin."""

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tasks"
MODULES = {
    ".".join(["merlin.tasks", *path.relative_to(FOLDER).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(FOLDER.rglob("*.py"))
}
LAYERS = [["base"], ["grid"], ["solvers"], ["paper", "minigrid_tasks", "classic", "capture_the_flag"]]
"""Folders: each may import itself and those of the lines before."""


def imports(name, source):
    """Return the modules of merlin that a module imports by statement, inside functions too."""
    package, found = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            whole = {f"{module}.{alias.name}" for alias in node.names}
            found |= {imported if imported in MODULES else module for imported in whole}
    return {imported for imported in found if imported.partition(".")[0] in ("merlin", "tasks")}


def forbidden(name, source):
    """Return what a module imports and may not."""
    folder, allowed = name.split(".")[2:3], []
    for layer in LAYERS:
        if folder and folder[0] in layer:
            allowed += folder
            break
        allowed += layer
    else:
        assert not folder, f"{name} has no place among the layers: give it one"
        allowed = []  # the package itself, which knows its modules by name
    prefixes = tuple(f"merlin.tasks.{one}." for one in allowed)
    return sorted(imported for imported in imports(name, source) if not f"{imported}.".startswith(prefixes or "-"))


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    assert forbidden(name, MODULES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("merlin.tasks.base.vector", "from ..grid import cells"),
        ("merlin.tasks.grid.world", "def f():\n    from ..solvers.planning import plan"),
        ("merlin.tasks.grid.world", "from .. import TASKS"),
        ("merlin.tasks.solvers.scores", "from ..classic.maze import Maze"),
        ("merlin.tasks.classic.maze", "from ..paper.goal_maze import GoalMaze"),
        ("merlin.tasks.classic.maze", "from merlin.errors import MerlinError"),
        ("merlin.tasks.classic.maze", "import tasks"),
        ("merlin.tasks", "from .classic import maze"),
    ],
)
def test_a_wrong_import_would_be_seen(name, source):
    assert forbidden(name, source)


def test_there_is_no_circle():
    graph = {name: imports(name, path.read_text(encoding="utf-8")) & {*MODULES} for name, path in MODULES.items()}
    assert graph["merlin.tasks.grid.world"]
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


NEEDS = {"merlin.tasks.capture_the_flag.parallel": "pettingzoo"}  # which the extra `multi` installs


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert Path(importlib.import_module(name).__file__) == MODULES[name]
