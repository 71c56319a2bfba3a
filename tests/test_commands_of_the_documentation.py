"""Every command that README and docs print runs, shrunk by rule, or has a reason why it does not run here."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from merlin.cli import main, parse_arguments
from merlin.environments.sight import Sight
from merlin.tasks.capture_the_flag.rules import EVENTS
from tests.test_documentation import ROOT, TEXTS, ids_forgotten, named_files, shell_blocks
from tests.test_metrics_page import undefined

NOT_RUN = {
    r"python3\.11 -m venv |pip install |git ": "sets up a machine",
    r"pytest|\.ci/run": "is the tests themselves",
    r"python benchmarks/": "measures, for minutes or hours",
    r"python examples/": "runs in tests/test_examples.py",
    r"torchrun ": "starts processes, as tests/runs/test_distributed.py does",
    r"merlin ray ": "runs in tests/runs/test_ray.py, where Ray is installed",
    r"wandb ": "needs an account",
    r"mkdocs serve": "serves until it is stopped; .ci/run builds the site",
    r"merlin play ": "waits for keys, which tests/viewer/test_play.py sends",
    r"merlin export .*--format ": "runs in tests/runs/test_export.py",
    r"merlin .*--tensorboard": "runs in tests/runs/test_tensorboard.py, where TensorBoard is installed",
}
"""Beginnings of lines, and why these are not run here. A block of another kind says it in a comment before it."""

SMALL = [
    "--num-envs",
    "4",
    "--wandb",
    "disabled",
    "--set",
    "training.unroll_length=4",
    "training.evaluation_episodes=1",
]
SIZES = {
    "profile": ["--seconds", "0.1"],
    "evaluate": ["--episodes", "4"],
    "analyse": ["--episodes", "4"],
    "export": ["--episodes", "4"],
    "tournament": ["--games", "2", "--env-kwargs", '{"max_steps": 4}'],
}


def commands(page: str) -> list[str]:
    """Return the lines of a page's blocks of commands that are to run."""
    lines = [line for reason, block in shell_blocks(TEXTS[page]) if not reason for line in block.splitlines()]
    return [command for line in lines if (command := re.split(r"\s+#", line)[0].strip())]


def reason(command: str) -> str | None:
    return next((why for begins, why in NOT_RUN.items() if re.match(begins, command)), None)


RUN = {page: found for page in TEXTS if (found := [command for command in commands(page) if not reason(command)])}


def test_every_command_is_of_merlin_or_has_a_reason():
    others = [command for found in RUN.values() for command in found if not re.match("(pip .* && )?merlin ", command)]
    assert others == [], "name a reason: <!-- not run: ... --> before the block"
    assert sum(map(len, RUN.values())) >= 60


