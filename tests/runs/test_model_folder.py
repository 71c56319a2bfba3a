"""An exported agent: one folder that loads and scores as the run does, in which no training goes on."""

import io
import json
import re
import shlex
from dataclasses import replace

import gymnasium
import pytest

import merlin
from merlin.cli import main
from merlin.errors import MerlinError
from merlin.runs.directory import load_config
from merlin.runs.model_folder import command_of, write_card
from merlin.training.checkpoint import Best

SMALL = {"num_envs": 2, "device": "cpu", "stream": io.StringIO()}
SET = {"training.unroll_length": 4, "model.hidden_size": 8, "training.minibatches": 1}
TASK = "merlin/TMaze-v0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    return merlin.train(TASK, out, agent="rl-lstm", steps=16, seed=3, env_kwargs={"length": 3}, set=SET, **SMALL)


def test_a_folder_loads_scores_and_starts_runs_as_the_run_does(run, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert main(["export", str(run.run_dir), "--out", str(folder), "--episodes", "6"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    agent, scores = merlin.load(folder), run.evaluate(episodes=6)
    assert agent.weights.step == 16 and agent.evaluate(episodes=6) == scores
    assert main(["evaluate", str(folder), "--episodes", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episode_return_mean"] == scores["episode_return_mean"]
    card = (folder / "README.md").read_text()
    assert f"| episode return mean | {scores['episode_return_mean']:.3f} |" in card and "trained for 16 env" in card
    assert "| memoryless play's return | 0.500 |" in card and "| oracle play's return | 1.000 |" in card
    started = merlin.train(
        TASK,
        tmp_path / "new",
        agent="rl-lstm",
        steps=8,
        env_kwargs={"length": 3},
        set=SET,
        started_from=folder,
        **SMALL,
    )
    assert started.env_steps == 8
    assert (agent.save(tmp_path / "again", episodes=0) / "README.md").read_text().count("No held-out episodes") == 1


@pytest.mark.parametrize(
    "chosen_by, words",
    [("comparison", "the mean return of 8 episodes there"), ("evaluation", "in self-play points of 8 episodes there")],
)
def test_the_card_says_by_what_its_weights_were_chosen(run, chosen_by, words):
    card = write_card(run.agent.agent, run.agent.config, Best(16, 0.5, chosen_by, 8), None)
    assert "by their score of 0.500, the mean return" in card and f"{words}." in card
    assert ("self-play" in card) == (chosen_by == "evaluation")


@pytest.mark.parametrize(("step", "is_told"), [(8, True), (16, False)])
def test_the_card_says_of_how_many_steps_its_weights_are(run, step, is_told):
    """Its command is of all 16."""
    card = write_card(run.agent.agent, run.agent.config, Best(step, 0.5), None)
    assert ("These weights are those of 8 steps of the 16." in card) == is_told and "--steps 16" in card


def test_a_file_in_the_folders_place_is_told(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(run.run_dir), "--out", str(tmp_path / "file"), "--episodes", "2"]) == 1
    assert capsys.readouterr().err.endswith("file is a file: choose another --out.\n")


def test_the_card_of_what_is_of_a_module_says_that_it_must_be_found(run):
    weights = Best(16, 0.5)
    assert "merlin evaluate FOLDER\n" in write_card(run.agent.agent, run.agent.config, weights, None)
    for config in (replace(run.agent.config, agent="mine:Agent"), replace(run.agent.config, task="mine:Task-v0")):
        assert "merlin evaluate FOLDER --import-from DIR" in write_card(run.agent.agent, config, weights, None)


def test_the_command_of_the_card_trains_with_the_same_configuration(run, tmp_path):
    more = {"curriculum.argument": "length", "curriculum.values": [2], "curriculum.until_steps": 8}
    more |= {"environment.kinds.observation": "vector", "environment.step_seconds": 9.0}
    first = merlin.train(TASK, tmp_path / "first", agent="rl-lstm", steps=16, env_kwargs={"length": 3},
                         set=SET | more, started_from=run.run_dir, started_from_checkpoint="last", **SMALL)  # fmt: skip
    for config in (run.agent.config, first.agent.config):
        words = shlex.split(command_of(config))
        again = tmp_path / str(config.started_from is None)
        assert main([*words[1:], "--run-dir", str(again), "--device", "cpu", "--wandb", "disabled"]) == 0
        assert load_config(again) == config


@pytest.mark.usefixtures("steps_take_as_long")
def test_the_card_of_what_was_passed_has_a_call_in_place_of_a_command(tmp_path, monkeypatch):
    made = lambda **settings: gymnasium.make(TASK, **settings)  # noqa: E731
    run = merlin.train(made, tmp_path / "first", agent="rl-lstm", steps=16, seed=3, env_kwargs={"length": 3},
                       set=SET, **SMALL)  # fmt: skip
    card = (run.agent.save(tmp_path / "folder", episodes=0) / "README.md").read_text()
    assert "merlin train" not in card
    (call,) = re.findall(r"^merlin\.train\(env, .*$", card, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    again = eval(call, {"merlin": merlin, "env": made})
    assert again.agent.config == replace(run.agent.config, task=again.agent.config.task)


def test_what_a_folder_is_not_is_told(run, tmp_path):
    folder = run.agent.save(tmp_path / "folder", episodes=0)
    with pytest.raises(MerlinError, match="in which no training can go on"):
        merlin.train(resume=folder)
    with pytest.raises(MerlinError, match="is all there is"):
        merlin.load(folder, "last")
    with pytest.raises(MerlinError, match="holds a run: choose another out"):
        run.agent.save(run.run_dir)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(MerlinError, match=r"holds a README\.md that is not an agent's: choose another out"):
        run.agent.save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    other = merlin.LoadedAgent(run.agent.agent, 0, replace(run.agent.config, seed=4), run.agent.weights)
    with pytest.raises(MerlinError, match=r"holds an agent of another run, which differs in seed: choose another out"):
        other.save(folder)
    assert load_config(folder).seed == 3
    longer = merlin.LoadedAgent(run.agent.agent, 0, replace(run.agent.config, steps=999), run.agent.weights)
    assert load_config(longer.save(folder, episodes=0)).steps == 999  # the same run, gone on with
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.safetensors").write_text("theirs")
    with pytest.raises(MerlinError, match=r"a model\.safetensors of which nothing tells that it is this run's: choose"):
        run.agent.save(theirs)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(MerlinError, match="must be whole"):
        merlin.load(folder)
