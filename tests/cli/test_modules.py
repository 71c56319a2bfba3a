"""Agents and tasks of one's own, in a file beside which the command is called, as its console script is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from merlin.plugins import importable_from
from merlin.runs.run import load_config

ROOT = Path(__file__).parents[2]
AGENT = """
from dataclasses import dataclass
from merlin.agents.rl_lstm import RLLSTM, RLLSTMConfig

@dataclass(frozen=True, kw_only=True)
class Config(RLLSTMConfig):
    depth: int = 2

class Mine(RLLSTM):
    config_class = Config
"""
TASK = """
import gymnasium
from gymnasium import spaces

class Coin(gymnasium.Env):
    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return self.t % 2, float(action), self.t == 4, False, {}

gymnasium.register("Coin-v0", Coin)
"""
WRAPPER = """
import gymnasium

def shorter(env):
    return gymnasium.wrappers.TimeLimit(env, 3)
"""
SMALL = ["--set", "model.hidden_size=8", "model.depth=3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with an agent and a task, and in another the console script, as an installation writes it."""
    home = tmp_path_factory.mktemp("home")
    (home / "my_agent.py").write_text(AGENT)
    (home / "my_task.py").write_text(TASK)
    (home / "my_wrapper.py").write_text(WRAPPER)
    (home / "torch.py").write_text("raise RuntimeError('the wrong torch')")  # takes nobody's place
    (home / "bin").mkdir()
    (home / "bin" / "merlin").write_text("import sys\nfrom merlin.cli import main\nsys.exit(main())\n")
    return home


@pytest.fixture(scope="module")
def merlin(home):
    def run(*arguments, cwd=home):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
        command = [sys.executable, str(home / "bin" / "merlin"), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)

    return run


@pytest.fixture(scope="module")
def run_dir(merlin, home):
    arguments = ["my_task:Coin-v0", "--agent", "my_agent:Mine", "--num-envs", 4, "--steps", 200, "--wandb", "disabled"]
    trained = merlin("train", *arguments, "--wrap", "my_wrapper:shorter", *SMALL)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith("training my_agent:Mine on my_task:Coin-v0 until 200 steps")
    (path,) = (home / "runs").iterdir()
    return path


def test_an_agent_and_a_task_of_ones_own_are_trained(run_dir):
    assert run_dir.name.startswith("Coin-v0-Mine-seed1-")
    recorded = json.loads((run_dir / "config.json").read_text())
    assert (recorded["agent"], recorded["model"]["depth"]) == ("my_agent:Mine", 3)
    assert recorded["environment"]["wrappers"] == ["my_wrapper:shorter"]
    with importable_from(run_dir.parents[1]):
        assert type(load_config(run_dir).model) is sys.modules["my_agent"].Config
    del sys.modules["my_agent"]


def test_a_configuration_without_a_docstring_is_listed_without_one(merlin, home):
    listed = merlin("train", "my_task:Coin-v0", "--agent", "my_agent:Mine", "--help-settings", "--preset", "tmaze")
    assert listed.returncode == 0 and "\nmodel:\n  model.discount_factor: " in listed.stdout, listed.stderr


def test_a_run_directory_imports_from_the_working_directory_only_if_told(merlin, run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    resume = ["train", "--resume", copy, "--steps", 300, "--wandb", "disabled"]
    for arguments, place in ((["evaluate", copy], {"cwd": tmp_path}), (resume, {})):
        refused, where = merlin(*arguments, **place), "DIR" if place else "."
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        told = f"No module named 'my_agent': install it, or say where it lies with `--import-from {where}`.\n"
        assert refused.stderr.endswith(told)
    (tmp_path / "my_agent").mkdir()  # a folder that is no package, such as a run directory
    assert merlin("evaluate", copy, cwd=tmp_path).stderr.endswith("`--import-from DIR`.\n")
    resumed = merlin(*resume, "--import-from", ".")
    assert resumed.returncode == 0, resumed.stderr
    found = merlin("evaluate", run_dir, "--episodes", 4, "--json", "--import-from", run_dir.parents[1], cwd=tmp_path)
    assert json.loads(found.stdout)["episode_length_mean"] == 3  # and not 4, as without the wrapper


def test_python_m_imports_nothing_from_a_run_directory_that_it_is_started_in(run_dir, tmp_path):
    """Python itself looks for modules in the working directory first."""
    copy = shutil.copytree(run_dir, tmp_path / "run")
    for name in ("my_agent", "my_wrapper", "my_task"):
        (copy / f"{name}.py").write_text("open('RAN', 'w')\n")
    command, path = [sys.executable, "-m", "merlin", "evaluate", "."], {"PYTHONPATH": str(ROOT)}
    refused = subprocess.run(command, cwd=copy, env=os.environ | path, capture_output=True, text=True)
    assert refused.returncode == 1 and "No module named 'my_agent'" in refused.stderr
    assert not (copy / "RAN").exists()


def test_agents_of_ones_own_are_compared(merlin, home, tmp_path):
    entries = 'tasks = [{ task = "my_task:Coin-v0", steps = 200 }]\nagents = [{ agent = "my_agent:Mine", set = %s }]'
    (tmp_path / "what.toml").write_text(entries % '["num_envs=4", "model.depth=3"]' + "\nseeds = [1]\nepisodes = 4\n")
    compared = merlin(
        "compare", "what.toml", "--import-from", home, "--out", "out", "--wandb", "disabled", cwd=tmp_path
    )
    assert compared.returncode == 0, compared.stderr
    assert "| my_task:Coin-v0 | my_agent:Mine | 1 |" in compared.stdout
    assert (tmp_path / "out" / "my-task-Coin-v0_my-agent-Mine_seed1" / "evaluation.json").exists()
