"""merlin ray: processes that Ray places train together, are stopped together, and go on."""

import importlib.util
import signal
import subprocess
import sys
import time

import pytest

from merlin.cli import main
from merlin.runs.metrics import read_rows
from merlin.training import checkpoint
from tests.runs.test_distributed import ROOT, command

HAS_RAY = importlib.util.find_spec("ray") is not None


def start(*arguments):
    whole = [sys.executable, "-m", "merlin", "ray", "--processes", "2", *arguments]
    return subprocess.Popen(whole, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--processes", "2", "evaluate", "runs/a"], "`merlin train` or `merlin population`, but evaluate came"),
        (["--processes", "2"], "but nothing came"),
        (["--processes", "1", "train"], "from 2 to 10000, got '1'"),
        (
            ["--processes", "2", "train", "--stpes", "3"],
            "merlin train: there is no option --stpes: did you mean --steps",
        ),
    ],
)
def test_what_cannot_be_started_is_told_once(capsys, arguments, told):
    with pytest.raises(SystemExit, match="2"):
        main(["ray", *arguments])
    assert told in capsys.readouterr().err


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_what_is_missing_is_told(capsys):
    assert main(["ray", "--processes", "2", "train"]) == 1
    assert "needs Ray, which is not installed: run pip install 'merlin-agents[ray]'" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--processes", "1000", "train"], "1000 processes must find 1000 CPUs together, but the cluster has"),
        (["--processes", "2", "--address", "127.0.0.1:1", "train"], "There must be a Ray cluster at 127.0.0.1:1, but"),
    ],
)
def test_room_that_there_is_not_is_told(capsys, arguments, told):
    assert main(["ray", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
def test_processes_stop_with_a_checkpoint_and_go_on(tmp_path):
    run_dir = tmp_path / "run"
    process = start(*command(run_dir, "--steps", "100000000", "--set", "training.checkpoint_seconds=1000"))
    try:
        begin = time.monotonic()
        while not (run_dir / "metrics.jsonl").exists() and time.monotonic() - begin < 120:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # as `timeout` does, which is one request
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert f"merlin ray --processes 2 train --resume {run_dir}\n" in out
    done = read_rows(run_dir)[-1]["env_steps"]
    assert int(checkpoint.steps(run_dir)[-1].name.removeprefix("step-")) == done
    resumed = start("train", "--resume", str(run_dir), "--steps", str(done + 2048))
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and read_rows(run_dir)[-1]["env_steps"] >= done + 2048, out + err
    told = start("train", "nonsense/X-v0").communicate(timeout=120)[0]
    assert told.count("There is no task 'nonsense/X-v0'") == 1
