"""A population that is killed at random moments: whole checkpoints are left, and it goes on bit for bit."""

import io
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merlin.population import run
from merlin.population.directory import CONFIG, JOURNAL
from merlin.training import checkpoint
from tests.population.test_population import same
from tests.population.test_run import SETTINGS, config, rows

ROOT = Path(__file__).parents[2]
ALWAYS = 1e-9  # seconds between checkpoints: one after each window
PAST = replace(SETTINGS, past_selves=2, past_every=5)

KILL = """
import os, signal, sys, time
from tests.population.test_killed import check_whole, train
whole, killed, windows, *moments = *sys.argv[1:3], int(sys.argv[3]), *map(float, sys.argv[4:])

def begin(run_dir):
    child = os.fork()
    if child == 0:
        train(run_dir, windows)
        os._exit(0)
    return child

start = time.monotonic()
assert os.waitpid(begin(whole), 0)[1] == 0
seconds = time.monotonic() - start
for part in moments:
    child = begin(killed)
    time.sleep(part * seconds)
    os.kill(child, signal.SIGKILL)
    print(os.WIFSIGNALED(os.waitpid(child, 0)[1]), check_whole(killed), flush=True)
assert os.waitpid(begin(killed), 0)[1] == 0
"""
"""Trains one population, and another that is killed after parts of the time that the first took; both to their end."""


def train(run_dir, windows):
    """Train, or go on, until the end, with a checkpoint after each window."""
    own = config()
    own = replace(own, steps=64 * windows, training=replace(own.training, checkpoint_seconds=ALWAYS))
    resume = (Path(run_dir) / CONFIG).exists()
    return run.train(own, PAST, Path(run_dir), resume=resume, stream=io.StringIO())


def check_whole(run_dir):
    """Return how many steps the last checkpoint is of: it and all others have all of a population, or of an agent."""
    for directory in (Path(run_dir), *Path(run_dir).glob("agents/*")):
        for step in checkpoint.steps(directory):
            networks = {name.partition(".")[0] for name in load_file(step / "agent.safetensors")}
            rest = torch.load(step / "trainer.pt", weights_only=True)
            if directory == Path(run_dir):
                assert networks == set("01234")  # three agents, and two past selves
                assert len(rest["population"]["members"]) == 3 and rest["population"]["arena"] is not None
    return checkpoint.last_step(run_dir) or 0


def everything(run_dir):
    """Return all that a population leaves behind, but for the time that it took."""
    journals = [run_dir / JOURNAL, run_dir / "metrics.jsonl", *sorted(run_dir.glob("agents/*/metrics.jsonl"))]
    last = checkpoint.steps(run_dir)[-1]
    rest = torch.load(last / "trainer.pt", weights_only=True)
    weights = {
        path.relative_to(run_dir): {name: x.clone() for name, x in load_file(path).items()}
        for directory in (run_dir, *sorted(run_dir.glob("agents/*")))
        for path in [checkpoint.steps(directory)[-1] / "agent.safetensors"]
    }
    configs = [json.loads(path.read_text()) for path in sorted(run_dir.glob("agents/*/config.json"))]
    reported = {name: x for name, x in rest["chronicle"].items() if name != "reported"}  # which has a clock
    return list(map(rows, journals)), rest["population"], reported, weights, configs


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills, windows", [(3, 12), pytest.param(20, 60, marks=pytest.mark.slow)])
def test_a_population_killed_at_random_moments_equals_one_that_never_was(kills, windows, tmp_path):
    draws = random.Random(kills)
    moments = [str(draws.uniform(0.1, 3) / kills) for _ in range(kills)]
    arguments = [sys.executable, "-c", KILL, str(tmp_path / "whole"), str(tmp_path / "killed"), str(windows), *moments]
    told = subprocess.run(
        arguments, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    were_killed, steps = zip(*(line.split() for line in told.stdout.splitlines()), strict=True)
    assert "True" in were_killed and len(steps) == kills
    assert [int(x) for x in steps] == sorted(map(int, steps))  # a kill loses nothing that was saved
    whole, killed = everything(tmp_path / "whole"), everything(tmp_path / "killed")
    for one, other in zip(whole, killed, strict=True):
        assert same(one, other)
    assert {"deal", "evolution", "past"} <= {row["kind"] for row in whole[0][0]}
