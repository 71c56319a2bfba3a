"""Training, evaluating and loading from Python: any environment, messages without options, reports that stop a run."""

import ast
import dataclasses
import functools
import inspect
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

import merlin
from merlin.agents.rl_lstm import RLLSTM, RLLSTMState
from merlin.environments import passed
from merlin.environments.make import find_spec
from merlin.errors import MerlinError, counted, on_the_command_line, option, resuming
from merlin.runs.configure import configure
from merlin.runs.reporting import Reporter

ROOT = Path(__file__).parents[2]
SMALL = {"num_envs": 2, "device": "cpu", "set": {"training.unroll_length": 4, "model.hidden_size": 8}}
SMALL["set"]["training.minibatches"] = 1


class Coin(gymnasium.Env):
    """Rewards the action that the observation names; an episode is three steps."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def __init__(self, reward: float = 1.0) -> None:
        self.reward, self.is_closed = reward, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.side = 0, int(self.np_random.integers(2))
        return self.side, {}

    def step(self, action):
        reward, self.count = self.reward * float(action == self.side), self.count + 1
        self.side = int(self.np_random.integers(2))
        return self.side, reward, self.count == 3, False, {}

    def close(self):
        self.is_closed = True


class Restless(RLLSTM):
    """Begins as if it had acted."""

    def initial_state(self, batch_size: int) -> RLLSTMState:
        state = super().initial_state(batch_size)
        return state._replace(previous_action=state.previous_action + 1)


class Coins(gymnasium.vector.SyncVectorEnv):
    """A batch of coins."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([Coin] * num_envs)


def flipped(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: -reward)


def train(env, run_dir, **options):
    options = {**SMALL, "agent": "rl-lstm", "steps": 16, "stream": io.StringIO(), **options}
    return merlin.train(env, run_dir, **{name: value for name, value in options.items() if value is not None})


def test_three_lines_train_evaluate_and_load(tmp_path):
    run = train("merlin/TMaze-v0", str(tmp_path / "run"), env_kwargs={"length": 3}, seed=3)
    assert run.run_dir == tmp_path / "run" and run.env_steps == 16 and not run.interrupted
    scores = run.evaluate(episodes=4)
    agent = merlin.load(str(run.run_dir))
    assert agent.evaluate(episodes=4) == scores, "the summary's agent is that of its directory"
    saved = json.loads((run.run_dir / "config.json").read_text())
    assert (saved["seed"], saved["env_kwargs"], saved["training"]["unroll_length"]) == (3, {"length": 3}, 4)
    assert agent.evaluate(episodes=4, seed=4) != scores
    longer = agent.evaluate(episodes=4, env_kwargs={"length": 6})
    assert longer["episode_length_mean"] > scores["episode_length_mean"]
    assert run.plot().size > (100, 100)
    config = merlin.load_config(str(run.run_dir))
    with merlin.build_environment(config, num_envs=2) as environment:
        assert merlin.load_agent(str(run.run_dir), environment, config).config == agent.agent.config


