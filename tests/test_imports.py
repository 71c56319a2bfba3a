"""Imports point downwards, and importing has no effects. Those of the tasks: tests/tasks/test_imports.py."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import merlin
from merlin import tasks
from merlin.moved import MOVED

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "merlin").rglob("*.py"))
}

LAYERS = [
    ["merlin.errors", "merlin.moved", "merlin.precision", "merlin.version"],
    ["merlin.ranges", "merlin.recorded", "merlin.states"],
    ["merlin.distributed", "merlin.plugins"],
    ["merlin.experience", "merlin.latents", "merlin.memory"],
    ["merlin.networks"],
    ["merlin.objectives", "merlin.environments"],
    ["merlin.agents.learner"],
    ["merlin.agents.border"],
    ["merlin.agents.agent"],
    ["merlin.agents.acting", "merlin.agents.actor"],
    ["merlin.training"],  # of agents it knows the interface alone
    ["merlin.agents.actor_critic", "merlin.agents.memory_ablation"],
    [
        "merlin.agents.merlin",
        "merlin.agents.rl_lstm",
        "merlin.agents.rl_mem",
        "merlin.agents.dreamer",
        "merlin.agents.ftw",
    ],  # none knows another
    ["merlin.agents"],
    ["merlin.runs"],
    ["merlin.viewer", "merlin.experiments", "merlin.population"],
    ["merlin.analysis"],
    ["merlin.cli"],
    ["merlin.__main__"],
]
"""Folders and modules; each may import itself and those of the layers above it here. The longest name counts."""

LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def longest(name, prefixes):
    """Return the longest of the dotted names that `name` is or lies in, or None."""
    return max((prefix for prefix in prefixes if f"{name}.".startswith(f"{prefix}.")), key=len, default=None)


def imports(tree, inside_functions=True):
    """Return the modules of ours that a module imports by statement."""
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
        elif inside_functions or not (isinstance(node, ast.FunctionDef) or _only_for_types(node)):
            nodes += ast.iter_child_nodes(node)
    return {name for name in found if name.partition(".")[0] in ("merlin", "tasks")}


def _only_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def may_import(name, imported):
    """Return whether a module may import another."""
    if name == "merlin":
        return imported == "merlin.moved"  # its public names are imported when they are first used
    ours, others = longest(name, LEVELS), longest(imported, LEVELS)
    assert ours, f"{name} has no place among the layers: give it one"
    return others is not None and (ours == others or LEVELS[others] < LEVELS[ours])


def forbidden(name, imported):
    """Return what `name` imports and may not."""
    return sorted(module for module in imported if not may_import(name, module))


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert forbidden(name, imports(tree, inside_functions=name != "merlin")) == []  # which tells type checkers all


@pytest.mark.parametrize(
    "name, source",
    [
        ("merlin.memory.content", "import merlin.networks.heads"),
        ("merlin.latents", "from merlin.memory import Read"),
        ("merlin.agents.rl_mem", "from merlin.agents.merlin import MerlinConfig"),
        ("merlin.agents.rl_mem", "from merlin.agents import merlin"),
        ("merlin.agents.actor_critic", "from merlin.agents.rl_mem import RLMem"),
        ("merlin.agents.learner", "from merlin.agents.agent import Agent"),
        ("merlin.training.trainer", "from merlin.agents.merlin import Merlin"),
        ("merlin.training.trainer", "from merlin.agents import AGENTS"),
        ("merlin.training.trainer", "def f():\n    import merlin.runs.run"),
        ("merlin.environments.batch", "from merlin.agents.agent import Agent"),
        ("merlin.runs.run", "from merlin import cli"),
        ("merlin.runs.presets", "import merlin.tasks.classic.tmaze"),
        ("merlin.runs.monitor", "def f():\n    from merlin.viewer.watch import watch"),
        ("merlin.viewer.watch", "from merlin.analysis.report import analyse"),
        ("merlin", "from merlin.runs.run import train"),
    ],
)
def test_a_wrong_import_would_be_seen(name, source):
    assert forbidden(name, imports(ast.parse(source)))


def test_no_module_waits_for_itself():
    """Modules that import one another while they are loaded work only in a lucky order."""
    graph = {name: imports(ast.parse(path.read_text(encoding="utf-8")), False) for name, path in MODULES.items()}
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)


EFFECTS = """
import os, random, signal, sys, warnings
import gymnasium, numpy
def world():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return dict(os.environ), list(sys.path), handlers, list(warnings.filters), random.getstate(), os.listdir()
before, ids, random_numbers = world(), set(gymnasium.registry), numpy.random.get_state()[1].tolist()
import {package}
assert world() == before and numpy.random.get_state()[1].tolist() == random_numbers
print(sorted(set(gymnasium.registry) - ids), {{"torch", "matplotlib", "wandb", "minigrid"}} & set(sys.modules))
"""


def test_importing_the_packages_has_no_effects_but_the_tasks_ids():
    for package in ("merlin", "merlin.tasks"):
        result = run(EFFECTS.format(package=package))
        assert (result.stdout, result.stderr) == (f"{sorted(tasks.TASKS)} set()\n", "")


def test_the_memory_stands_alone():
    result = run("import sys, merlin.memory; print(*sorted(name for name in sys.modules if name.startswith('merlin')))")
    assert result.stderr == "", result.stderr
    alone = {
        "merlin",
        "merlin.moved",
        "merlin.tasks",
        "merlin.errors",
        "merlin.plugins",
        "merlin.ranges",
        "merlin.precision",
        "merlin.states",
    }
    assert {name for name in result.stdout.split() if not name.startswith("merlin.memory")} == alone


@pytest.mark.parametrize("old", MOVED)
def test_modules_that_moved_are_found_under_their_old_names(old):
    assert importlib.import_module(old) is importlib.import_module(MOVED[old])


def test_public_names_are_there_and_nothing_else_is():
    for name in merlin.__all__:
        assert not isinstance(getattr(merlin, name), types.ModuleType)
    assert set(merlin.__all__) <= set(dir(merlin))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        merlin.trian  # noqa: B018
    for module in MODULES:
        assert module.removeprefix("merlin.") not in merlin.__all__, "a module of that name would take its place"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_can_be_imported(name):
    importlib.import_module(name)
