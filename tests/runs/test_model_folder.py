"""An exported agent: one folder that loads and scores as the run does, in which no training goes on."""

import io
import json
import shlex

import pytest

import merlin
from merlin.cli import main
from merlin.errors import MerlinError
from merlin.runs.configure import configure
from merlin.runs.model_folder import command_of

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


def test_a_file_in_the_folders_place_is_told(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(run.run_dir), "--out", str(tmp_path / "file"), "--episodes", "2"]) == 1
    assert capsys.readouterr().err.endswith("file must be writable, but File exists: choose another --out.\n")


def test_the_command_of_the_card_has_the_same_configuration(run):
    config = run.agent.config
    words = shlex.split(command_of(config))
    options = dict(zip(words[3:-1:2], words[4::2], strict=False))
    again = configure(
        words[2], options["--agent"], preset_name=options["--preset"], env_kwargs=json.loads(options["--env-kwargs"]),
        set=words[words.index("--set") + 1 :], steps=int(options["--steps"]), seed=int(options["--seed"]),
        num_envs=int(options["--num-envs"]),
    )  # fmt: skip
    assert again == config


def test_what_a_folder_is_not_is_told(run, tmp_path):
    folder = run.agent.save(tmp_path / "folder", episodes=0)
    with pytest.raises(MerlinError, match="in which no training can go on"):
        merlin.train(resume=folder)
    with pytest.raises(MerlinError, match="is all there is"):
        merlin.load(folder, "last")
    with pytest.raises(MerlinError, match="holds a run: choose another out"):
        run.agent.save(run.run_dir)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(MerlinError, match="must be whole"):
        merlin.load(folder)