def test_python_and_the_command_line_evaluate_alike(tmp_path, capsys):
    from merlin.cli import main

    run = train("merlin/TMaze-v0", tmp_path / "run", env_kwargs={"length": 3})
    assert main(["evaluate", str(run.run_dir), "--episodes", "5", "--seed", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    told = [printed.pop(name) for name in ("memory", "ablations", "checkpoint", "checkpoint_step")]
    assert told == ["own", [], "last", 16], "of RL-LSTM, which has no memory"
    assert run.evaluate(episodes=5, seed=2) == printed


def test_the_command_line_tells_what_random_play_earns_in_an_environment_of_ones_own(tmp_path, capsys, monkeypatch):
    from merlin.cli import main

    run = train(Coin, tmp_path / "run")
    monkeypatch.setattr("merlin.training.random_play.time", SimpleNamespace(monotonic=lambda: 0.0))  # however slow
    assert main(["evaluate", str(run.run_dir), "--episodes", "3"]) == 0
    pattern = r"\n    of random play +(\d\.\d{3}) ± (\d\.\d{3}) \((\d+) episodes\)\n"
    found = re.search(pattern, capsys.readouterr().out)
    assert found is not None and found[3] == "30"
    assert 1.1 < float(found[1]) < 1.9 and 0.08 < float(found[2]) < 0.24  # a coin for each of three steps: 0.87 / √30
    assert main(["evaluate", str(run.run_dir), "--episodes", "50"]) == 0
    out = capsys.readouterr().out
    found = re.search(pattern, out)
    assert found is not None and found[3] == "50", "as many as the agent's"
    told = re.search(r"episode return +\S+ ± (\S+) \(standard error; standard deviation (\S+)\)\n", out)
    assert told is not None and float(told[1]) == pytest.approx(float(told[2]) / 7, abs=1e-3)
    assert main(["evaluate", str(run.run_dir), "--episodes", "3", "--max-steps", "2"]) == 0
    assert "random" not in capsys.readouterr().out, "no episode ended that it could be compared with"


def test_one_episode_is_told_of_in_the_singular(tmp_path, capsys):
    from merlin.cli.train import _conclude

    run = train(Coin, tmp_path / "run")
    for episodes, told in ((1, "the last episode"), (1200, "the last 1,200 episodes")):
        one = dataclasses.replace(run, episodes=episodes, episode_return_mean=-0.5)
        _conclude(one, run.agent.config, run.run_dir, run.run_dir, None)
        assert f"mean return -0.50 of {told}\n" in capsys.readouterr().out
    assert (counted(1, "episode"), counted(0, "episode"), counted(1200, "episode")) == (
        "1 episode",
        "0 episodes",
        "1,200 episodes",
    )


@pytest.mark.parametrize("env", [Coin, lambda **settings: Coin(**settings)], ids=["class", "lambda"])
def test_a_function_that_makes_environments(env, tmp_path):
    run = train(env, tmp_path / "run", env_kwargs={"reward": 2.0})
    assert 0 <= run.evaluate(episodes=8)["episode_return_mean"] <= 6
    assert run.evaluate(lambda: Coin(reward=0.0), episodes=8)["episode_return_mean"] == 0
    name = "tests.runs.test_python:Coin" if env is Coin else rf"object/lambda-{passed.PROCESS}(-\d+)?"
    assert re.fullmatch(name, run.agent.config.task)


def test_two_functions_of_one_name_are_two_tasks(tmp_path):
    """As in a loop over settings, whose lambdas all have one name."""
    run = train(lambda: Coin(reward=1.0), tmp_path / "run")
    before = set(passed._SPECS)
    assert run.evaluate(lambda: Coin(reward=-1.0), episodes=20)["episode_return_mean"] < 0
    assert set(passed._SPECS) == before, "what is only evaluated on is not kept"
    names = [passed.name_of(lambda reward=reward: Coin(reward)) for reward in (0.0, -1.0)]
    assert len({run.agent.config.task, *names}) == 3
    assert run.evaluate(episodes=20)["episode_return_mean"] > 0
    coin = Coin()
    for there, number in ((coin, 1), (Coins(3), 3)):  # the run has two
        assert 0 <= run.evaluate(there, episodes=4)["episode_return_mean"] <= 3
        with pytest.raises(MerlinError, match=f"num_envs must be {number}, but is {2 * number}"):
            run.evaluate(there, episodes=8, num_envs=2 * number)
    assert passed.name_of(coin) == passed.name_of(coin) != passed.name_of(Coin())


def test_a_function_of_a_module_is_found_by_its_name_in_any_process():
    assert find_spec("tests.runs.test_python:Coin").entry_point is Coin
    assert find_spec("tests.runs.test_python:Coins").vector_entry_point is Coins


class Mint:
    """Makes coins, in a wrapper, and is not to be copied: it may hold much."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle '_thread.lock' object")

    def coin(self, reward: float = 1.0):
        return gymnasium.wrappers.TimeLimit(Coin(reward), 3)

    __call__ = coin


@pytest.mark.parametrize(
    "make",
    [Mint().coin, Mint(), functools.partial(lambda mint, **more: mint.coin(**more), Mint())],
    ids=lambda x: type(x).__name__,
)
def test_what_an_object_makes_is_played_and_the_object_is_not_copied(make):
    with merlin.make_environment(make, 2, env_kwargs={"reward": 3.0}) as environment:
        environment.reset(0)
        rewards = {x for _ in range(9) for x in environment.step(torch.zeros(2, dtype=torch.int64)).reward.tolist()}
    assert rewards == {0.0, 3.0}
    mint = Mint()
    assert passed.name_of(mint.coin) == passed.name_of(mint.coin) != passed.name_of(Mint().coin)
    if not isinstance(make, functools.partial):
        with pytest.raises(MerlinError, match="has no argument rewards: did you mean 'reward'"):
            merlin.make_environment(make, 2, env_kwargs={"rewards": 3.0})


@pytest.mark.parametrize("thing", [Coin, lambda: Coin(), Coins(2)], ids=["class", "lambda", "batch"])
def test_what_is_trained_on_is_made_without_training_too(thing):
    with merlin.make_environment(thing, 2) as environment:
        assert environment.reset(0).observation["observation"].shape == (2,)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_environment_that_is_there_is_played_and_stays_open(num_envs, tmp_path):
    env = Coin() if num_envs == 1 else Coins(3)
    inside = [env] if num_envs == 1 else env.envs
    run = train(env, tmp_path / "run", num_envs=None, steps=12 * num_envs)
    assert run.agent.config.num_envs == num_envs and run.env_steps >= 12
    assert 0 <= run.evaluate(episodes=5)["episode_return_mean"] <= 3
    assert not any(one.is_closed for one in inside) and not getattr(env, "closed", False)
    with pytest.raises(MerlinError, match=f"num_envs must be {num_envs}, but is 7"):
        train(env, tmp_path / "other", num_envs=7)
    with pytest.raises(MerlinError, match="env_kwargs must not be given"):
        train(env, tmp_path / "other", num_envs=None, env_kwargs={"reward": 2.0})
    with pytest.raises(MerlinError, match=r"training\.evaluation_steps must be none"):
        train(env, tmp_path / "other", num_envs=None, set={"training.evaluation_steps": 8})
    train(env, tmp_path / "run", resume=tmp_path / "run", steps=16 * num_envs, num_envs=None, set=(), agent=None)


class Wordless(Coin):
    def reset(self, *, seed=None, options=None):
        return "heads", {}


class Rewardless(Coin):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, None, *rest


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("broken", [Wordless, Rewardless])
def test_what_fails_before_anything_was_learnt_leaves_nothing_behind(broken, was_there, tmp_path):
    if was_there:
        (tmp_path / "run").mkdir()
    with pytest.raises(MerlinError, match="must be"):
        train(broken, tmp_path / "run")
    assert [*tmp_path.rglob("*")] == [tmp_path / "run"] * was_there
    train(Coin, tmp_path / "run")


def test_a_finished_run_says_how_it_gets_more_steps(tmp_path):
    train(Coin, tmp_path / "run")
    stream = io.StringIO()
    merlin.train(resume=tmp_path / "run", stream=stream)
    assert "steps are made: steps gives it more" in stream.getvalue()


def test_a_batch_of_ours_keeps_its_preset():
    envs = gymnasium.make_vec("merlin/TMaze-v0", num_envs=5, vectorization_mode="vector_entry_point", length=4)
    config = configure(envs)
    assert re.fullmatch(rf"object/TMaze-{passed.PROCESS}(-\d+)?", config.task)
    assert (config.preset, config.num_envs) == ("tmaze", 5)
    assert config.model == merlin.preset("merlin", "merlin/TMaze-v0", {"length": 4}).model


def test_what_was_passed_in_another_process_is_told(tmp_path, monkeypatch):
    """Also where this one has an environment of the same name: it is another."""
    monkeypatch.setattr(passed, "PROCESS", "another")
    run = train(lambda: Coin(), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(passed, "_SPECS", {})
    passed.name_of(lambda: Coin())
    with pytest.raises(MerlinError, match="which only that program has"):
        run.evaluate(episodes=2)
    assert run.evaluate(lambda: Coin(), episodes=2)["episodes"] == 2


def test_what_is_no_environment(tmp_path):
    with pytest.raises(MerlinError, match="There is no task 'nope/None-v0'"):
        train("nope/None-v0", tmp_path / "run")
    with pytest.raises(MerlinError, match="but 3 came: pass one of these"):
        inspect.unwrap(passed.name_of)(3)  # which the tests would not let through by its type
    for call in (inspect.unwrap(merlin.train), inspect.unwrap(passed.name_of)):
        with pytest.raises(MerlinError, match="but None came, as from a function that forgets to return: pass one"):
            call(None)
    agent = train(Coin, tmp_path / "run").agent
    with pytest.raises(Exception, match="None"):  # of the tests' checks of types, which come first
        inspect.unwrap(type(agent).evaluate)(agent, None, episodes=1)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"learning_rate": 1e-3}, r"did you mean set=\{'training.learning_rate': ...\}\?$"),
        ({"max_second": 3}, r"did you mean max_seconds\?$"),
        ({"zzz": 3}, r"it takes env, run_dir, agent, .*, film\.$"),
    ],
)
def test_an_argument_that_there_is_not_is_told_by_what_may_have_been_meant(arguments, hint):
    with pytest.raises(TypeError, match=f"^merlin.train has no argument {next(iter(arguments))!r}: {hint}"):
        merlin.train(Coin, **arguments)


def test_the_card_game_is_trained_on_where_no_task_is_told(tmp_path):
    run = merlin.train(run_dir=tmp_path / "run", **SMALL, agent="rl-lstm", steps=8, stream=io.StringIO())
    assert run.agent.config.task == "merlin/MemoryGame-v0"


@pytest.mark.usefixtures("steps_take_as_long")
def test_settings_are_values_or_texts_and_wrappers_are_functions():
    values = configure(Coin, "rl-lstm", set={"model.hidden_size": 8, "training.max_grad_norm": None}, wrap=[flipped])
    texts = configure(Coin, "rl-lstm", set=["model.hidden_size=8", "training.max_grad_norm=none"])
    assert values.model == texts.model and values.training == texts.training
    for wrap in (flipped, "tests.runs.test_python:flipped"):
        assert configure(Coin, "rl-lstm", wrap=wrap).environment == values.environment
    assert values.environment.wrappers == ("tests.runs.test_python:flipped",)
    assert configure(Coin, steps=1e4).steps == 10_000
    assert configure(Coin, num_envs=2).training.minibatches <= 2
    with pytest.raises(MerlinError, match=r"^steps must be a whole number, but is 1\.5: take another\.$"):
        configure(Coin, steps=1.5)
    with pytest.raises(MerlinError, match="agent would come after what it chooses"):
        configure(Coin, set={"agent": "merlin"})
    with pytest.raises(MerlinError, match="define it there"):
        configure(Coin, wrap=[lambda env: env])


def test_a_report_stops_the_run_which_goes_on_as_if_it_had_not(tmp_path):
    reports = []

    def stop_at_two(report):
        reports.append(report)
        return len(reports) == 2

    settings = {**SMALL["set"], "training.report_steps": 16}
    run = train("merlin/TMaze-v0", tmp_path / "a", steps=64, set=settings, on_report=stop_at_two)
    assert [report["env_steps"] for report in reports] == [16, 32] and run.env_steps == 32
    assert {"episode_return_mean", "wall_seconds", "entropy_nats"} <= reports[0].keys()
    merlin.train(resume=str(tmp_path / "a"), on_report=lambda report: reports.append(report), stream=io.StringIO())
    whole = []
    train("merlin/TMaze-v0", tmp_path / "b", steps=64, set=settings, on_report=lambda report: whole.append(report))
    stepped = [{x: y for x, y in report.items() if "second" not in x} for report in reports]
    np.testing.assert_equal(stepped, [{x: y for x, y in report.items() if "second" not in x} for report in whole])


def test_what_a_report_raises_ends_the_run_with_a_checkpoint(tmp_path):
    def pruned(report):
        raise KeyError("pruned")

    with pytest.raises(KeyError, match="pruned"):
        train("merlin/TMaze-v0", tmp_path / "run", steps=64, on_report=pruned)
    assert merlin.train(resume=tmp_path / "run", stream=io.StringIO()).env_steps == 64


def test_a_whole_configuration_says_its_agent_itself(tmp_path):
    config = merlin.preset("rl-lstm", "merlin/TMaze-v0", {"length": 3})
    run = merlin.train(config, tmp_path / "run", stream=io.StringIO(), **SMALL, steps=16)
    assert run.env_steps == 16
    with pytest.raises(MerlinError, match="says agent itself"):
        merlin.train(config, tmp_path / "other", agent="merlin")


def test_options_are_told_as_they_are_given():
    python = [option("set", "model.x=0.1", "model.y=true", "model.z=none"), option("run-dir"), option("from", "a")]
    assert python == ['set={"model.x": 0.1, "model.y": True, "model.z": None}', "run_dir", 'started_from="a"']
    assert resuming("a") == '`merlin.train(resume="a")`'
    with on_the_command_line("train"):
        shell = [option("set", "model.x=0.1", "model.y=true"), option("run-dir"), option("from", "a"), resuming("a")]
    assert shell == ["--set model.x=0.1 model.y=true", "--run-dir", "--from a", "`merlin train --resume a`"]


@pytest.mark.parametrize(
    "sizes, launcher",
    [
        ({"WORLD_SIZE": "2"}, "torchrun --nproc-per-node 2"),
        ({"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}, "torchrun --nnodes 3 --nproc-per-node 2"),
    ],
)
def test_a_run_of_several_processes_goes_on_in_as_many(monkeypatch, sizes, launcher):
    for name, value in (sizes | {"MASTER_ADDR": "localhost"}).items():
        monkeypatch.setenv(name, value)
    assert resuming("a") == f'`merlin.train(resume="a")` under {launcher}'
    with on_the_command_line("evaluate"):
        assert resuming("a run") == f"`{launcher} -m merlin train --resume 'a run'`"
    with on_the_command_line("population"):
        assert resuming("a") == f"`{launcher} -m merlin population --resume a`"


def test_a_run_on_ray_goes_on_there(monkeypatch):
    ray = "merlin ray --processes 2"
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MERLIN_LAUNCHER": ray}.items():
        monkeypatch.setenv(name, value)
    with on_the_command_line("population"):
        assert resuming("a") == f"`{ray} population --resume a`"


def test_an_agent_whose_state_begins_with_more_than_zeros_is_refused(tmp_path):
    with pytest.raises(MerlinError, match=r"must be all zeros, but 'previous_action' of its initial_state is not: ret"):
        merlin.train(Coin, tmp_path / "run", agent=Restless, steps=8, **SMALL)
    assert not (tmp_path / "run").exists()


def test_no_message_outside_the_command_line_names_an_option():
    found = []
    for path in sorted((ROOT / "merlin").rglob("*.py")):
        if path.parts[len(ROOT.parts) + 1] in ("cli", "experiments") or path.name in ("errors.py", "model_folder.py"):
            continue  # the latter writes a command
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                # commands, as Python has no other door to a population
                text = re.sub(r"`merlin [^`]*`|torchrun --nproc-per-node|population --resume ", "", node.value)
                found += [f"{path.name}: {word}" for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)]
    assert found == ["plugins.py: --import-from"], "which is told on the command line alone"


class NotebookOutput(io.StringIO):
    """Standard output as a notebook has it: no terminal."""


NotebookOutput.__module__ = "ipykernel.iostream"


def open_notebook(monkeypatch):
    """Return what a notebook displays, for each output all that it showed one after the other, and its output."""
    outputs, out = [], NotebookOutput()

    def display(data, *, raw, display_id):
        assert raw and display_id
        outputs.append(shown := [data])
        return SimpleNamespace(update=lambda data, *, raw: shown.append(data))

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", None)  # which is red there
    return outputs, out


def test_a_notebook_gets_a_bar_and_a_picture_that_are_drawn_over(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("merlin.runs.notebook.time.monotonic", lambda: clock.now)
    pictures = []

    def picture():
        clock.now += 1.0  # so long it takes to draw
        pictures.append(clock.now)
        return Image.new("P", (8, 8))

    (outputs, out), row = open_notebook(monkeypatch), {"wall_seconds": 1.0, "episode_return_mean": 1.25}
    with Reporter(tmp_path, 1000, picture=picture) as reporter:
        reporter.note("a note")
        for step, later in ((250, 0), (500, 10), (750, 15), (800, 0)):
            clock.now += later
            reporter.report(row | {"env_steps": step})
        assert pictures == [101.0, 127.0], "a twentieth of the time is for drawing"
    assert len(pictures) == 3, "the last report is drawn"
    assert out.getvalue() == "a note\n", "and nothing that a terminal would need"
    bar, curve = outputs
    assert [x["text/plain"].split()[0] for x in bar] == ["25%", "50%", "75%", "80%"]
    assert "return  1.25" in bar[-1]["text/html"] and 'value="0.800"' in bar[-1]["text/html"]
    assert len(curve) == 3 and all(x["image/png"].startswith(b"\x89PNG") for x in curve)


def test_a_notebook_shows_a_run_and_its_curve(tmp_path, monkeypatch):
    outputs, out = open_notebook(monkeypatch)
    run_dir = tmp_path / "run"
    merlin.train(Coin, run_dir, agent="rl-lstm", steps=64, **SMALL)
    bar, curve = outputs
    assert bar[-1]["text/plain"].startswith("100% ") and curve and "\r" not in out.getvalue()


def test_a_curve_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch):
    def picture():
        raise MerlinError("there are no metrics")

    outputs, _ = open_notebook(monkeypatch)
    with Reporter(tmp_path, 1000, picture=picture) as reporter:
        reporter.report({"env_steps": 500, "wall_seconds": 1.0})
    assert len(outputs) == 1
