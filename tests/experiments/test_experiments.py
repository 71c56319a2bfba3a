"""Comparisons: what is run, that nothing is run twice or lost, and the statistics of what was found."""

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from merlin import cli
from merlin.agents.actor_critic import RecurrentConfig
from merlin.agents.rl_mem import RLMem, RLMemConfig
from merlin.errors import MerlinError
from merlin.experiments.results import bootstrap_interval, interquartile_mean, legend, plot_comparison, table
from merlin.experiments.spec import (
    RESULT,
    AgentSpec,
    Run,
    TaskSpec,
    choose,
    last_metrics,
    make_comparison,
    plan,
    read_comparison,
)
from merlin.runs.presets import DEFAULT_TASK
from merlin.runs.run import write_config
from merlin.training import evaluation
from tests.experiments.in_process import call_runs_in_process

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_process(monkeypatch, no_pictures):
    """Runs that are no processes of their own and draw nothing."""
    call_runs_in_process(monkeypatch)


@dataclass(frozen=True, kw_only=True)
class RenamedConfig(RecurrentConfig):
    """Settings of a memory by other names than RL-MEM's."""

    slots: int = 6


class Renamed(RLMem):
    config_class = RenamedConfig

    def __init__(self, spaces, action_space, config):
        super().__init__(spaces, action_space, RLMemConfig(memory_size=config.slots, latent_size=8, hidden_size=8))


SMALL = ["--steps", "512", "--episodes", "8", "--wandb", "disabled", "--set", "model.hidden_size=8"]


