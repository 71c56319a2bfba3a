"""Bad inputs to every command: each must end in one plain sentence and status 1 or 2, and leave no run behind.

    python benchmarks/bad_inputs.py [WORD ...]       only those whose arguments hold a word

Each line that is printed is a fault: an input that was taken, a traceback, "unexpected ...: run again with --debug",
more than one sentence, a run directory left behind, a pickle that was unpickled, or nothing within a minute. The last
line counts them; the exit status is 1 if there are any.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from merlin import cli

RUN = ["train", "merlin/TMaze-v0", "--agent", "rl-lstm", "--num-envs", "2", "--steps", "64", "--wandb", "disabled"]
NEW = ["train", "--steps", "64", "--num-envs", "4", "--wandb", "disabled", "--run-dir", "new"]
SECONDS = 60

MODULE = """
import gymnasium, numpy as np
from merlin.agents.rl_lstm import RLLSTM, RLLSTMConfig
class Good(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,)); action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 0.0, True, False, {}
class Fails(Good):
    def __init__(self, **kwargs): raise RuntimeError("no\\nway")
class Exits(Good):
    def __init__(self): raise SystemExit(3)
class NoSpaces(gymnasium.Env): pass
class Graph(Good):
    observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2))
class Huge(Good):
    action_space = gymnasium.spaces.Discrete(10**12)
class Empty(Good):
    observation_space = gymnasium.spaces.Dict({})
class StepFails(Good):
    def step(self, action): raise KeyError("lost")
class ResetFails(Good):
    def reset(self, *, seed=None, options=None): raise ValueError("")
for name in ("Good", "Fails", "Exits", "NoSpaces", "Graph", "Huge", "Empty", "StepFails", "ResetFails"):
    gymnasium.register(f"Bad{name}-v0", entry_point=globals()[name])
gymnasium.register("BadNone-v0", entry_point=lambda: None)
gymnasium.register("BadText-v0", entry_point=lambda: "text")
gymnasium.register("BadPath-v0", entry_point="nowhere_at_all:Thing")
gymnasium.register("BadName-v0", entry_point="tasks_module:Missing")
gymnasium.register("BadBatch-v0", vector_entry_point=lambda num_envs, **_: None)
class NoConfig(RLLSTM): config_class = None
class WrongConfig(RLLSTM): config_class = dict
class FailsToBuild(RLLSTM):
    def __init__(self, *arguments): raise RuntimeError("will not")
class TakesNothing(RLLSTM):
    def __init__(self): pass
class StateFails(RLLSTM):
    def initial_state(self, batch_size): return 1 / 0
class NoState(RLLSTM):
    def initial_state(self, batch_size): return None
class ReadFails:
    pass
