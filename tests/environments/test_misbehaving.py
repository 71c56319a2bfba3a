"""Whatever an environment does, here or in a worker process, is handled right or ends in one sentence."""

import io
import json
import re
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from merlin.cli import main
from merlin.environments import workers
from merlin.environments.batch import make_environment
from merlin.environments.config import EnvironmentConfig
from merlin.errors import MerlinError
from merlin.runs.presets import preset
from merlin.runs.run import train
from tests.environments.misbehaving import MISDEEDS, SUBPROCESS_SECONDS

pytestmark = pytest.mark.usefixtures("no_pictures")
IN_PROCESS = [(name, "sync") for name, kind in MISDEEDS.items() if kind.in_process]
IN_WORKERS = [(name, "async") for name in MISDEEDS]
ALWAYS = {"sys.exit()", "start a program", "print"}  # of those that can also be seen here; of others each tenth
WAYS = IN_PROCESS + [
    pytest.param(
        *way, marks=[] if way[0] in ALWAYS or not MISDEEDS[way[0]].in_process or i % 10 == 0 else pytest.mark.slow
    )
    for i, way in enumerate(IN_WORKERS)
]


def test_there_are_many():
    print(f"{len(MISDEEDS)} misdeeds, {len(IN_PROCESS + IN_WORKERS)} with the ways in which they are done")
    assert len(MISDEEDS) > 100 and all(kind.told is None or len(kind.told) > 5 for kind in MISDEEDS.values())


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning", "ignore:it is late")
def test_a_misdeed_is_handled_or_told_in_one_sentence(name, way, monkeypatch, capfd):
    monkeypatch.setattr(workers, "CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(workers, "DYING_SECONDS", 0.5)
    told, config = MISDEEDS[name].told, EnvironmentConfig(step_seconds=1.5 if "sleep" in name else 60.0)
    processes = []
    with pytest.raises(MerlinError, match=told) if told else nullcontext() as raised:
        arguments = {"vectorization": way, "env_kwargs": {"misdeed": name}, "config": config}
        with make_environment("test/Misbehaving-v0", 2, **arguments) as environment:
            processes = getattr(environment.vector_env.unwrapped, "processes", [])
            environment.reset(0)
            for _ in range(7):
                timestep = environment.step(torch.zeros(2, dtype=torch.int64))
                assert all(x.isfinite().all() for x in timestep.observation.values())
    if told:
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
        assert str(raised.value).endswith(".") and "unexpected" not in str(raised.value)
    assert not any(process.is_alive() for process in processes)
    assert "Traceback" not in capfd.readouterr().err
    if name == "start a program":
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert f"sleep {SUBPROCESS_SECONDS}" not in running


def small(**env_kwargs):
    config = preset("rl-lstm", "test/Misbehaving-v0", env_kwargs)
    model = replace(config.model, hidden_size=8, head_size=8)
    training = replace(config.training, unroll_length=2, minibatches=1)
    return replace(config, num_envs=2, steps=40, device="cpu", model=model, training=training)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_was_learnt_before_an_environment_failed_is_saved(tmp_path, way):
    stream = io.StringIO()
    config = replace(small(misdeed="sys.exit()"), vectorization=way)
    with pytest.raises(MerlinError, match="failed in step: SystemExit"):
        train(config, tmp_path / "run", stream=stream)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] != []
    assert "has a checkpoint of 4 steps" in stream.getvalue()
    with pytest.raises(MerlinError, match="failed in step: SystemExit"):
        train(config, tmp_path / "run", resume=True, stream=io.StringIO())


@pytest.mark.parametrize("way", ["sync", "async"])
def test_what_environments_print_is_no_part_of_a_json_object(tmp_path, capfd, way):
    train(replace(small(misdeed="print"), vectorization=way), tmp_path / "run", stream=io.StringIO())
    capfd.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--json"]) == 0
    output, errors = capfd.readouterr()
    assert json.loads(output)["episodes"] == 2 and "a line of its own" in errors


def test_numbers_beyond_a_box_are_told_once(tmp_path):
    stream = io.StringIO()
    config = small(misdeed="observe beyond the bounds")
    train(replace(config, training=replace(config.training, report_steps=4)), tmp_path / "run", stream=stream)
    told = "number 2 of entry 'number' of test/Misbehaving-v0 reached .* to 1.5, .* 0 to 1:"
    assert len(re.findall(told, stream.getvalue())) == 1
