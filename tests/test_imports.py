"""Imports point downwards, and importing has no effects."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import merlin
import tasks

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("merlin", "tasks")
    for path in sorted((ROOT / package).rglob("*.py"))
}

_PURE = ["merlin.errors", "merlin.distributed", "merlin.experience", "merlin.objectives"]
_PARTS = [*_PURE, "merlin.memory", "merlin.latents", "merlin.networks"]
_AGENT = [*_PARTS, "merlin.agents.agent", "merlin.agents.actor_critic"]
_TRAINING = [*_PARTS, "merlin.agents.agent", "merlin.environments", "merlin.training"]
_RUNS = [*_TRAINING, "merlin.agents", "merlin.runs"]
MAY_IMPORT = {
    "merlin.errors": [],
    "merlin.version": [],
    "merlin.plugins": ["merlin.errors"],
    "merlin.distributed": ["merlin.errors"],
    "merlin.memory": ["merlin.memory"],
    "merlin.latents": [],
    "merlin.objectives": _PURE,
    "merlin.experience": [],
    "merlin.networks": ["merlin.errors", "merlin.distributed", "merlin.networks"],
    "merlin.agents": _AGENT,
    "merlin.agents.merlin": [*_AGENT, "merlin.agents.merlin"],
    "merlin.agents.merlin.predictor": _PARTS,
    "merlin.agents.__init__": ["merlin.agents.agent", "merlin.agents.registry"],
    "merlin.agents.registry": [*_AGENT, "merlin.agents", "merlin.plugins"],
    "merlin.environments": ["merlin.errors", "merlin.plugins", "merlin.networks.spaces", "merlin.environments"],
    "merlin.training": _TRAINING,
    "merlin.runs": _RUNS,
    "merlin.runs.settings": ["merlin.errors"],
    "merlin.runs.monitor": [*_RUNS, "merlin.viewer.watch"],
    "merlin.viewer": [*_RUNS, "merlin.viewer"],
    "merlin.analysis": [*_RUNS, "merlin.viewer", "merlin.analysis"],
    "merlin.experiments": [*_RUNS, "merlin.experiments"],
    "merlin.cli.arguments": [],
    "merlin.cli.output": [],
    "merlin.cli": [
        *_RUNS,
        "merlin.plugins",
        "merlin.viewer",
        "merlin.analysis",
        "merlin.experiments",
        "merlin.cli",
    ],
    "merlin.__main__": ["merlin.cli"],
    "merlin.__init__": ["merlin.moved"],
    "merlin.moved": [],
    "tasks": ["tasks"],
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
    return {name for name in found if name.partition(".")[0] in ("merlin", "tasks")}


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
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    if name == "merlin":  # what it tells type checkers of, it imports when asked
        tree.body = [node for node in tree.body if not _only_for_types(node)]
    assert forbidden(name, imports(tree)) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("merlin.memory", "import merlin.errors"),
        ("merlin.agents.rl_mem", "from merlin.agents.merlin import MerlinConfig"),
        ("merlin.agents.rl_mem", "from merlin.agents import merlin"),
        ("merlin.training.trainer", "from merlin.agents.merlin import Merlin"),
        ("merlin.training.trainer", "from merlin.agents import AGENTS"),
        ("merlin.training.trainer", "def f():\n    import merlin.runs.run"),
        ("merlin.training.play", "from merlin.viewer.episodes import record_episode"),
        ("merlin.environments.batch", "from merlin.training.play import play"),
        ("merlin.viewer.watch", "from merlin.analysis.recording import gather"),
        ("merlin.runs.run", "from merlin import cli"),
        ("merlin.runs.presets", "import tasks.tmaze"),
        ("merlin", "from merlin.runs.run import train"),
        ("tasks.tmaze", "from merlin.errors import MerlinError"),
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
    own = sorted(tasks.TASKS)
    installed = run("import gymnasium; print('merlin/TMaze-v0' in gymnasium.registry)").stdout == "True\n"
    for package, ids in (("merlin", []), ("tasks", [] if installed else own)):
        result = run(EFFECTS.format(package=package))
        assert (result.stdout, result.stderr) == (f"{ids} set()\n", "")


def test_the_memory_stands_alone():
    result = run("import sys, merlin.memory; print(sorted(name for name in sys.modules if name.startswith('merlin')))")
    found = ast.literal_eval(result.stdout)
    assert [name for name in found if longest(name, ["merlin.memory"]) is None] == ["merlin", "merlin.moved"]


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