@pytest.mark.usefixtures("in_process")
def test_a_comparison_is_run_once_and_its_rows_are_its_runs(tmp_path, capsys):
    arguments = ["compare", DEFAULT_TASK, "--agents", "merlin", "rl-lstm", "--seeds", "3", *SMALL, "num_envs=32"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "2 runs, 0 of them done" in err and "[2/2]" in err and err.count("return") == 2
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["agent"], row["seed"]) for row in rows} == {("merlin", "3"), ("rl-lstm", "3")}
    for row in rows:
        run_dir = tmp_path / f"merlin-MemoryGame-v0_{row['agent']}_seed{row['seed']}"
        found = json.loads((run_dir / RESULT).read_text())
        assert float(row["episode_return_mean"]) == found["episode_return_mean"] and found["episodes"] == 8
        assert float(row["of_gap"]) == pytest.approx((found["episode_return_mean"] - 1.6) / (3 - 1.6))
        config = json.loads((run_dir / "config.json").read_text())
        assert config["seed"] == int(row["seed"]) and config["model"]["hidden_size"] == 8 and config["steps"] == 512
        assert config["num_envs"] == 32
    assert "\nScores are of 8 held-out episodes of each run's last weights.\n" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.md").read_text() in out and (tmp_path / "curves.png").stat().st_size > 1000

    with open(tmp_path / "curves.csv", encoding="utf-8") as file:
        reports = list(csv.DictReader(file))
    for row in rows:
        path = tmp_path / f"merlin-MemoryGame-v0_{row['agent']}_seed3" / "metrics.jsonl"
        returns = [json.loads(line).get("episode_return_mean") for line in path.read_text().splitlines()]
        shown = [float(x["episode_return_mean"]) for x in reports if x["agent"] == row["agent"]]
        assert [x["env_steps"] for x in reports if x["agent"] == row["agent"]][-1] == row["env_steps"]
        assert shown == pytest.approx([x for x in returns if x is not None], rel=1e-5) and shown

    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")}
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "2 of them done" in capsys.readouterr().err
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")}

    for *changed, wrong in (
        ["--steps", "600", "of another configuration, with steps 512 rather than 600: choose"],
        ["--episodes", "9", "with episodes 8, but 9 came"],
        ["--max-seconds", "60", "with max_seconds None, but 60.0 came"],
    ):
        assert cli.main([*arguments, *changed, "--out", str(tmp_path)]) == 1
        assert f"holds a run {wrong}" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_runs_go_on_where_they_get_more_time(tmp_path, capsys):
    arguments = ["compare", DEFAULT_TASK, "--agents", "rl-mem", "--seeds", "3", "--wandb", "disabled"]
    arguments += ["--episodes", "4", "--steps", "100000000", "--memory", "zeroed", "--set", "num_envs=8"]
    found = []
    for seconds in ("0.5", "1"):
        assert cli.main([*arguments, "--max-seconds", seconds, "--out", str(tmp_path)]) == 0
        assert "1 run, 0 of them done" in capsys.readouterr().err
        (run_dir,) = tmp_path.glob("*_seed3")
        found.append(json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1]))
        result = json.loads((run_dir / RESULT).read_text())
        assert result["max_seconds"] == float(seconds) and "zeroed" in result
        assert float(seconds) <= found[-1]["wall_seconds"] < float(seconds) + 20
    assert found[1]["env_steps"] > found[0]["env_steps"] > 0
    assert cli.main([*arguments, "--max-seconds", "0.7", "--out", str(tmp_path)]) == 1
    assert "holds a run with max_seconds 1.0, but 0.7 came" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_what_is_damaged_or_outdated_is_found_and_costs_the_others_nothing(tmp_path, capsys):
    arguments = ["compare", DEFAULT_TASK, "--agents", "rl-mem", "rl-lstm", "--seeds", "3", *SMALL, "--jobs", "1"]
    arguments += ["--max-seconds", "600", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    results = {path.parent.name: path for path in tmp_path.glob(f"*/{RESULT}")}
    before = {name: json.loads(path.read_text()) for name, path in results.items()}
    for name, path in results.items():  # as if the run had gone on since
        path.write_text(json.dumps(before[name] | {"checkpoint_step": 1, "episode_return_mean": 99.0}))
    (damaged,) = tmp_path.glob("*rl-mem*/checkpoints/step-*/trainer.pt")
    damaged.write_bytes(b"cut")
    capsys.readouterr()
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert "2 runs, 0 of them done" in err and "1 of 2 runs failed" in err and "trainer.pt" in err
    assert "and resume, which trains from the beginning" in err, "the sentence is told to its end"
    assert "| rl-lstm |" in out and "rl-mem" not in out
    for name, path in results.items():
        assert (json.loads(path.read_text()) == before[name]) == ("rl-lstm" in name)


@pytest.mark.usefixtures("in_process")
def test_memories_are_changed_in_what_was_already_compared(tmp_path, capsys):
    arguments = ["compare", DEFAULT_TASK, "--agents", "rl-mem", "rl-lstm", "--seeds", "3", *SMALL]
    arguments += ["--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "zeroed" not in capsys.readouterr().out
    (run_dir,) = tmp_path.glob("*rl-mem_seed3")
    lost = run_dir / "checkpoints"
    lost.rename(tmp_path / "elsewhere")
    before = (run_dir / RESULT).read_text()
    assert cli.main([*arguments, "--memory", "zeroed", "shuffled"]) == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err and (run_dir / RESULT).read_text() == before
    (tmp_path / "elsewhere").rename(lost)
    made = {path: path.stat().st_mtime_ns for path in (run_dir / "metrics.jsonl", *lost.glob("*"))}
    assert cli.main([*arguments, "--memory", "zeroed", "shuffled", "--only", "rl-mem"]) == 0
    out, err = capsys.readouterr()
    assert "1 run, 0 of them done" in err and "| seconds | zeroed | shuffled |" in out and "| rl-lstm |" in out
    assert made == {path: path.stat().st_mtime_ns for path in made}
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        row, without = csv.DictReader(file)
    assert without["zeroed"] == without["shuffled"] == row["frozen"] == ""
    for way in ("zeroed", "shuffled"):
        assert cli.main(["evaluate", str(run_dir), *"--checkpoint last --episodes 8 --json --memory".split(), way]) == 0
        assert json.loads(capsys.readouterr().out)["episode_return_mean"] == float(row[way])


@pytest.mark.usefixtures("in_process")
def test_memories_are_changed_as_far_as_they_can_be_whatever_the_settings_are_called(tmp_path, capsys):
    """FTW's writes twice a step, or there is none; that of an agent whose settings have other names is changed too."""
    path = tmp_path / "few.toml"
    small = ["num_envs=8", "training.unroll_length=8", "training.evaluation_episodes=8"]
    agents = [{"agent": "ftw", "name": "memory"}, {"agent": "ftw", "name": "none", "set": ["model.memory_size=0"]}]
    agents += [{"agent": f"{__name__}:Renamed", "name": "renamed"}]
    agents = [entry | {"set": [*entry.get("set", ()), *small]} for entry in agents]
    path.write_text(
        f"seeds = [3]\nepisodes = 4\nmemory = ['shuffled', 'zeroed']\n"
        f"tasks = [{{ task = '{DEFAULT_TASK}', steps = 64 }}]\n"
        + "".join(
            f"[[agents]]\nagent = '{x['agent']}'\nname = '{x['name']}'\nset = {json.dumps(x['set'])}\n" for x in agents
        )
    )
    arguments = ["compare", str(path), "--jobs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err.count("its memory cannot be shuffled") == 1
    with open(tmp_path / "out" / "results.csv", encoding="utf-8") as file:
        known = {row["agent"]: (row["zeroed"] != "", row["shuffled"] != "") for row in csv.DictReader(file)}
    assert known == {"memory": (True, False), "none": (False, False), "renamed": (True, True)}
    assert cli.main(arguments) == 0 and "3 runs, 3 of them done" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_what_died_before_its_first_checkpoint_begins_anew(tmp_path, capsys):
    arguments = ["compare", DEFAULT_TASK, "--agents", "rl-lstm", "--seeds", "3", *SMALL, "--out", str(tmp_path)]
    entries = {"tasks": [{"task": DEFAULT_TASK, "steps": 512}], "agents": [{"agent": "rl-lstm", "set": SMALL[-1:]}]}
    (run,) = plan(make_comparison(entries | {"seeds": [3], "max_seconds": 600.0}), tmp_path)
    write_config(run.config(), run.run_dir)
    (run.run_dir / "checkpoints").mkdir()
    (run.run_dir / "checkpoints" / "best.safetensors").write_bytes(b"of a dead run")
    (run.run_dir / "metrics.jsonl").write_text('{"env_steps": 256, "wall_seconds": 1e9}\n')
    assert cli.main([*arguments, "--max-seconds", "600"]) == 0
    assert run.result() and 512 <= last_metrics(run.run_dir)["env_steps"] < 10_000
    assert capsys.readouterr().err.count("failed") == 0


def test_two_comparisons_do_not_write_to_one_directory(tmp_path, capsys):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["compare", DEFAULT_TASK, *SMALL, "--out", str(tmp_path)]) == 1
    assert "is at work in" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_failed_run_is_told_of_and_the_others_are_done(tmp_path, capsys, monkeypatch):
    path = tmp_path / "failing.py"
    path.write_text(
        "import gymnasium, numpy as np\n"
        "class Failing(gymnasium.Env):\n"
        "    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return 0, {}\n"
        "    def step(self, action):\n"
        "        raise RuntimeError('the bridge is out')\n"
        "gymnasium.register('Failing-v0', Failing)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tasks = ["failing:Failing-v0", DEFAULT_TASK]
    arguments = ["compare", *tasks, "--agents", "rl-lstm", "--seeds", "1", "--jobs", "1", *SMALL]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert (
        "the bridge is out" in err and "1 of 2 runs failed" in err and "| merlin/MemoryGame-v0 | rl-lstm | 1 |" in out
    )


@pytest.mark.usefixtures("in_process")
def test_episodes_that_were_given_up_are_told_of(tmp_path, capsys, monkeypatch):
    """One that ends where its first observation is 1, at once; of 8 held-out ones some never do."""
    monkeypatch.setattr(evaluation, "MAX_STEPS", 20)
    (tmp_path / "endless.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Endless(gymnasium.Env):\n"
        "    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.ends = int(self.np_random.integers(2))\n"
        "        return self.ends, {}\n"
        "    def step(self, action):\n"
        "        return self.ends, 1.0, bool(self.ends), False, {}\n"
        "gymnasium.register('Endless-v0', Endless)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["compare", "endless:Endless-v0", "--agents", "rl-mem", "--seeds", "1", "--memory", "zeroed", *SMALL]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert float(row["episode_return_mean"]) == float(row["zeroed"]) == 1.0
    number = int(row["unfinished_episodes"])
    assert number % 2 == 0 and 0 < number < 16, "as many with its own memory as with one that is zeroed"
    told = f"Endless-v0, rl-mem, seed 1: {number} held-out episodes were given up unfinished, and count nowhere above."
    assert told in shown.out and told in (tmp_path / "out" / "results.md").read_text()
    assert f"return 1.00, {number} episodes given up unfinished after" in shown.err


def test_an_interruption_leaves_checkpoints_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "merlin", "compare", DEFAULT_TASK, "--agents", "rl-lstm", "--seeds", "1"]
    command += ["--steps", "100000000", "--max-seconds", "6", "--episodes", "4", "--wandb", "disabled"]
    command += ["--set", "training.report_steps=2000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    run_dir = tmp_path / "merlin-MemoryGame-v0_rl-lstm_seed1"
    deadline = time.monotonic() + 60
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "waiting for 1 run to save: the same command goes on" in err
    assert list((run_dir / "checkpoints").iterdir()) and not (run_dir / RESULT).exists()
    *whole, _ = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)  # the last is of less than others
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (run_dir / RESULT).exists() and (run_dir / "metrics.jsonl").read_text().startswith("".join(whole))
    assert "--resume" in run_dir.with_name(f"{run_dir.name}.log").read_text()


def test_a_file_says_what_is_compared(tmp_path):
    comparison = read_comparison(ROOT / "examples" / "ablations.toml")
    runs = plan(comparison, tmp_path)
    assert len(runs) == 2 * 9 * 3 == len({run.run_dir for run in runs})
    (run,) = (run for run in runs if run.run_dir.name == "4-pairs_no-retroactive-half_seed2")
    assert run.config().model.retroactive_discount is None and run.config().env_kwargs == {"pairs": 4}
    assert read_comparison(ROOT / "examples" / "ablations.toml", {"seeds": [7]}).seeds == (7,)
    chosen = choose(comparison, ["4 pairs", "rl-mem", "KL weight 1"])
    assert {(run.task.name, run.agent.name) for run in plan(chosen, tmp_path)} == {
        ("4 pairs", "rl-mem"), ("4 pairs", "KL weight 1"),
    }  # fmt: skip
    assert choose(comparison, ["4 pairs"]).agents == comparison.agents
    with pytest.raises(MerlinError, match="'KL weight 2' came"):
        choose(comparison, ["KL weight 2"])
    comparison = read_comparison(ROOT / "examples" / "paper_tasks.toml")
    assert len(plan(comparison, tmp_path)) == 7 * 3 * 5 and comparison.tasks[1].max_seconds == 900
    comparison = read_comparison(ROOT / "examples" / "paper_tasks.toml", {"max_seconds": 60.0})
    assert {run.conditions["max_seconds"] for run in plan(comparison, tmp_path)} == {60}
    with pytest.raises(MerlinError, match="is two of them"):
        choose(make_comparison({"tasks": [{"task": "a", "name": "merlin"}]}), ["merlin"])
    runs = plan(read_comparison(ROOT / "examples" / "minigrid_memory.toml"), tmp_path)
    assert len(runs) == 6 * 3 * 5 and {run.task.env_kwargs["agent_view_size"] for run in runs} == {3}
    runs = plan(read_comparison(ROOT / "examples" / "cards_and_corridors.toml"), tmp_path)
    assert len(runs) == 6 * 3 * 5 and {run.task.steps for run in runs if run.task.name == "8 pairs"} == {10_000_000}
    runs = plan(read_comparison(ROOT / "examples" / "value_transport.toml"), tmp_path)
    assert {run.agent.name: run.config().model.value_transport for run in runs} == {"with transport": 0.9, "without": 0}
    assert {run.config().training.unroll_length for run in runs} == {41}
    runs = plan(read_comparison(ROOT / "examples" / "return_cost.toml"), tmp_path)
    assert sorted({run.config().model.return_cost for run in runs}) == [0.005, 0.05, 0.5, 5.0, 50.0]
    runs = plan(read_comparison(ROOT / "examples" / "policy_encoder.toml"), tmp_path)
    models = [run.config().model for run in runs]
    assert len(models) == 6 and [x.policy_encoder for x in models].count(False) == 1
    assert sorted({x.policy_read_scale for x in models}) == [0.1, 0.3, 1.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tasks = [", "is none: "),
        ("seeds = [1]", "needs tasks"),
        ('tasks = ["a", "a"]', "'a' comes twice"),
        ('tasks = ["a"]\nagents = []', "needs agents"),
        ('tasks = ["a"]\nseeds = [1.5]', "must be a whole number, but is 1.5: take another"),
        ('tasks = ["a"]\nepisodes = 0', "at least 1"),
        ('tasks = ["a"]\nmemory = ["zeroed", "zeroed"]', "must differ"),
        ('tasks = ["a"]\nmemory = ["shuffled"]\nepisodes = 1', "episodes is 1"),
        ('tasks = [{ task = "a", max_seconds = 0.0 }]', "max_seconds must be above 0"),
        ('tasks = ["a"]\nmax_seconds = -1.5', "max_seconds must be above 0"),
        ('tasks = ["a"]\nmemory = ["lost"]', "zeroed, frozen, shuffled, but 'lost'"),
        ('tasks = ["a"]\ncheckpoint = "first"', "last or best"),
        ('tasks = [{ tsk = "a" }]', "did you mean 'task'"),
        ("tasks = [3]", "must be settings of TaskSpec, but is 3"),
        ('tasks = [{ task = "a", steps = 0 }]', "steps must be at least 1"),
        ('tasks = ["a"]\nseeds = [-1]', "seeds must be at least 0"),
        ('tasks = ["a"]\nagents = [{ agent = "merlin", set = ["seed=3"] }]', "'seed=3' came"),
    ],
)
def test_a_file_that_means_nothing_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "comparison.toml"
    path.write_text(text)
    with pytest.raises(MerlinError, match=sentence):
        read_comparison(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.toml"], "No such file"),
        (["x.toml", "--steps", "5"], "--steps came too"),
        (["merlin/MemoryGmae-v0"], "merlin/MemoryGame-v0"),
        ([DEFAULT_TASK, "--agents", "merln"], "but is 'merln': did you mean 'merlin'"),
        ([DEFAULT_TASK, "--set", "model.kl_csot=1"], "did you mean"),
        ([DEFAULT_TASK, "--seeds", "1", "1"], "comes twice"),
    ],
)
def test_bad_arguments_get_a_sentence_before_anything_is_trained(tmp_path, capsys, arguments, sentence):
    try:
        status = cli.main(["compare", *arguments, "--out", str(tmp_path / "out")])
    except SystemExit as exit:
        status = exit.code
    err = capsys.readouterr().err
    assert status in (1, 2) and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0
    assert interquartile_mean(np.array([-100.0, 1.0, 3.0, 1000.0])) == 2.0
    assert interquartile_mean(np.array([9.0, 0.0, 1.0, 2.0, -5.0])) == 1.0  # of five one goes at either end


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        groups = [rng.normal(size=20), rng.normal(size=20)]
        low, high = bootstrap_interval(groups, resamples=400, seed=trial)
        held += low <= 0 <= high
    assert 0.88 < held / 200 < 0.99


def test_runs_are_drawn_within_their_task():
    low, high = bootstrap_interval([np.zeros(5), np.ones(5)])  # of half zeros, half ones, the middle half too
    assert low == high == 0.5


def test_the_table_has_a_line_for_each_agent_and_one_for_all_tasks():
    rows = [
        {
            "task": task, "agent": agent, "seed": seed, "env_steps": 10, "wall_seconds": 1.0, "success_rate": None,
            "episode_return_mean": 2.0 + seed, "of_gap": 0.5 + seed / 10, "episodes": 4,
        }
        for task in ("a", "b") for agent in ("x", "y") for seed in (0, 1, 2)
    ]  # fmt: skip
    text = table(rows, {"a": {"oracle": 4.0}, "b": {}})
    assert "| a | x | 3 | 3.00 (2.00 to 4.00) |  | 0.60 (0.50 to 0.70) | 10 | 1 |" in text
    assert "| a | *oracle play* |  | 4.00 |" in text
    rows[0]["env_steps"] = rows[0]["wall_seconds"] = None  # ended before its first report
    assert table(rows, {"a": {"oracle": 4.0}, "b": {}}) == text
    assert text.count("| all |") == 2 and "| all | y | 6 |  |  | 0.60 (" in text


def test_every_agent_is_in_the_legend_whatever_its_name_and_however_few_its_reports(tmp_path, monkeypatch):
    legends, legend = [], Figure.legend
    monkeypatch.setattr(
        Figure, "legend", lambda self, *args, **kwargs: legends.append(legend(self, *args, **kwargs)) or legends[-1]
    )
    task = TaskSpec(task="t", name="costs $x^$ {")
    reports = {"merlin": 3, "_private": 2, "$a^$ {": 1, "no episode": 0}
    runs = []
    for agent, count in reports.items():
        run_dir = tmp_path / str(count)
        run_dir.mkdir()
        rows = [{"env_steps": 10 * i, "wall_seconds": i, "episode_return_mean": 0.5 * i} for i in range(1, count + 1)]
        rows = rows or [{"env_steps": 10, "wall_seconds": 1, "episode_return_mean": None}]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(Run(task, AgentSpec(agent="a", name=agent), 1, run_dir, {}))
    plot_comparison(runs, {task.name: {}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    assert [text.get_text() for text in legends[0].get_texts()] == ["merlin", "_private", r"\$a^\$ {"]


def test_a_name_stays_in_its_cell_of_the_table():
    row = dict.fromkeys(("env_steps", "wall_seconds", "success_rate", "of_gap")) | {"episode_return_mean": 1.0}
    text = table([row | {"task": "a|b", "agent": "c | d"}], {"a|b": {"oracle": 4.0}})
    assert "| a\\|b | c \\| d | 1 | 1.00 |" in text and "| a\\|b | *oracle play* |" in text


@pytest.mark.parametrize(("seeds", "middle"), [(2, "the mean over seeds"), (4, "the interquartile mean over seeds")])
def test_a_legend_says_what_the_figures_of_so_many_seeds_are(seeds, middle):
    tasks = [{"task": "merlin/TMaze-v0", "env_kwargs": {"length": 8}}]
    comparison = make_comparison({"tasks": tasks, "agents": ["rl-lstm"], "seeds": list(range(seeds)), "episodes": 9})
    told = legend([{"task": "merlin/TMaze-v0", "agent": "rl-lstm"}] * seeds, comparison)
    assert told.startswith(f"\nScores are of 9 held-out episodes of each run's last weights: {middle}, in brackets ")
    assert told.endswith(" Steps and seconds are medians. merlin/TMaze-v0 has length 8.\n")
