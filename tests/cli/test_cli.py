import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merlin import cli
from merlin.agents import AGENTS
from merlin.cli.arguments import PRESETS
from merlin.runs.presets import DEFAULT_TASK, FAMILIES, preset
from merlin.runs.profiling import _Counter, profile
from merlin.runs.run import build_agent, build_environment, load_config
from merlin.training import checkpoint

ROOT = Path(__file__).parents[2]
SMALL = ["--num-envs", "8", "--set", "model.hidden_size=8", "model.policy_hidden_size=8", "model.latent_size=4"]


@pytest.fixture
def merlin(capsys):
    """Runs a command in this process; returns its status, standard output and standard error."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run of 512 steps; not to be changed."""
    path = tmp_path_factory.mktemp("cli") / "a run"
    assert cli.main(["train", "--steps", "512", "--run-dir", str(path), *SMALL]) == 0
    return path


def command(*arguments, **more):
    """Start the command as a user does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "merlin", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def one_sentence(text):
    return text.startswith("merlin") and text.count("\n") == 1 and "Traceback" not in text


def test_the_version_is_told(merlin):
    assert merlin("--version") == (0, f"merlin-agents {version('merlin-agents')}\n", "")


def test_help_is_instant():
    code = "import sys, merlin.cli\ntry: merlin.cli.main(['train', '--help'])\nfinally: print(sorted(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert process.returncode == 0 and process.stdout.startswith("usage: merlin train")
    assert not {"torch", "numpy", "gymnasium", "matplotlib"} & set(re.findall(r"'(\w+)'", process.stdout))


def test_help_tells_the_defaults_that_are_used(merlin, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # a narrow page would break words at their hyphens
    status, out, _ = merlin("train", "--help")
    out = " ".join(out.split())
    assert status == 0 and f"(default: {DEFAULT_TASK})" in out and ", ".join([*AGENTS][:2]) in out
    ours = preset()
    assert f"(default: by task; {ours.num_envs} for the default one)" in out
    assert f"(default: by task; {ours.steps / 1e6:g}e6 for the default one)" in out
    assert (ours.agent, ours.seed, ours.vectorization) == ("merlin", 1, "sync")
    assert merlin("--help")[0] == merlin("evaluate", "--help")[0] == merlin("watch", "--help")[0] == 0


def test_presets_are_named_and_the_nearest_is_told(merlin, monkeypatch):
    assert {*PRESETS} == {*FAMILIES} and PRESETS[-1] == "paper"
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("train", "profile"):
        assert ", ".join(PRESETS[:-1]) in " ".join(merlin(command, "--help")[1].split())
        status, _, err = merlin(command, "--preset", "papper")
        assert status == 2 and one_sentence(err) and "did you mean 'paper'?" in err
    helps = {command: " ".join(merlin(command, "--help")[1].split()) for command in ("train", "population")}
    defaults = {"train": ("merlin/MemoryGame-v0", "merlin"), "population": ("merlin/CaptureTheFlag-v0", "ftw")}
    for command, (task, agent) in defaults.items():
        assert f"imports the module first (default: {task})" in helps[command]
        assert f"imports the module first (default: {agent})" in helps[command]
    status, out, _ = merlin("train", "--preset", "paper", "--help-settings")
    assert status == 0 and "model.kl_cost: float | None = 1.0  [paper: 1]" in out
    assert "model.memory_size: int = 40  [paper: 40, second-hand]" in out


def test_settings_are_listed_with_type_value_and_meaning(merlin, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    status, out, _ = merlin("train", "--help-settings", "--env-kwargs", '{"pairs": 5}', "--set", "model.gae_lambda=0.5")
    lines = out.splitlines()
    assert status == 0 and max(map(len, lines)) <= 90
    assert any(line.endswith("  (from 1 to 1,048,576)") for line in lines), "ranges are told"
    lines = [line.partition("  (")[0] for line in lines]
    at = lines.index("  model.memory_size: int = 15  [paper: 40, second-hand]")
    assert lines[at + 1] == "      N, slots."
    assert "  model.gae_lambda: float = 0.5  [paper: 0.8, second-hand]" in lines
    assert "  training.unroll_length: int = 16  [paper: 24, second-hand]" in lines
    assert "  model.return_cost: float = 0.5  [paper: 0.04167, second-hand]" in lines
    assert "  model.encoder.image_features: int = 128  [paper: 500]" in lines
    assert not any(re.match(" *(task|agent|preset|env_kwargs)", line) for line in lines)
    groups = [line.partition(":")[0] for line in lines if re.match(r"[a-z.]+: ", line)]
    assert groups == ["run", "environment", "curriculum", "model", "model.encoder", "model.decoder", "training"]


@pytest.mark.parametrize("agent", AGENTS)
def test_what_a_setting_is_is_not_cut_in_mid_sentence(merlin, agent):
    _, out, _ = merlin("train", "--help-settings", "--agent", agent)
    texts = re.split(r"\n  [a-z]\S+: .*\n|\n\n", out)
    assert len(texts) > 30 and all(text.strip() == "" or text.rstrip().endswith(".") for text in texts), texts


def test_tasks_and_agents_have_a_line_each(merlin):
    status, out, _ = merlin("tasks")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[:2]] == [DEFAULT_TASK, "merlin/TMaze-v0"]
    assert "MiniGrid-MemoryS7-v0" in out
    status, out, _ = merlin("agents")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[: len(AGENTS)]] == list(AGENTS)


def test_train_leaves_a_whole_run_directory_and_says_what_to_do_next(merlin, tmp_path):
    path = tmp_path / "a run"
    status, out, err = merlin(
        "train", "--agent", "rl-lstm", "--steps", "5e2", "--seed", "3", "--run-dir", path, *SMALL[:4]
    )
    assert status == 0, err
    assert out.splitlines()[0] == (
        f"training rl-lstm on {DEFAULT_TASK} until 500 steps, 8 environments on cpu, seed 3; run directory {path}"
    )
    assert "env_steps" in err  # no terminal: one line for each report
    steps = int(checkpoint.steps(path)[-1].name.removeprefix("step-"))
    assert f"done after {steps} steps" in out and steps >= 500 and "the least that is learnt from" not in err
    returns = [row for row in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if row["episodes"]]
    episodes = sum(row["episodes"] for row in returns)
    assert 1 < len(returns) < episodes <= 100
    mean = sum(row["episodes"] * row["episode_return_mean"] for row in returns) / episodes
    assert f" s, mean return {mean:.2f} of the last {episodes} episodes\n" in out
    assert str(checkpoint.steps(path)[-1]) in out and str(path / "learning_curve.png") in out
    assert f"merlin evaluate '{path}'" in out and f"merlin watch '{path}'" in out and "--resume" not in out
    assert {entry.name for entry in path.iterdir()} >= {
        "config.json", "metrics.jsonl", "checkpoints", "learning_curve.png"
    }  # fmt: skip
    config = load_config(path)
    assert (config.agent, config.seed, config.num_envs, config.steps) == ("rl-lstm", 3, 8, 500)
    assert config.model.hidden_size == 8

    status, out, err = merlin("train", "--run-dir", path)
    assert (status, out) == (1, "") and one_sentence(err) and f"--resume {path}" in err


@pytest.mark.parametrize(("num_envs", "told"), [(1, "1 environment"), (2, "2 environments")])
def test_fewer_environments_than_parts_of_a_window_are_no_error(merlin, tmp_path, num_envs, told):
    assert preset("rl-lstm", "merlin/Memory-v0").training.minibatches > 2
    arguments = ["merlin/Memory-v0", "--agent", "rl-lstm", "--num-envs", num_envs, "--steps", 1]
    status, out, err = merlin("train", *arguments, "--run-dir", tmp_path / "run", "--wandb", "disabled")
    assert status == 0 and f", {told} on " in out and f" steps in each of {told}: the run ends" in err
    assert load_config(tmp_path / "run").training.minibatches == num_envs


def test_a_run_is_named_after_what_it_trains(merlin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = merlin("train", "merlin/TMaze-v0", "--steps", "1", "--env-kwargs", '{"length": 3}', *SMALL)
    assert status == 0, err
    (path,) = Path("runs").iterdir()
    assert re.fullmatch(r"TMaze-v0-merlin-seed1-\d{8}-\d{6}", path.name)
    assert load_config(path).env_kwargs == {"length": 3}


def test_a_run_goes_on_where_it_was_stopped(merlin, tmp_path):
    path = tmp_path / "run"
    arguments = ["--run-dir", path, "--max-seconds", "0.001", *SMALL]
    status, out, _ = merlin("train", "--steps", "400", *arguments)
    assert status == 0 and out.splitlines()[1].startswith("out of time after ")
    assert f"merlin train --resume {path}" in out
    status, out, _ = merlin("train", "--resume", path, "--steps", "600", "--set", "training.learning_rate=1e-4")
    assert status == 0 and out.splitlines()[1].startswith("done after ")
    config = load_config(path)  # what was changed holds for the next time too
    assert (config.steps, config.training.learning_rate) == (600, 1e-4)
    assert config.model.hidden_size == 8


def test_a_run_starts_from_another_runs_weights(merlin, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    source, path = Path(run_dir.name), tmp_path / "run"
    status, _, err = merlin(
        "train", "--steps", "8", "--from", source, "--from-checkpoint", "last", "--run-dir", path, *SMALL
    )
    assert status == 0 and f"starts from the last weights of {run_dir}, of 512 steps" in err
    assert "window, 16 steps in each of 8 environments: the run ends at 128 steps rather than 8\n" in err
    config = load_config(path)
    assert (config.started_from, config.started_from_checkpoint) == (str(run_dir), "last")
    status, _, err = merlin("train", "--from", source, "--run-dir", tmp_path / "other")
    assert status == 1 and one_sentence(err) and "needs the same agent, model settings and spaces, as with --set" in err
    assert "model.hidden_size=8" in err and not (tmp_path / "other").exists()
    status, _, err = merlin("train", "merlin/TMaze-v0", "--from", source, "--run-dir", tmp_path / "other", *SMALL)
    assert status == 1 and one_sentence(err) and "the action space: start from a run of a task like this one." in err
    assert f"but merlin/TMaze-v0 differs from {DEFAULT_TASK} of {run_dir} in entry" in err and "--set" not in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: COMMAND"),
        (["trian"], "'agents'): did you mean 'train'? (merlin --help tells more).\n"),
        (["evaluate", "x", "--checkpoint", "bets"], "'last'): did you mean 'best'? (merlin eva"),
        (["evaluate", "x", "--checkpoint", "zzz"], "(choose from 'best', 'last') (merlin eva"),
        (
            ["train", "--agnet", "merlin"],
            "no option --agnet: did you mean --agent? (merlin train --help tells more).\n",
        ),
        (
            ["train", "--lr", "3e-4"],
            "no option --lr: did you mean --set training.learning_rate=...? (merlin train --he",
        ),
        (["population", "--memory-sise=9"], "no option --memory-sise: did you mean --set model.memory_size=...? (merl"),
        (["train", "--gamma", "0.9"], "nor a setting of a name like that (merlin train --help-settings tells more)."),
        (["evaluate", "x", "--lr", "3"], "merlin evaluate: there is no option --lr (merlin evaluate --help tells"),
        (["train", DEFAULT_TASK, "again"], "there is nothing that takes 'again' (merlin train --help tells more)"),
        (["train", "--agent", "merlin.agents.agent:Agent"], "perceive, policy_parameters, value: add them.\n"),
        (["train", "--preset", "papper"], "did you mean 'paper'?\n"),
        (["train", "--agent", "merlyn"], "merlin, dreamer, ftw, rl-lstm, rl-mem"),
        (["train", "--steps", "many"], "--steps: must be a whole number"),
        (["train", "--steps", "0"], "--steps: must be a whole number"),
        (["train", "--steps", "1.5"], "--steps: must be a whole number"),
        (["train", "--steps", "inf"], "--steps: must be a whole number"),
        (["train", "--seed", "-1"], "--seed: must be a whole number from 0"),
        (["train", "--max-seconds", "nan"], "number of seconds above 0"),
        (["train", "--env-kwargs", "pairs=4"], "must be a JSON object"),
        (["train", "--env-kwargs", "[4]"], "must be a JSON object"),
        (["train", "--wandb", "maybe"], "--wandb: invalid choice"),
        (["train", "--set", "model.kl_csot=1"], "'model.kl_cost'? (merlin train --help-settings tells more).\n"),
        (
            ["train", "merlin/TMaze-v0", "--env-kwargs", '{"length": "five"}'],
            "The argument length of TMaze must be int, but 'five' came: correct it",
        ),
        (
            ["train", "--set", "model.memory_size=big"],
            "model.memory_size must be a whole number, but is 'big': take another",
        ),
        (["train", "--set", "model.memory_size"], "must be written path=value"),
        (["train", "--set", "task=CartPole-v1"], "use TASK"),
        (["train", "--set", "preset=paper"], "use TASK, --agent, --preset"),
        (["train", "--agent", "nowhere_to_be_found:Mine"], "say where it lies with `--import-from DIR`.\n"),
        (["train", "--resume", "x", "--preset", "paper"], "but --preset came"),
        (["train", "--set", "training.passes=2", DEFAULT_TASK], "must be written path=value"),
        (["train", DEFAULT_TASK, "--seed", "1", "--resume", "x"], "but TASK, --seed came"),
        (["train", "--run-dir", "y", "--num-envs", "3", "--resume", "x"], "but --num-envs, --run-dir came"),
        (["train", "--resume", "x", "--set", "model.top_k=3"], "but --set model.top_k=3 came"),
        (["train", "--resume", "x", "--from", "y"], "but --from came"),
        (["train", "--resume", "x", "--from-checkpoint", "last"], "but --from-checkpoint came"),
        (["evaluate"], "required: RUN_DIR"),
        (["evaluate", "x", "--episodes", "0"], "--episodes: must be a whole number"),
        (["watch", "x", "--out", "film.avi"], "must end in .gif, .mp4, .html or .png"),
        (["profile", "--seconds", "0"], "number of seconds above 0"),
        (["profile", "--trace", "nowhere/trace.json"], "directory that exists"),
        (["play"], "required: TASK"),
        (["play", DEFAULT_TASK, "--view", "below"], "--view: invalid choice"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(merlin, arguments, message):
    status, out, err = merlin(*arguments)
    assert (status, out) == (2, "")
    assert one_sentence(err) and message in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "merlin/MemoryGmae-v0"], "merlin/MemoryGame-v0"),
        (["train", "--env-kwargs", '{"pears": 4}'], "pears"),
        (["train", "--device", "abacus"], "'abacus'"),
        (["train", "--resume", "nowhere"], "There is no directory nowhere: give one that train made"),
        (["watch", "nowhere", "--out", "film.GIF"], "There is no directory nowhere: give one that train made"),
        (["train", "--from", "nowhere"], "nowhere: give one that train made"),
        (["evaluate", "nowhere"], "nowhere"),
        (["watch", "nowhere"], "nowhere"),
        (["profile", "merlin/MemoryGmae-v0"], "merlin/MemoryGame-v0"),
        (["play", "Pendulum-v1"], "action space is Discrete"),
        (["train", "--run-dir", "a file/run"], "a file/run"),
        (["population", "--run-dir", "a file/run"], "a file/run"),
        (["train", "--run-dir", "a file"], "a file is a file: choose another"),
        (["train", "--run-dir", "a file/run"], "a file is a file: choose another"),
        (["evaluate", "a file"], "A run directory must be a directory, but a file is a file: give one that train made"),
        (["train", "--resume", "a file"], "a file is a file: give one that train made"),
        (["compare", "merlin/TMaze-v0", "--out", "a file"], "into, but a file is a file: choose another"),
    ],
)
def test_what_goes_wrong_later_is_one_sentence_and_status_1(merlin, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    status, out, err = merlin(*arguments)
    assert (status, out) == (1, ""), "that a run begins is said once it does"
    assert one_sentence(err) and message in err
    assert list(tmp_path.iterdir()) == [tmp_path / "a file"]


def test_only_debug_shows_a_traceback(merlin, monkeypatch):
    def fail(_):
        raise RuntimeError("the\nsky fell")

    monkeypatch.setattr("merlin.cli.lists.list_agents", fail)
    assert merlin("agents") == (
        1, "", "merlin: unexpected RuntimeError: the sky fell: run again with --debug for the traceback.\n"
    )  # fmt: skip
    status, _, err = merlin("agents", "--debug")
    assert status == 1 and err.startswith("Traceback")
    status, _, err = merlin("evaluate", "nowhere", "--debug")
    assert status == 1 and err.startswith("Traceback")


def test_evaluation_is_one_json_object_and_repeatable(merlin, run_dir):
    status, out, _ = merlin("evaluate", run_dir, "--episodes", "10", "--json")
    result = json.loads(out)
    assert status == 0 and result.keys() >= {
        "episode_return_mean", "episode_return_std", "episode_length_mean", "episodes", "env_steps"
    }  # fmt: skip
    assert (result["episodes"], result["episode_length_mean"], result["env_steps"]) == (10, 9, 90)
    assert (result["checkpoint"], result["checkpoint_step"]) == ("last", 512)
    assert merlin("evaluate", run_dir, "--episodes", "10", "--json")[1] == out
    assert merlin("evaluate", run_dir, "--episodes", "10", "--json", "--seed", "99")[1] != out


def test_a_run_is_evaluated_on_other_settings_of_its_task(merlin, run_dir):
    own = merlin("evaluate", run_dir, "--episodes", "4", "--json")[1]
    assert merlin("evaluate", run_dir, "--episodes", "4", "--json", "--env-kwargs", '{"glyph_seed": 9}')[1] == own
    status, _, err = merlin("evaluate", run_dir, "--episodes", "4", "--env-kwargs", '{"pairs": 1}')
    assert status == 1 and one_sentence(err) and "pairs must be at least 2, but is 1" in err


def test_evaluation_is_a_table_beside_the_tasks_scores(merlin, run_dir):
    status, out, _ = merlin("evaluate", run_dir, "--episodes", "5", "--greedy", "--checkpoint", "last")
    assert status == 0
    assert out.splitlines()[0] == (
        f"merlin on {DEFAULT_TASK}, last checkpoint, of 512 steps, most probable actions, held-out seed 1"
    )
    assert re.search(r"\n  episode return +-?\d+\.\d+ ± \d", out) and re.search(r"\n +of oracle play +3\.000\n", out)
    assert len({line.rindex("  ") for line in out.splitlines()[1:]}) == 1


def test_a_run_of_another_device_is_read_and_goes_on_where_it_is_told(merlin, run_dir, tmp_path):
    """Where an agent ran is no part of what a run is."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"device": "cuda:99"}))
    assert load_config(copy) == load_config(run_dir)
    here = ("--device", "cpu")
    status, out, _ = merlin("evaluate", copy, "--episodes", "4", "--json", *here)
    assert status == 0 and out == merlin("evaluate", run_dir, "--episodes", "4", "--json")[1]
    assert merlin("watch", copy, "--out", tmp_path / "a.png", *here)[0] == 0
    assert merlin("train", "--resume", copy, "--steps", "600", "--wandb", "disabled", *here)[0] == 0
    assert json.loads((copy / "config.json").read_text())["device"] == "cpu"
    for command in (["evaluate"], ["watch"], ["analyse"], ["train", "--resume"]):
        status, _, err = merlin(*command, run_dir, "--device", "abacus")
        assert status == 1 and one_sentence(err) and "A device is auto, cpu, cuda or cuda:N, but 'abacus' came" in err