class Shrunk:
    """Runs commands with few steps, environments and episodes; what was run with the same words is not run again."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.done, self.planned = directory, set(), []

    def run(self, *arguments: str) -> None:
        if arguments in self.done and "--run-dir" not in arguments:
            return
        self.done.add(arguments)
        assert main(list(arguments)) == 0, shlex.join(arguments)

    def shared(self, name: str, *arguments: str) -> str:
        """Return the directory of a run that is made once."""
        path = self.directory / name
        if not path.exists():
            self.run(*arguments, "--run-dir", str(path))
        return str(path)

    def run_dir(self, arguments: list[str], page: str) -> str:
        """Return a run that a command with RUN_DIR can be about."""
        if arguments[0] in ("tournament", "population"):
            small = ["--agents", "2", "--num-envs", "8", "--steps", "64", "--set", "training.unroll_length=4"]
            task = ["merlin/CaptureTheFlag-v0", "--env-kwargs", '{"size": 7, "max_steps": 12}']
            return self.shared("population", "population", *task, *small)
        if arguments[0] == "export":
            return self.shared("cards", *shrink(["train", "merlin/MemoryGame-v0"]))
        if "--from" in arguments:
            at = arguments.index("--from")
            known = [x for x in arguments[:at] if x != "RUN_DIR"]
            return self.shared(f"start-{len(known)}", *shrink(known))
        is_of_the_flag = page == "docs/capture_the_flag.md" or any("opponents" in x for x in arguments)
        if is_of_the_flag and arguments[0] != "analyse":
            agent = "ftw" if page == "docs/ftw.md" else "rl-lstm"
            task = ["merlin/CaptureTheFlag-v0", "--env-kwargs", '{"size": 7, "max_steps": 12}']
            return self.shared(f"flag-{agent}", *shrink(["train", *task, "--agent", agent]))
        return self.shared("maze", *shrink(["train", "merlin/TMaze-v0", "--env-kwargs", '{"length": 3}']))


def shrink(arguments: list[str]) -> list[str]:
    """Return a command with less to do: later options win. Of the paper's sizes the settings alone are made."""
    name, more = arguments[0], []
    if name == "train" and "paper" in arguments:
        more = ["--help-settings"]
    elif name == "train" and "--resume" in arguments:
        more = ["--steps", "48"]
    elif name == "train" and "--help-settings" not in arguments:
        more = ["--steps", "32", *SMALL]
        more += ["model.prefill_steps=1_000_000"] if "dreamer" in arguments else []  # acts, and learns nothing yet
        more += ["model.transport_min_steps=1"] if any("value_transport" in x for x in arguments) else []
    elif name == "population" and "--resume" not in arguments:
        more = ["--agents", "2", "--num-envs", "8", "--steps", "64", "--set", "training.unroll_length=4"]
    elif name == "analyse":
        return [name, arguments[1], *SIZES[name]]  # the same of any number of episodes and checkpoint
    return [*arguments, *more, *SIZES.get(name, [])]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    return Shrunk(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A working directory with the examples and the modules that pages name; what they register is forgotten."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for path in ((ROOT / "tests" / "documented").glob("*.py"), (ROOT / "examples").glob("*_of_your_own.py")):
        for module in path:
            (tmp_path / module.name).write_text(module.read_text(encoding="utf-8"), encoding="utf-8")
    modules = set(sys.modules)
    with ids_forgotten():
        yield tmp_path
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


@pytest.mark.parametrize("page", RUN)
def test_commands_run(page, shrunk, at_home, monkeypatch, capsys):
    for name, text in named_files(TEXTS[page]).items():
        (at_home / name).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    monkeypatch.setattr("merlin.runs.learning_curve.plot_learning_curve", lambda *_: None)  # which takes longer
    monkeypatch.setattr("merlin.runs.presets.look", lambda *_: Sight())  # which starts a process
    monkeypatch.setattr("merlin.runs.profiling.measure_products", lambda *_: 1e9)
    monkeypatch.setattr("merlin.experiments.results.reference_scores", lambda *_: {})  # which plays for minutes
    monkeypatch.setattr("merlin.experiments.launcher.compare", lambda runs, *_, **__: shrunk.planned.append(runs) or [])
    for command in RUN[page]:
        arguments = shlex.split(command[command.index("merlin ") :])[1:]
        if "RUN_DIR" in arguments:
            path = shrunk.run_dir(arguments, page)
            arguments = [path if x == "RUN_DIR" else x for x in arguments]
        before = len(shrunk.planned)
        shrunk.run(*shrink(arguments))
        for first, *_ in shrunk.planned[before:]:  # the runs that processes would make
            assert parse_arguments(["train", *first.arguments()]).command == "train"


def test_a_population_reports_what_the_page_of_metrics_defines(shrunk, at_home):
    path = Path(shrunk.run_dir(["population"], ""))
    events = tuple(name.lower().replace(" ", "_") for name in EVENTS)
    for file in (path / "metrics.jsonl", *path.glob("agents/*/metrics.jsonl")):
        row = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
        numbers = json.loads((path / "population.json").read_text(encoding="utf-8"))["run"]
        unknown = undefined(row, ["image", "direction", "score", "status"], events)
        assert unknown <= {*numbers["model"], *numbers["training"]}
