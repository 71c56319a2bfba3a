"""What breaks inside an environment, here or in a worker process, ends in one sentence, and no worker outlives it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import tests.environments.examples  # noqa: F401 (registers test/...-v0)
from merlin.cli import main
from merlin.environments.batch import make_environment
from merlin.errors import MerlinError


def run_misbehaving(vectorization, **env_kwargs):
    with make_environment("test/Misbehaving-v0", 2, vectorization=vectorization, env_kwargs=env_kwargs) as environment:
        environment.reset(0)
        for _ in range(3):
            environment.step(torch.zeros(2, dtype=torch.int64))


RAISED = r"ZeroDivisionError: the moon is full at .*misbehaving.py:\d+"


@pytest.mark.parametrize(
    "vectorization, misdeed, when, sentence",
    [
        (
            "sync",
            "raise",
            "step",
            rf"test/Misbehaving-v0 failed in step: {RAISED}\.",
        ),
        (
            "sync",
            "raise",
            "reset",
            rf"test/Misbehaving-v0 failed in reset: {RAISED}\.",
        ),
        (
            "sync",
            "raise",
            "constructor",
            rf"cannot be built with .*: {RAISED}",
        ),
        ("sync", "nan", "step", "Rewards must be finite, but test/Misbehaving-v0 returned nan in environment 0"),
        (
            "async",
            "raise",
            "step",
            rf"failed in step: {RAISED} \(environment \d\).",
        ),
        (
            "async",
            "raise",
            "reset",
            rf"failed in reset: {RAISED} \(environment \d\).",
        ),
        (
            "async",
            "raise",
            "constructor in a worker",
            rf"cannot be built with .*: {RAISED}",
        ),
        ("async", "raise what cannot be pickled", "step", "failed in step: LocalError: .*held"),
        ("async", "exit", "step", r"failed in step: the worker process of environment \d ended with status 7."),
        (
            "async",
            "exit",
            "constructor in a worker",
            r"cannot be built with .*: the worker process of environment \d ended with status 7.",
        ),
        ("async", "nan", "step", "Rewards must be finite, but test/Misbehaving-v0 returned nan in environment 0"),
    ],
)
@pytest.mark.timeout(30)
def test_what_goes_wrong_inside_is_one_sentence(vectorization, misdeed, when, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        run_misbehaving(vectorization, misdeed=misdeed, when=when)
    assert "\n" not in str(raised.value)
    if misdeed != "nan":
        assert raised.value.__cause__ is not None
    if vectorization == "async" and misdeed == "raise" and when == "step":
        assert "in does" in str(raised.value.__cause__)  # the worker's own traceback, for --debug
    assert not multiprocessing.active_children()


@pytest.mark.timeout(30)
def test_a_killed_worker_ends_in_a_sentence_within_seconds():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.reset(0)
    processes = environment.vector_env.unwrapped.processes
    processes[1].kill()
    start = time.monotonic()
    with pytest.raises(MerlinError, match="worker process of environment 1 was killed by signal 9"):
        for _ in range(3):
            environment.step(torch.zeros(3, dtype=torch.int64))
    assert time.monotonic() - start < 5
    assert not any(process.is_alive() for process in processes)
    environment.close()


@pytest.mark.timeout(30)
def test_a_batch_with_a_dead_worker_can_be_closed():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.vector_env.unwrapped.processes[1].kill()
    environment.vector_env.unwrapped.processes[1].join()
    environment.close()
    environment.close()


@pytest.mark.timeout(30)
def test_an_interrupted_step_can_be_closed():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.reset(0)
    vector_env = environment.vector_env.unwrapped
    vector_env.step_async(np.zeros(3, np.int64))
    vector_env.parent_pipes[0].recv()  # as if Ctrl-C had come between two answers
    environment.close()
    assert not multiprocessing.active_children()


@pytest.mark.timeout(30)
def test_workers_leave_ctrl_c_to_the_trainer_and_end_with_it_despite_its_handlers(capfd):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        environment = make_environment("test/Misbehaving-v0", 2, vectorization="async", env_kwargs={"misdeed": "sleep"})
    finally:
        signal.signal(signal.SIGTERM, before)
    environment.reset(0)
    for process in environment.vector_env.unwrapped.processes:
        os.kill(process.pid, signal.SIGINT)
    observation = environment.step(torch.zeros(2, dtype=torch.int64)).observation
    assert torch.allclose(observation["number"], torch.tensor(0.01))  # one torch thread in each worker
    environment.step(torch.zeros(2, dtype=torch.int64))
    environment.vector_env.unwrapped.step_async(np.zeros(2, np.int64))
    time.sleep(0.5)  # for them to fall asleep
    environment.close()
    assert capfd.readouterr().err == ""


@contextmanager
def training(run_dir, misdeed):
    """Train in a process of its own; give it and its workers once they fell asleep. It does not outlive the block."""
    command = [sys.executable, "-m", "merlin", "train", "tests.environments.misbehaving:test/Misbehaving-v0"]
    command += ["--env-kwargs", json.dumps({"misdeed": misdeed}), "--agent", "rl-lstm", "--num-envs", "2"]
    command += ["--vectorization", "async", "--steps", "10000", "--wandb", "disabled", "--run-dir", str(run_dir)]
    command += ["--set", "training.unroll_length=2", "training.minibatches=1", "training.checkpoint_seconds=0.001"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            until = time.monotonic() + 90
            while not any(run_dir.glob("checkpoints/step-*")):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            time.sleep(1)
            yield process, children(process.pid)
        finally:
            process.kill()


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in listed.split()]


def are_gone(pids, seconds):
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > until:
            return not left
        time.sleep(0.05)
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.parametrize("misdeed", ["sleep", "sleep through SIGTERM"])
def test_one_signal_ends_a_run_whose_environments_hang(tmp_path, misdeed):
    with training(tmp_path / "run", misdeed) as (process, workers):
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted after 4 steps" in output and "Traceback" not in errors
    assert are_gone(workers, 1)


class InterruptedTwice(gymnasium.Env):
    """Its third step asks for an end, as Ctrl-C does, hangs, and is told so once more."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)
    num_steps = num_signals = 0

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        self.num_steps += 1
        while self.num_steps > 2:
            InterruptedTwice.num_signals += 1
            os.kill(os.getpid(), signal.SIGINT)
            assert InterruptedTwice.num_signals < 2, "the second ends it"
        return 0, 0.0, False, False, {}


