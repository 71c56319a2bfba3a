"""Several processes that train one agent: the same learning as one, one run directory, exact resume, and a death."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merlin import distributed
from merlin.agents.learner import Window, columns_of
from merlin.cli import main
from merlin.runs.run import build_agent, build_environment
from merlin.states import map_state
from merlin.training import checkpoint
from merlin.training.trainer import Trainer
from tests.agents.helpers import ON_POLICY
from tests.training.test_trainer import tiny

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def together(arguments, number=2):
    """Start as many processes of a command as torchrun would, and return them."""
    shared = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(number)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(number)
    ]


def ends(processes, seconds=200):
    """Return the exit status, output and errors of each process; none is left behind."""
    try:
        results = [(*process.communicate(timeout=seconds)[::-1], process.returncode) for process in processes]
        return [(code, output, errors) for errors, output, code in results]
    finally:
        for process in processes:
            with process:  # which closes its pipes: what a test leaves open fails a later one
                process.kill()


def to_double(tree):
    """Return the same tree in float64."""
    return map_state(lambda x: x.double() if x.is_floating_point() else x, tree)


def in_double(unroll):
    observation = {name: to_double(x) for name, x in unroll.observation.items()}
    return to_double(unroll._replace(observation=None))._replace(observation=observation)


def learn_from(path, first, last):
    """Return the weights after learning from some columns of a window that was stored."""
    unroll, state, config = torch.load(path, weights_only=False)
    columns = torch.arange(first, last)
    with build_environment(config, last - first) as environment:
        agent = build_agent(config, environment).double()
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=config.seed)
        window = Window(columns_of(unroll, columns), map_state(lambda x: x[columns], state))
        trainer.learner.update(window, 1.0)
        return agent.state_dict()


LEARN_SHARES = """
import sys, torch
from tests.runs.test_distributed import learn_from
from merlin import distributed
with distributed.joined(torch.device("cpu")):
    per = 8 // distributed.world_size()
    for path in sys.argv[1:]:
        weights = learn_from(path, per * distributed.rank(), per * (distributed.rank() + 1))
        torch.save(weights, f"{path}.{distributed.rank()}")
"""


def window_to_learn_from(path, name, task=None, empty=0):
    """Store a window of an agent's in which shares do not weigh the same; return the configuration.

    Args:
        empty: Environments, the first ones, none of whose rows counts.
    """
    config = tiny(name, passes=2, policy_passes=3 if name == "merlin" else 1)
    config = replace(config, model=replace(config.model, normalize_advantages=True), task=task or config.task)
    if name == "ftw":  # whose processes keep sequences of their own to predict rewards of
        config = replace(config, model=replace(config.model, reward_prediction_cost=0.0))
    if task:  # where losses weigh what is seen by how rare it is in all of the window
        decoder = replace(config.model.decoder, grid_rarity=0.5)
        config = replace(config, model=replace(config.model, decoder=decoder))
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=config.steps, seed=1)
        trainer.update()
        window, _ = trainer.rollout.collect(4)
    unroll, state = in_double(window.unroll), to_double(window.state)
    unroll.is_valid[1:, 1] = False  # so that the processes' shares do not weigh the same
    unroll.is_valid[2, 6] = False
    unroll.is_valid[:, :empty] = False
    torch.save((unroll, state, config), path)
    return config


def test_processes_learn_what_one_with_all_environments_learns(tmp_path):
    """Of all agents in the same two processes, which take seconds to start."""
    cases = [*((name,) for name in ON_POLICY), ("merlin", "merlin/Empty-v0"), ("merlin", None, 4)]
    paths = [tmp_path / str(number) for number in range(len(cases))]
    configs = [window_to_learn_from(path, *case) for path, case in zip(paths, cases, strict=True)]
    for code, output, errors in ends(together(["-c", LEARN_SHARES, *map(str, paths)])):
        assert code == 0, output + errors
    for path, case, config in zip(paths, cases, configs, strict=True):
        expected = learn_from(path, 0, 8)
        for rank in range(2):
            learnt = torch.load(f"{path}.{rank}")
            for parameter, x in expected.items():
                torch.testing.assert_close(learnt[parameter], x, rtol=1e-7, atol=1e-9, msg=f"{case} {rank} {parameter}")
        with build_environment(config) as environment:
            before = build_agent(config, environment).double().state_dict()
        assert any((before[parameter] - x).abs().max() > 1e-3 for parameter, x in expected.items()), case


ONE_AFTER_ANOTHER = """
import json, os, sys
from merlin.cli import main
from merlin.runs.monitor import Monitor
Monitor.draw = lambda self: None  # a learning curve, which takes longer than a run
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = port  # one of its own: whoever is done first would meet the other's last group
    assert main(arguments) == 0