number = 7
def function(): pass
"""


class Case(NamedTuple):
    """An input, and what is wrong with it."""

    wrong: str
    arguments: list[str]
    prepare: Callable[[], object] = lambda: None
    stdin: str = ""


def settings() -> Iterator[Case]:
    """Return settings that no run can have."""
    for assignment in (
        "", "=", "=1", "model", "model=", "model=1", "model.", ".model=1", "model..kl_cost=1", "model.kl_cost", "a=1",
        "model.kl_cost=", "model.kl_cost=x", "model.kl_cost=-1", "model.kl_cost=nan", "model.kl_cost=inf", "é=1",
        "model.kl_cost=1,2", "model.kl_cost=[1]", "model.kl_cost={}", "model.kl_cost.x=1", "model.encoder=1",
        "model.encoder.image_features=0", "model.encoder.image_features=-3", "model.encoder.image_features=1e12",
        "model.encoder.nothing=1", "model.decoder.image_likelihood=gamma", "model.decoder.grid_rarity=2",
        "model.memory_size=0", "model.memory_size=-1", "model.memory_size=1e12", "model.memory_size=" + "9" * 5000,
        "model.memory_size=1.5", "model.memory_size=true", "model.top_k=0", "model.top_k=1000000",
        "model.memory=nothing",
        "model.memory=tasks_module:Good", "model.memory=tasks_module:number", "model.memory=:", "model.memory=a:b:c",
        "model.memory=", "model.memory=nowhere_at_all:M", "model.mask_unwritten=maybe", "model.latent_size=0",
        "model.hidden_size=0", "model.num_layers=0", "model.num_layers=100000", "model.num_read_keys=0",
        "model.policy_num_read_keys=-1", "model.policy_read_strength=1e4", "model.discount_factor=2",
        "model.gae_lambda=7", "training.learning_rate=0", "training.learning_rate=1e30", "training.adam_epsilon=-1",
        "training.adam_epsilon=0", "training.unroll_length=0", "training.unroll_length=1e9", "training.passes=0",
        "training.minibatches=0", "training.minibatches=99", "training.policy_passes=-2", "training.num_threads=0",
        "training.num_threads=1e6", "training.matmul_precision=best", "training.report_steps=0", "seed=x",
        "training.checkpoint_seconds=0", "training.checkpoint_seconds=nan", "training.evaluation_episodes=0",
        "training.final_learning_rate_fraction=-5", "seed=1e30", "seed=-1", "steps=0", "steps=none", "num_envs=0",
        "num_envs=1e12", "device=abacus", "device=", "device=cuda:99", "vectorization=thread", "task=CartPole-v1",
        "agent=merlin", "preset=paper", "env_kwargs.pairs=4", "environment=1", "environment.step_seconds=0",
        "environment.step_seconds=soon", "environment.kinds=vector", "environment.wrappers.x=1", "training.none=none",
        "\x00=1", "model.\u202e=1",
    ):  # fmt: skip
        yield Case("a setting", [*NEW, "--set", assignment])
    yield Case(
        "a policy that has no passes of its own", [*NEW, "--agent", "rl-mem", "--set", "training.policy_passes=2"]
    )
    yield Case("a setting of another agent", [*NEW, "--agent", "rl-lstm", "--set", "model.kl_cost=1"])
    yield Case("nothing set", [*NEW, "--set"])


def options() -> Iterator[Case]:
    """Return options that have no meaning, for every command."""
    for command in ("train", "evaluate", "watch", "analyse", "compare", "profile", "play"):
        yield Case("an unknown option", [command, "run", "--nonsense"])
        yield Case("nothing to import from", [command, "run", "--import-from"])
        yield Case("a module directory that is a file", [command, "tasks_module:BadGood-v0", "--import-from", "a file"])
    for wrong in ("0", "-1", "1.5", "nan", "inf", "", " ", "1e400", "²", "x", "0x10", "9" * 5000):
        yield Case("steps", [*NEW, "--steps", wrong])
        yield Case("episodes", ["evaluate", "run", "--episodes", wrong])
        yield Case("episodes", ["watch", "run", "--episodes", wrong])
    for wrong in ("-1", "1e30", "nan", "x", "2147483648"):
        yield Case("seed", [*NEW, "--seed", wrong])
        yield Case("seed", ["analyse", "run", "--seed", wrong])
    for wrong in ("nan", "0", "-5", "", "soon"):
        yield Case("seconds", [*NEW, "--max-seconds", wrong])
        yield Case("seconds", ["profile", "--seconds", wrong])
    for wrong in ("", "x", "[]", "3", "null", "{", "{'pairs': 4}", '{"pairs": }', "\x00", "[" * 100_000):
        yield Case("env_kwargs", [*NEW, "--env-kwargs", wrong])
    for wrong in (
        {"pairs": "four"}, {"pairs": 0}, {"pairs": -3}, {"pairs": 1.5}, {"pairs": None}, {"pairs": [4]}, {"pairs": {}},
        {"": 1}, {"num_envs": 3}, {"device": "cpu"}, {"render_mode": "x"}, {"pairs": 10**9}, {"self": 1}, {"view": "x"},
        {"spec": 1}, {"id": 1}, {"é": 1},
    ):  # fmt: skip
        yield Case("env_kwargs", [*NEW, "--env-kwargs", json.dumps(wrong)])
    for wrong in ("abacus", "", "cuda", "cuda:99", "cuda:x", "meta", "mps", "cpu:7", "CPU", "auto:1", "xla", "cuda:-1"):
        yield Case("device", [*NEW, "--device", wrong])
        yield Case("device", ["evaluate", "run", "--device", wrong])
    yield Case("device", ["watch", "run", "--device", "abacus"])
    yield Case("device", ["compare", "merlin/TMaze-v0", "--device", "abacus", "--out", "new"])
    yield Case("device", ["train", "--resume", "run", "--steps", "128", "--device", "abacus", "--wandb", "disabled"])
    yield Case("wandb", [*NEW[:-4], "--wandb", "maybe", "--run-dir", "new"])
    yield Case("an unwritable trace", ["profile", "--trace", "nowhere/trace.json", "--seconds", "0.1"])
    yield Case("a trace that is a directory", ["profile", "merlin/TMaze-v0", "--trace", ".", "--seconds", "0.1"])
    yield Case("more environments than processes can be", [*NEW, "--num-envs", "1e15"])
    yield Case("preset", [*NEW, "--preset", "papr"])
    yield Case("preset", [*NEW, "--preset", ""])
    yield Case("vectorization", [*NEW, "--vectorization", "thread"])


def tasks_and_agents() -> Iterator[Case]:
    """Return tasks and agents that are none."""
    names = ["Fails", "Exits", "NoSpaces", "Graph", "Huge", "Empty", "StepFails", "ResetFails", "None", "Text", "Path",
             "Name", "Batch"]  # fmt: skip
    tasks = [f"tasks_module:Bad{name}-v0" for name in names]
    tasks += ["", " ", ":", "::", "x:", ":x", "merlin/", "/", "merlin/Nothing-v0", "merlin/TMaze", "merlin/TMaze-v9",
              "nowhere_at_all:X-v0", "tasks_module:Nothing-v0", "tasks_module.py:BadGood-v0", "run", "a file", "é-v0",
              "\x00", "x" * 5000, "a:b:c", "../x:Y-v0", "broken:X-v0", "exits:X-v0", "syntax:X-v0",
              "os:system"]  # fmt: skip
    for task in tasks:
        yield Case("a task", [*NEW, task])
        if len(task) < 100:
            yield Case("a task to play", ["play", task], stdin="1q")
    for agent in (
        "", "merlyn", ":", "tasks_module:", ":Good", "tasks_module:Nothing", "tasks_module:number",
        "tasks_module:function", "tasks_module:Good", "tasks_module:NoConfig", "tasks_module:WrongConfig",
        "tasks_module:FailsToBuild", "tasks_module:TakesNothing", "tasks_module:StateFails", "tasks_module:NoState",
        "nowhere_at_all:Agent", "broken:Agent", "exits:Agent", "syntax:Agent", "merlin.agents:Agent", "a:b:c", "é:é",
        "os.path:join", "...:X",
    ):  # fmt: skip
        yield Case("an agent", [*NEW, "merlin/TMaze-v0", "--agent", agent])
    yield Case("a task that is not for a keyboard", ["play", "Pendulum-v1"], stdin="q")
    yield Case("a view that there is not", ["play", "merlin/TMaze-v0", "--view", "below"])


def run_directories() -> Iterator[Case]:
    """Return run directories that are none, or that somebody changed."""
    commands = (["evaluate"], ["watch"], ["analyse"], ["train", "--wandb", "disabled", "--steps", "128", "--resume"])
    for command in commands:
        for wrong in ("nowhere", "a file", "", "empty", "\x00", "é", "x" * 5000, "run/config.json"):
            yield Case("no run directory", [*command, wrong])
    for name, content in {
        "binary": b"\x80\xff\x00", "empty": b"", "half": b'{"task": "merl', "a list": b"[]", "null": b"null",
        "a number": b"1", "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "a string": b'"run"',
        "nothing in it": b"{}", "utf-16": '{"agent": "merlin"}'.encode("utf-16"),
    }.items():  # fmt: skip
        yield Case(f"config.json: {name}", ["evaluate", "copy"], lambda x=content: _replaced_alone(x))
    yield Case("config.json is a directory", ["evaluate", "copy"], lambda: _replaced_alone(None))
    wrong_values: list[Any] = [None, 1e30, -1, "", "x", [], {}, [1], True, "\x00"]
    for key in ("task", "agent", "seed", "steps", "num_envs", "device", "env_kwargs", "vectorization", "environment",
                "model", "training", "preset"):  # fmt: skip
        for value in wrong_values:
            if key == "preset" and isinstance(value, str):
                continue  # a record that nothing reads
            if key in ("environment", "training", "env_kwargs") and value == {}:
                continue  # their defaults
            yield Case(f"config.json: {key} = {value!r}", ["evaluate", "copy"], lambda k=key, v=value: _changed(k, v))
    for key, value in {"model.hidden_size": 10**12, "model.encoder": 3, "model.x": 1, "training.passes": "2",
                       "training.unroll_length": 0, "environment.step_seconds": -1, "model.hidden_size ": 4,
                       "environment.wrappers": ["nowhere_at_all:W"], "env_kwargs.nothing": 1}.items():  # fmt: skip
        yield Case(f"config.json: {key}", ["evaluate", "copy"], lambda k=key, v=value: _changed(k, v))
    yield Case("config.json lacks the agent", ["evaluate", "copy"], lambda: _changed("agent", ...))
    yield Case("config.json lacks the model", ["evaluate", "copy"], lambda: _changed("model", ...))
    yield Case("weights of other sizes", ["evaluate", "copy"], lambda: _changed("model.hidden_size", 7))
    for which in ("agent.safetensors", "trainer.pt"):
        command = (
            ["evaluate"]
            if which.startswith("agent")
            else ["train", "--steps", "128", "--wandb", "disabled", "--resume"]
        )
        for content in (b"", b"\x00" * 100, b"PK\x03\x04", os.urandom(1000), b"{}", None, ...):
            yield Case(f"{which}: {str(content)[:20]}", [*command, "copy"], lambda w=which, x=content: _replaced(w, x))
    yield Case("a hostile pickle", ["train", "--steps", "128", "--resume", "copy"], _hostile)
    yield Case("no checkpoints", ["evaluate", "copy"], lambda: shutil.rmtree("copy/checkpoints"))
    yield Case("checkpoints is a file", ["evaluate", "copy"], lambda: _replaced_directory("copy/checkpoints"))
    for change in (["--seed", "2"], ["--num-envs", "9"], ["--agent", "merlin"], ["--set", "model.hidden_size=3"],
                   ["--preset", "paper"], ["--set", "steps=99"], ["--set", "training.passes=0"]):  # fmt: skip
        yield Case("a change at resume", ["train", "--resume", "run", *change])
    yield Case("a run that is there already", [*RUN, "--run-dir", "run"])
    yield Case("a run directory that is a file", [*RUN, "--run-dir", "a file"])
    yield Case("a run directory in a file", [*RUN, "--run-dir", "a file/run"])
    yield Case("a run directory with a null", [*RUN, "--run-dir", "a\x00b"])
    yield Case("a run directory with a long name", [*RUN, "--run-dir", "x" * 5000])
    yield Case("a run directory nowhere", [*RUN, "--run-dir", "/proc/nothing/run"])


def outputs() -> Iterator[Case]:
    """Return places that nothing can be written to."""
    for out in ("film.avi", "film", "", "a file/film.gif", "directory.gif", "\x00.gif", "x" * 5000 + ".gif"):
        yield Case("a film", ["watch", "run", "--out", out])
    for out in ("a file", "a file/out", "/proc/nothing/out", "x" * 5000):
        yield Case("a report", ["analyse", "run", "--episodes", "4", "--out", out])
        yield Case("a comparison", ["compare", "merlin/TMaze-v0", "--steps", "64", "--out", out])


def comparisons() -> Iterator[Case]:
    """Return comparisons that say what has no meaning."""
    for content in (
        "", "x", "tasks = 1", "tasks = []", "tasks = [1]", "tasks = ['']", "tasks = [[]]", "agents = ['merlin']",
        "tasks = ['merlin/TMaze-v0']\nagents = []", "tasks = ['merlin/TMaze-v0']\nagents = 'merlin'",
        "tasks = ['merlin/TMaze-v0']\nagents = [{}]", "tasks = ['merlin/TMaze-v0']\nagents = [{name='x'}]",
        "tasks = [{task='merlin/TMaze-v0', steps='many'}]", "tasks = [{task='merlin/TMaze-v0', steps=-1}]",
        "tasks = [{task='merlin/TMaze-v0', steps=0}]", "tasks = [{task='merlin/TMaze-v0', env_kwargs=1}]",
        "tasks = [{task='merlin/TMaze-v0', nothing=1}]", "tasks = [{name='x'}]", "tasks = [{task=1}]",
        "tasks = ['merlin/TMaze-v0', 'merlin/TMaze-v0']", "tasks = ['merlin/TMaze-v0']\nseeds = []",
        "tasks = ['merlin/TMaze-v0']\nseeds = [-1]", "tasks = ['merlin/TMaze-v0']\nseeds = ['a']",
        "tasks = ['merlin/TMaze-v0']\nseeds = [1, 1]", "tasks = ['merlin/TMaze-v0']\nseeds = 3",
        "tasks = ['merlin/TMaze-v0']\nseeds = [9223372036854775807]", "tasks = ['merlin/TMaze-v0']\nepisodes = 0",
        "tasks = ['merlin/TMaze-v0']\nmax_seconds = nan", "tasks = ['merlin/TMaze-v0']\nmax_seconds = -1",
        "tasks = ['merlin/TMaze-v0']\ncheckpoint = 'first'", "tasks = ['merlin/TMaze-v0']\nmemory = ['none']",
        "tasks = ['merlin/TMaze-v0']\nmemory = 'zeroed'", "tasks = ['merlin/TMaze-v0']\nmemory = ['zeroed', 'zeroed']",
        "tasks = ['merlin/TMaze-v0']\nagents = [{agent='merlin', set=['seed=3']}]",
        "tasks = ['merlin/TMaze-v0']\nagents = [{agent='merlin', set='model.kl_cost=1'}]",
        "tasks = ['merlin/TMaze-v0']\nagents = [{agent='merlin', set=['model.kl_cost=-1']}]",
        "tasks = ['merlin/TMaze-v0']\nagents = [{agent='merlin', set=[1]}]", "tasks = ['merlin/TMaze-v0']\nwhat = 1",
        "tasks = ['merlin/TMaze-v0']\nagents = ['merlyn']", "tasks = ['merlin/Nothing-v0']", "tasks = {a = 1}",
        "tasks = ['merlin/TMaze-v0']\n[agents]\na = 1", "a = 1\na = 2", "tasks = ['merlin/TMaze-v0'",
        "tasks = ['é']",
        "tasks = [{task='merlin/TMaze-v0', env_kwargs={length='x'}}]", "tasks = [{task='tasks_module:BadFails-v0'}]",
        "tasks = [{task='merlin/TMaze-v0', env_kwargs={day=2020-01-01}}]", "tasks = [1979-05-27]", "a = " + "[" * 5000,
    ):  # fmt: skip
        yield Case(f"a file of {content[:60]!r}", ["compare", "bad.toml", "--out", "new"],
                   lambda x=content: Path("bad.toml").write_text(x, encoding="utf-8"))  # fmt: skip
    yield Case(
        "a binary file", ["compare", "bad.toml", "--out", "new"], lambda: Path("bad.toml").write_bytes(b"\xff\xfe\x00")
    )
    yield Case("a file that is a directory", ["compare", "directory.toml", "--out", "new"])
    yield Case("a file that is none", ["compare", "nowhere.toml", "--out", "new"])
    task = ["compare", "merlin/TMaze-v0", "--out", "new"]
    for more in (["--only", "nothing"], ["--only", ""], ["--agents", "merlyn"], ["--agents", ""], ["--seeds", "x"],
                 ["--seeds", "1", "1"], ["--seeds"], ["--jobs", "0"], ["--set", "seed=1"], ["--set", "nothing"],
                 ["--set", "model.hidden_size=-1"], ["--set", "num_envs=0"], ["--memory", "own"], ["merlin/TMaze-v0"],
                 ["--memory", "zeroed", "zeroed"], ["--episodes", "0"], ["--max-seconds", "nan"], ["--steps", "0"],
                 ["--env-kwargs", '{"length": "x"}'], ["--agents", "merlin", "merlin"], ["--set", "model.top_k=0"],
                 ["--memory", "shuffled", "--episodes", "1"]):  # fmt: skip
        yield Case("a comparison", [*task, *more])
    yield Case("an option besides a file", ["compare", "good.toml", "--agents", "merlin"])
    yield Case("a directory that holds another run", ["compare", "merlin/TMaze-v0", "--agents", "rl-lstm", "--seeds",
               "1", "--steps", "64", "--out", "other"])  # fmt: skip


def _replaced(name: str, content: bytes | None) -> None:
    """Put other content in a file of the copied run; a directory for None, nothing for ... ."""
    path = Path("copy") / name if name == "config.json" else next(Path("copy/checkpoints").glob(f"step-*/{name}"))
    path.unlink()
    if content is None:
        path.mkdir()
    elif content is not ...:
        path.write_bytes(content)


def _replaced_alone(content: bytes | None) -> None:
    """Put another configuration in the copied run, and take away the checkpoints, which know what it was."""
    _replaced("config.json", content)
    shutil.rmtree("copy/checkpoints")


def _replaced_directory(name: str) -> None:
    shutil.rmtree(name)
    Path(name).touch()


def _changed(key: str, value: Any) -> None:
    """Change an entry of the copied run's configuration; ... removes it."""
    path = Path("copy/config.json")
    values = json.loads(path.read_text())
    *groups, name = key.split(".")
    group = values
    for part in groups:
        group = group[part]
    group[name] = value
    if value is ...:
        del group[name]
    path.write_text(json.dumps(values))


