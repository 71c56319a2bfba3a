"""Imports point downwards, and importing has no effects."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import merlin
from merlin import tasks

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "merlin").rglob("*.py"))
}

_PURE = ["merlin.errors", "merlin.processes", "merlin.unroll", "merlin.returns", "merlin.losses"]
_PARTS = [*_PURE, "merlin.memory", "merlin.latents", "merlin.networks"]
_AGENTS_PARTS = [*_PARTS, "merlin.memory_window", "merlin.predictor", "merlin.recurrence"]
_TRAINING = [*_AGENTS_PARTS, "merlin.config", "merlin.agents.agent", "merlin.training"]
_AGENT = [*_AGENTS_PARTS, "merlin.agents.agent", "merlin.agents.actor_critic"]
_RUN = [*_TRAINING, "merlin.agents", "merlin.presets"]
MAY_IMPORT = {
    "merlin.errors": [],
    "merlin.processes": ["merlin.errors"],
    "merlin.memory": [],
    "merlin.memory_window": ["merlin.memory"],
    "merlin.recurrence": ["merlin.memory", "merlin.memory_window", "merlin.networks"],
    "merlin.latents": [],
    "merlin.returns": [],
    "merlin.unroll": [],
    "merlin.config": ["merlin.errors"],
    "merlin.losses": _PURE,
    "merlin.networks": ["merlin.errors", "merlin.processes", "merlin.networks"],
    "merlin.agents": _AGENT,
    "merlin.agents.merlin": [*_AGENT, "merlin.agents.associative"],
    "merlin.predictor": _PARTS,
    "merlin.agents.__init__": [*_AGENTS_PARTS, "merlin.agents"],
    "merlin.training": _TRAINING,
    "merlin.presets": [*_TRAINING, "merlin.agents"],
    "merlin.session": [*_RUN, "merlin.analysis"],
    "merlin.run": [*_RUN, "merlin.session", "merlin.analysis"],
    "merlin.analysis": [*_RUN, "merlin.run", "merlin.analysis"],
    "merlin.comparing": [*_RUN, "merlin.run", "merlin.analysis.tampering"],
    "merlin.jobs": [*_RUN, "merlin.run", "merlin.comparing"],
    "merlin.analysis.comparison": [*_RUN, "merlin.run", "merlin.comparing", "merlin.analysis"],
    "merlin.profiling": [*_RUN, "merlin.session", "merlin.run"],
    "merlin.arguments": [],
    "merlin.cli": [
        *_RUN,
        "merlin.run",
        "merlin.comparing",
        "merlin.jobs",
        "merlin.profiling",
        "merlin.analysis",
        "merlin.arguments",
    ],
    "merlin.__main__": ["merlin.cli"],
    "merlin.__init__": ["merlin.moved"],
    "merlin.moved": [],
}
"""What of ours each module, or each module of a package, may import; the longest name counts."""


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
    return {name for name in found if name.partition(".")[0] == "merlin"}


def _only_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def forbidden(name, imported):
    """Return what `name` imports and may not."""
    init = MODULES[name].name == "__init__.py"
    rule = f"{name}.__init__" if f"{name}.__init__" in MAY_IMPORT and init else longest(name, MAY_IMPORT)
    assert rule, f"{name} has no place among the layers: give it one"
    return sorted(module for module in imported if longest(module, MAY_IMPORT[rule]) is None)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    assert forbidden(name, imports(ast.parse(MODULES[name].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("merlin.memory", "import merlin.errors"),
        ("merlin.agents.rl_mem", "from merlin.agents.merlin import MerlinConfig"),
        ("merlin.agents.rl_mem", "from merlin.agents import merlin"),
        ("merlin.training.trainer", "from merlin.agents.merlin import Merlin"),
        ("merlin.training.trainer", "from merlin.agents import AGENTS"),
        ("merlin.training.trainer", "def f():\n    import merlin.run"),
        ("merlin.run", "from merlin import cli"),
        ("merlin.presets", "import merlin.tasks"),
        ("merlin", "from merlin.run import train"),
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
import merlin
assert world() == before and numpy.random.get_state()[1].tolist() == random_numbers
print(sorted(set(gymnasium.registry) - ids), {"torch", "matplotlib", "wandb", "minigrid"} & set(sys.modules))
"""


def test_importing_the_package_has_no_effects_but_the_tasks_ids():
    result = run(EFFECTS)
    assert (result.stdout, result.stderr) == (f"{sorted(tasks.TASKS)} set()\n", "")


def test_the_memory_stands_alone():
    result = run("import sys, merlin.memory; print(sorted(name for name in sys.modules if name.startswith('merlin')))")
    assert result.stdout == "['merlin', 'merlin.memory', 'merlin.moved', 'merlin.tasks']\n"


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