def test_evaluation_of_what_does_not_end_says_so(merlin, run_dir):
    status, out, _ = merlin("evaluate", run_dir, "--episodes", "3", "--max-steps", "5", "--json")
    result = json.loads(out)
    assert status == 0 and (result["episode_return_mean"], result["episode_length_mean"]) == (None, None)
    assert (result["episodes"], result["unfinished_episodes"], result["max_steps"]) == (0, 3, 5)
    assert isinstance(result["unfinished_return_mean"], float)
    _, out, _ = merlin("evaluate", run_dir, "--episodes", "3", "--max-steps", "5")
    assert "3 of 3 episodes had not ended after 5 steps and count nowhere above; those begun had earned" in out


def test_memory_that_there_is_not_is_a_sentence(merlin, monkeypatch):
    def allocate(_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("merlin.cli.lists.list_agents", allocate)
    status, _, err = merlin("agents")
    assert status == 1 and one_sentence(err) and "there is not enough memory for this" in err


def test_the_best_weights_are_evaluated_once_it_is_known_which_they_are(merlin, run_dir, tmp_path):
    """A run of few episodes does not know."""
    _, out, _ = merlin("evaluate", run_dir, "--episodes", "4")
    assert f"{DEFAULT_TASK}, last checkpoint" in out
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (weights,) = copy.glob("checkpoints/step-*/agent.safetensors")
    tensors = {name: x + 1 for name, x in load_file(weights).items()}
    save_file(tensors, copy / "checkpoints" / "best.safetensors", {"step": "8", "score": "1.0"})
    _, best, _ = merlin("evaluate", copy, "--episodes", "4")
    assert f"{DEFAULT_TASK}, best checkpoint, of 8 steps" in best and best.splitlines()[1:] != out.splitlines()[1:]
    _, last, _ = merlin("evaluate", copy, "--episodes", "4", "--checkpoint", "last")
    assert last == out


def test_evaluation_shows_another_memory_on_request(merlin, run_dir):
    _, out, _ = merlin("evaluate", run_dir, "--episodes", "10", "--json")
    own = json.loads(out)
    assert own.pop("memory") == "own"
    for way in ("zeroed", "frozen", "shuffled"):
        _, out, _ = merlin("evaluate", run_dir, "--episodes", "10", "--json", "--memory", way)
        result = json.loads(out)
        assert result.pop("memory") == way and result["episodes"] == 10 and result != own
    _, out, _ = merlin("evaluate", run_dir, "--episodes", "2", "--memory", "zeroed")
    assert out.startswith(f"merlin with its memory zeroed on {DEFAULT_TASK}, last checkpoint")
    status, _, err = merlin("evaluate", run_dir, "--episodes", "1", "--memory", "shuffled")
    assert status == 2 and "needs at least 2 environments" in err


def test_analyse_prints_the_path_of_its_report(merlin, run_dir, tmp_path):
    status, out, err = merlin("analyse", run_dir, "--episodes", "8", "--out", tmp_path / "found")
    assert status == 0 and out == f"{tmp_path / 'found' / 'analysis.md'}\n" and err.startswith("playing ...\n")
    report = (tmp_path / "found" / "analysis.md").read_text()
    assert "# merlin on merlin/MemoryGame-v0" in report and "last checkpoint, of 512 steps." in report
    status, _, err = merlin("analyse", tmp_path)
    assert status == 1 and f"A run directory holds a config.json, but {tmp_path} has none: give one that tr" in err
    status, _, err = merlin("analyse", run_dir.parent)
    assert status == 1 and f"{run_dir.parent} has none: give one that is in it, such as {run_dir}.\n" in err
    (step,) = (run_dir / "checkpoints").glob("step-*")
    for inside in (step, step / "agent.safetensors"):
        status, _, err = merlin("analyse", inside)
        assert status == 1 and err.endswith(f": give the one that it lies in, {run_dir}.\n")


def test_watch_writes_a_file_and_prints_its_path(merlin, run_dir, tmp_path):
    pytest.importorskip("merlin.viewer.watch")
    status, out, err = merlin("watch", run_dir, "--out", tmp_path / "episode.gif")
    assert status == 0, err
    assert err == f"merlin on {DEFAULT_TASK}, last checkpoint, of 512 steps\n"
    assert out == f"{tmp_path / 'episode.gif'}\n" and (tmp_path / "episode.gif").stat().st_size > 1000


def test_profile_tells_where_the_time_goes_and_leaves_nothing(merlin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = merlin("profile", "--seconds", 0.2, *SMALL)
    assert err.startswith(
        f"training merlin on {DEFAULT_TASK} for 0.2 s and at least five windows of 16 steps in each of 8"
    )
    assert status == 0 and out.startswith(f"merlin on {DEFAULT_TASK}, 8 environments, windows of 16 steps, cpu")
    for name in ("environment", "acting", "learning", "logging", "peak memory", "agent's state", "task's state"):
        assert re.search(rf"^ +{name} +[\d<]", out, re.MULTILINE), name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("agent", AGENTS)
def test_a_profile_adds_up(merlin, tmp_path, agent):
    trace = tmp_path / "trace.json"
    status, out, _ = merlin("profile", "--agent", agent, "--num-envs", 8, "--seconds", 0.2, "--json", "--trace", trace)
    result = json.loads(out)
    assert status == 0
    assert all(share > 0 for share in result["shares"].values()) and 0.9 < sum(result["shares"].values()) <= 1
    rate = result["steps_per_second"] * result["flops_per_step"] / result["product_flops_per_second"]
    assert result["utilization"] == pytest.approx(rate) and 0 < rate < 1
    assert list(result["operator_calls"]) == ["environment", "acting", "learning"] and min(
        result["operator_calls"].values()
    )
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"environment", "acting", "learning"} <= {event.get("name") for event in events}


def test_operator_calls_are_those_of_a_window_however_many_environments():
    """None is made for each environment, and each step of a window makes as many."""
    config = preset("rl-lstm", "merlin/TMaze-v0")
    short = replace(config, training=replace(config.training, unroll_length=8))
    long = replace(config, training=replace(config.training, unroll_length=24))
    few, many, longer = (
        profile(x, 0.1).operator_calls for x in (replace(short, num_envs=4), replace(short, num_envs=64), long)
    )
    for part, number in few.items():
        assert number == pytest.approx(many[part], rel=0.25)
        assert 1.5 * number < longer[part] <= 3.1 * number
    calls = _Counter()
    with calls:
        (torch.ones(2) + 1).exp_()
    assert calls.number == 3


def test_operations_are_counted():
    """Acting multiplies by each weight once, learning three times, but for the gradients of what is observed."""
    config = preset("rl-lstm")
    with build_environment(config) as environment:
        weights = sum(x.numel() for x in build_agent(config, environment).parameters() if x.ndim == 2)
    assert 2 * 3 * weights < profile(config, 0.2).flops_per_step < 2 * 4.2 * weights


def test_play_reads_keys_from_a_pipe():
    arguments = ["play", "merlin/MemoryGame-v0", "--env-kwargs", '{"pairs": 2}', "--seed", "1", "--view", "above"]
    out, err = command(*arguments, stdin=subprocess.PIPE).communicate("?4q", timeout=60)
    lines = out.splitlines()
    assert err == "" and [line.partition(":")[0] for line in lines[:2]] == [
        "episode 1 of merlin/MemoryGame-v0", "merlin/MemoryGame-v0"
    ]  # fmt: skip
    assert "find the pairs" in lines[1] and re.fullmatch(r"step 1: flip 4, reward 0; card \d; position 4", lines[3])


def test_an_interrupted_run_can_be_resumed(merlin, tmp_path):
    """By Ctrl-C; `runs.test_resume` and `environments.test_workers` send SIGTERM."""
    with command("train", "--run-dir", tmp_path / "run", "--set", "training.report_steps=1", *SMALL[3:]) as process:
        try:
            assert "env_steps" in next(line for line in process.stderr if "env_steps" in line)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted after " in out and f"merlin train --resume {tmp_path / 'run'}" in out
    done = int(checkpoint.steps(tmp_path / "run")[-1].name.removeprefix("step-"))
    status, out, _ = merlin("train", "--resume", tmp_path / "run", "--steps", done + 1)
    assert status == 0 and int(checkpoint.steps(tmp_path / "run")[-1].name.removeprefix("step-")) > done


def test_a_run_that_goes_on_has_more_steps_than_it_had_and_may_be_stepped_in_another_way(merlin, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    status, _, err = merlin("train", "--resume", copy, "--steps", "300", "--wandb", "disabled")
    assert status == 1 and "so --steps must be above 512, but is 300: raise it, or leave it out." in err
    assert load_config(copy) == load_config(run_dir), "a refused change is none"
    status, _, err = merlin("train", copy)
    assert (
        status == 1 and one_sentence(err) and f"is a run directory and no task: `merlin train --resume {copy}`" in err
    )
    assert merlin("train", "--resume", copy, "--vectorization", "async", "--wandb", "disabled")[0] == 0
    assert load_config(copy).vectorization == "async"


def test_a_command_interrupted_before_it_has_anything_to_save_says_so(merlin, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("merlin.cli.lists.list_agents", interrupt)
    assert merlin("agents") == (130, "", "merlin: interrupted.\n")


def test_statuses_reach_the_shell_and_a_reader_that_leaves_is_no_error(tmp_path):
    failing, misused = command("evaluate", tmp_path / "nowhere"), command("train", "--steps", "x")
    reader, writer = os.pipe()
    os.close(reader)
    left = subprocess.Popen(
        [sys.executable, "-m", "merlin", "tasks"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert left.communicate(timeout=60)[1] == "" and left.returncode == 1
    assert one_sentence(failing.communicate(timeout=60)[1]) and failing.returncode == 1
    assert one_sentence(misused.communicate(timeout=60)[1]) and misused.returncode == 2