"""


def command(run_dir, *more):
    values = ("report_steps=2048", "checkpoint_seconds=1", "final_entropy_fraction=1")
    settings = [word for value in values for word in ("--set", f"training.{value}")]
    return ["train", "merlin/TMaze-v0", "--num-envs", "64", "--run-dir", str(run_dir), *settings, *more]


def finals(run_dir):
    last = checkpoint.steps(run_dir)[-1]  # its bytes tell of the training state too, which has a clock
    return last.name, {name: x.tolist() for name, x in load_file(last / "agent.safetensors").items()}


@pytest.mark.parametrize("agent", ["merlin", pytest.param("dreamer", marks=pytest.mark.slow)])
def test_a_run_of_two_processes_has_one_directory_and_resumes_exactly(tmp_path, capsys, agent):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    of_agent = ["--agent", agent]
    if agent == "dreamer":  # whose processes have a replay each, here one that wraps
        of_agent += ["--set", "model.replay_rows=2048", "model.replay_ratio=1", "model.replay_windows=8"]
    resume = ["train", "--resume", str(halves), "--steps"]
    runs = [command(run_dir, "--steps", str(n), *of_agent) for run_dir, n in ((whole, 8192), (halves, 4096))]
    runs = [(free_port(), run) for run in (*runs, [*resume, "8192"])]
    processes = together(["-c", ONE_AFTER_ANOTHER, json.dumps(runs)])
    (code, output, errors), (other_code, *others) = ends(processes)
    assert (code, other_code) == (0, 0), errors + others[1]
    assert others == ["", ""], "only the first process speaks"
    assert output.count("done after") == 3 and "env_steps" in errors
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [2048, 4096, 6144, 8192], "the steps of both count"
    assert all(row["episodes"] > 0 for row in rows)

    assert finals(halves) == finals(whole)
    rest = torch.load(checkpoint.steps(whole)[-1] / "trainer.pt", weights_only=True)
    first, second = (share["generator"] for share in rest["trainer"]["shares"])
    assert not torch.equal(first, second), "each process makes choices of its own"
    if agent == "dreamer":
        files = {path.name.split("-")[2] for path in (whole / "replay").iterdir()}
        assert files == {"0.pt", "1.pt"}

    assert main([*resume, "9000"]) == 1
    told = "as many processes as it began with, which were 2, but there are 1: start it by torchrun --nproc-per-node 2."
    assert told in capsys.readouterr().err


def test_when_a_process_dies_the_other_ends_and_the_run_can_be_resumed(tmp_path):
    run_dir = tmp_path / "run"
    processes = together(["-m", "merlin", *command(run_dir, "--steps", "100000000")])
    begin = time.monotonic()
    while not checkpoint.steps(run_dir) and time.monotonic() - begin < 60:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, errors), (killed, *_) = ends(processes, 60)
    assert killed == -signal.SIGKILL and code == 1
    assert "that process 0 waited for ended or did not answer" in errors.splitlines()[-1]
    steps = int(checkpoint.steps(run_dir)[-1].name.removeprefix("step-"))
    resumed = together(["-m", "merlin", "train", "--resume", str(run_dir), "--steps", str(steps + 2048)])
    for code, _, errors in ends(resumed):
        assert code == 0, errors


def test_an_interrupt_of_one_process_stops_all_with_a_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    never = ("--set", "training.checkpoint_seconds=1000")
    processes = together(["-m", "merlin", *command(run_dir, "--steps", "100000000", *never)])
    begin = time.monotonic()
    while not (run_dir / "metrics.jsonl").exists() and time.monotonic() - begin < 60:
        time.sleep(0.1)
    time.sleep(2)
    assert not checkpoint.steps(run_dir)
    processes[1].send_signal(signal.SIGTERM)
    results = ends(processes, 60)
    for code, _, errors in results:
        assert code == 130, errors
    assert checkpoint.steps(run_dir)
    assert f"torchrun --nproc-per-node 2 -m merlin train --resume {run_dir}\n" in results[0][1]


def test_environments_that_cannot_be_shared_out_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert main([*command(tmp_path / "run"), "--num-envs", "63"]) == 1
    assert "num_envs must be a multiple of the 2 processes, but is 63" in capsys.readouterr().err
