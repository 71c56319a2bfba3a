"""A tenth of what `benchmarks/attack.py` does to runs; all of it takes twenty minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parents[1] / "benchmarks" / "attack.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("section", ["kills", "bits", "resumes", "truncations", "disk", "environments"])
def test_runs_survive_a_tenth_of_the_attack(section):
    command = [sys.executable, ATTACK, section, "--fraction", "0.1", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