gymnasium.register("test/InterruptedTwice-v0", InterruptedTwice)


def test_two_signals_end_a_run_that_hangs_in_this_process(tmp_path, capsys):
    """One process, in which a signal has come when `os.kill` returns: nothing here depends on when it comes."""
    settings = ["--set", "training.unroll_length=2", "training.minibatches=1", "training.checkpoint_seconds=0.001"]
    arguments = "train test/InterruptedTwice-v0 --agent rl-lstm --preset grid-world --num-envs 2 --vectorization sync"
    arguments = [*arguments.split(), "--steps", "10000", "--wandb", "disabled"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        status = main([*arguments, "--run-dir", str(tmp_path / "run"), *settings])
    finally:
        signal.signal(signal.SIGINT, handler)
    output, errors = capsys.readouterr()
    assert status == 130 and "interrupted after 4 steps" in output and "Traceback" not in errors
    assert InterruptedTwice.num_signals == 2


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker that hangs does not see its trainer end")
def test_workers_end_with_a_trainer_that_is_killed(tmp_path):
    with training(tmp_path / "run", "sleep through SIGTERM") as (process, workers):
        assert len(workers) == 2
        process.kill()
        process.communicate(timeout=60)
    assert are_gone(workers, 5)


def test_environments_that_draw_from_global_generators_do_not_draw_the_same():
    """Workers that are forked would all go on with the trainer's generators."""
    with make_environment("test/Gambler-v0", 4, vectorization="async") as environment:
        drawn = environment.reset(0).observation["observation"]
    assert len({*drawn.flatten().tolist()}) == 8


class OfOneProcess(gymnasium.Env):
    """A simulator of which a process holds one."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)
    is_there = False

    def __init__(self):
        if OfOneProcess.is_there:
            raise OSError("port 5005 is taken")
        OfOneProcess.is_there = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def close(self):
        OfOneProcess.is_there = False


gymnasium.register("test/OfOneProcess-v0", entry_point=OfOneProcess)


def test_of_what_a_process_holds_one_it_is_told_how_to_have_several():
    for _ in range(2):  # the one that was built is closed
        with pytest.raises(MerlinError, match=r"port 5005 is taken at .*; 1 of 3 could be built: .*async.*num.envs.*1"):
            make_environment("test/OfOneProcess-v0", 3)
    for num_envs, vectorization in ((3, "async"), (1, "sync")):
        with make_environment("test/OfOneProcess-v0", num_envs, vectorization=vectorization) as environment:
            assert environment.reset(0).observation["observation"].tolist() == [0] * num_envs