def _hostile() -> None:
    """Make the training state a pickle that would leave a file behind if it were unpickled."""
    path = next(Path("copy/checkpoints").glob("step-*/trainer.pt"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch unpickled'\ntR.")
        file.writestr("archive/version", "3\n")


def cases() -> list[Case]:
    """Return all bad inputs."""
    groups = (settings, options, tasks_and_agents, run_directories, outputs, comparisons)
    return [case for group in groups for case in group()]


def prepare(directory: Path) -> None:
    """Make what the inputs speak of, a finished run, modules, a file, directories, and go there."""
    os.chdir(directory)
    status, _, err = call([*RUN, "--run-dir", "run"])
    assert status == 0, err
    Path("a file").write_text("text")
    for name in ("empty", "directory.gif", "directory.toml"):
        Path(name).mkdir()
    Path("tasks_module.py").write_text(MODULE)
    Path("broken.py").write_text("raise RuntimeError('broken\\nat import')")
    Path("exits.py").write_text("import sys; sys.exit(0)")
    Path("syntax.py").write_text("def (")
    Path("good.toml").write_text("tasks = ['merlin/TMaze-v0']")
    other = Path("other/TMaze-v0_rl-lstm_seed1")
    shutil.copytree("run", other)
    shutil.copytree("run", "other/merlin-TMaze-v0_rl-lstm_seed1")


def call(arguments: list[str], stdin: str = "") -> tuple[int, str, str]:
    """Return status, output and errors of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    reading, writing = os.pipe()
    os.write(writing, stdin.encode())
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(arguments)
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else 1
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
    return status, out.getvalue(), err.getvalue()


def fault_of(case: Case) -> str | None:
    """Return what is wrong with the answer to an input, in the directory that `prepare` made; None if nothing is."""
    shutil.rmtree("copy", ignore_errors=True)
    shutil.rmtree("new", ignore_errors=True)
    if "copy" in case.arguments:
        shutil.copytree("run", "copy")
    case.prepare()
    before = set(Path().iterdir())

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        status, _, err = call(case.arguments, case.stdin)
    except BaseException as error:  # whatever a user would see as a traceback
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    lines = [line for line in err.splitlines() if line.strip()]
    said = " / ".join(lines)[:400]
    if Path("unpickled").exists():
        return "a pickle was unpickled"
    if status not in (1, 2):
        return f"status {status}: {said}"
    if "run again with --debug" in err or "Traceback" in err:
        return said
    # What is told before, as of an agent that was trained with other settings, is no complaint.
    lines = [line for line in lines if line.startswith(("merlin", "Traceback", " "))]
    if len(lines) != 1 or not lines[0].startswith("merlin"):
        return f"{len(lines)} lines: {said}"
    if len(lines[0]) > 600:
        return f"a sentence of {len(lines[0])} characters: {said}"
    fails_later = any("StepFails" in argument for argument in case.arguments)  # its run has begun
    if ((Path("new") / "config.json").exists() and not fails_later) or set(Path().iterdir()) - before - {
        Path("new"),
        Path("runs"),
        Path("__pycache__"),
    }:
        return f"left something behind: {said}"
    return None


def main(words: list[str]) -> int:
    """Print the faults and count them."""
    chosen = [
        case for case in cases() if not words or any(word in " ".join([case.wrong, *case.arguments]) for word in words)
    ]
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        for case in chosen:
            fault = fault_of(case)
            if fault is not None:
                faults += 1
                shown = " ".join(x if len(x) < 80 else f"{x[:20]}...({len(x)})" for x in case.arguments)
                print(f"{case.wrong} [{shown!r}]: {fault}", flush=True)
        os.chdir("/")
    print(f"{len(chosen)} bad inputs, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
