import json
import os
import subprocess
import sys
import time

import pytest
from PIL import Image

from merlin.runs import tracking
from merlin.runs.tracking import Tracker

KEY = "0123456789" * 4

# Stands in for wandb: writes down what is asked of it, without a server.
FAKE_WANDB = """
import json, os, sys
def record(**what):
    with open(os.environ["FAKE_WANDB_CALLS"], "a") as file:
        file.write(json.dumps(what, default=str) + "\\n")
def Settings(**settings):
    return settings
def Image(path):
    return "Image " + path
def Video(path, format):
    return f"Video {format} " + path
class Run:
    url = "https://example.org/run"
    def define_metric(self, name, step_metric=None):
        pass
    def log(self, metrics):
        if "bad" in metrics:
            raise RuntimeError("cannot\\nlog")
        record(log=metrics)
    def finish(self, exit_code):
        record(finish=exit_code)
def init(**arguments):
    print("chatter")
    print("chatter", file=sys.stderr)
    record(init=arguments, argv=sys.argv, terminal=sys.stdin.isatty())
    return Run()
"""


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Replace wandb by the stand-in; return a function that reads what was asked of it."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/wandb.py").write_text(FAKE_WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_WANDB_CALLS", str(tmp_path / "calls"))
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def start(tmp_path, mode, **more):
    notes = []
    config = {"seed": 3, "model": {"kl_cost": 0.1}}
    return Tracker(mode, tmp_path / "run", config, "name", "group", note=notes.append, **more), notes


def test_disabled_does_nothing(tmp_path):
    tracker, notes = start(tmp_path, "disabled")
    tracker.log({"x": 1.0}, 1)
    tracker.close()
    assert notes == [] and list((tmp_path / "run").iterdir()) == []


def test_auto_without_a_login_says_how_to_turn_it_on_and_starts_nothing(tmp_path):
    tracker, notes = start(tmp_path, "auto")
    tracker.log({"x": 1.0}, 1)
    tracker.close()
    assert len(notes) == 1 and notes[0].startswith('wandb is off: `wandb login` turns it on, and `wandb="offline"` ')
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("place", ["key", "netrc", "NETRC", "settings"])
def test_auto_is_online_wherever_the_login_is_kept(tmp_path, monkeypatch, calls, place):
    login = f"machine api.example.org\n  login user\n  password {KEY}\n"
    if place == "key":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "netrc":
        (tmp_path / "home/.netrc").write_text(login)
        (tmp_path / "home/.netrc").chmod(0o600)
    elif place == "NETRC":
        (tmp_path / "elsewhere").write_text(login)
        monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    else:
        (tmp_path / "home/.config/wandb").mkdir(parents=True)
        (tmp_path / "home/.config/wandb/settings").write_text(f"[default]\napi_key = {KEY}\n")
    tracker, notes = start(tmp_path, "auto")
    tracker.close()
    assert notes == ["wandb: https://example.org/run"]
    assert calls()[0]["init"]["mode"] == "online"


@pytest.mark.parametrize("wish, mode", [("offline", "offline"), ("disabled", None), ("online", "online")])
def test_auto_follows_the_environment_and_an_explicit_mode_does_not(tmp_path, monkeypatch, calls, wish, mode):
    monkeypatch.setenv("WANDB_MODE", wish)
    start(tmp_path, "auto")[0].close()
    start(tmp_path, "offline")[0].close()
    modes = [call["init"]["mode"] for call in calls() if "init" in call]
    assert modes == ([mode] if mode else []) + ["offline"]


def test_wandb_gets_the_run_its_metrics_and_its_pictures_in_order(tmp_path, calls):
    for exit_code in (0, 3):
        tracker, notes = start(tmp_path, "online")
        tracker.log({"loss": 1.5, "nothing": float("nan")}, 100)
        tracker.log_media(tmp_path / "a.png", "picture")
        tracker.log_media(tmp_path / "a.gif", "episode")
        tracker.close(exit_code)
        tracker.close()  # a second time does no harm
        assert notes == ["wandb: https://example.org/run"]
    run_id = (tmp_path / "run/wandb_id.txt").read_text().strip()
    first, *rest = calls()[:5]
    asked = {name: first["init"][name] for name in ("id", "resume", "name", "group", "config", "dir", "mode")}
    assert asked == {
        "id": run_id, "resume": "allow", "name": "name", "group": "group", "mode": "online",
        "config": {"seed": 3, "model": {"kl_cost": 0.1}}, "dir": str(tmp_path / "run"),
    }  # fmt: skip
    assert first["argv"] == sys.argv and not first["terminal"]
    assert str(rest[0]["log"]) == "{'loss': 1.5, 'nothing': nan, 'env_steps': 100}"
    assert rest[1]["log"] == {"picture": f"Image {tmp_path}/a.png"}
    assert rest[2]["log"] == {"episode": f"Video gif {tmp_path}/a.gif"}
    assert rest[3] == {"finish": 0}
    assert calls()[5]["init"]["id"] == run_id, "a resumed run keeps its id"
    assert calls()[-1] == {"finish": 3}


def test_a_failing_log_is_one_line_and_the_rest_is_logged(tmp_path, calls):
    tracker, notes = start(tmp_path, "online")
    for step in range(5):
        tracker.log({"bad": 1.0} if step < 3 else {"good": 1.0}, step)
    tracker.close()
    assert notes[1:] == ["wandb failed to log, and may again: cannot log"]
    assert [call["log"]["env_steps"] for call in calls() if "log" in call] == [3, 4]


def test_a_missing_or_broken_wandb_is_one_line(tmp_path, calls):
    (tmp_path / "fake/wandb.py").write_text("raise ImportError('no\\nwandb')")
    tracker, notes = start(tmp_path, "online")
    for step in range(100):
        tracker.log({"x": 1.0}, step)
    begin = time.monotonic()
    tracker.close()
    assert notes == ["wandb is off for this run: no wandb"]
    assert time.monotonic() - begin < 5


def wandb_that(does):
    return FAKE_WANDB.replace("record(log=metrics)", does)


DEATHS = {
    "is not installed": "raise ModuleNotFoundError(\"No module named 'wandb'\")",
    "exits at import": "import sys; sys.exit(0 or 3)",
    "ends at import": "import os; os._exit(5)",
    "ends at import as if all were well": "import os; os._exit(0)",
    "is killed at import": "import os; os.kill(os.getpid(), 9)",
    "is no module of that kind": "x = 1",
    "cannot be parsed": "def (",
    "has no memory": "raise MemoryError",
    "writes garbage": "import os\nos.write(1, b'\\xff\\x00')\nraise ValueError('\\udcff\\x00')",
    "recurses": "def f(): f()\nf()",
    "is interrupted": "raise KeyboardInterrupt",
    "finds the disk full": FAKE_WANDB + "def init(**_): raise OSError(28, 'No space left on device')",
    "cannot connect": FAKE_WANDB + "def init(**_): raise ConnectionError('HTTP 500\\nsorry')",
    "exits at init": FAKE_WANDB + "def init(**_): raise SystemExit('bye')",
    "gives no run": FAKE_WANDB + "def init(**_): return None",
    "is killed while it logs": wandb_that("os.kill(os.getpid(), 15)"),
    "crashes while it logs": wandb_that("os.kill(os.getpid(), 11)"),
    "exits while it logs": wandb_that("sys.exit(4)"),
    "ends while it logs": wandb_that("os._exit(6)"),
    "fails at every log": wandb_that("raise OSError(28, 'No space left on device')"),
    "fails, then dies": wandb_that("record(log=1) if 'x' not in metrics else [][0]") + "    os._exit(7)",
    "closes its pipes": wandb_that("(os.close(0), os.close(1), os.closerange(3, 99), os._exit(8))"),
    "fails at the end": FAKE_WANDB.replace("record(finish=exit_code)", "raise TimeoutError('the server')"),
    "exits at the end": FAKE_WANDB.replace("record(finish=exit_code)", "os._exit(9)"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_wandb_that_fails_is_told_once_and_costs_nothing(tmp_path, calls, how):
    (tmp_path / "fake/wandb.py").write_text(DEATHS[how], errors="surrogateescape")
    tracker, notes = start(tmp_path, "online")
    begin = time.monotonic()
    while time.monotonic() - begin < 20 and len(notes) < 2 and not any("off" in note for note in notes):
        tracker.log({"x": 1.0}, 1)
        time.sleep(0.02)
        if "at the end" in how and notes:
            break
        if "fails" in how and "log" in how and len(notes) > 1:
            break
    tracker.close()
    failures = [note for note in notes if note != "wandb: https://example.org/run"]
    assert len(failures) == 1 and "\n" not in failures[0] and failures[0].startswith("wandb "), notes
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_run_name_that_cannot_be_read_turns_wandb_off(tmp_path, calls, content):
    path = tmp_path / "run/wandb_id.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    tracker, notes = start(tmp_path, "online")
    tracker.log({"x": 1.0}, 1)
    tracker.close()
    assert len(notes) == 1 and notes[0].startswith("wandb is off for this run: ") and not tracker.is_on


def test_a_login_that_is_no_text_is_none(tmp_path, monkeypatch):
    (tmp_path / "home/.netrc").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "home/.config/wandb").mkdir(parents=True)
    (tmp_path / "home/.config/wandb/settings").write_bytes(b"\xff\xfe\x00")
    assert not tracking.may_be_logged_in()


def test_a_stuck_wandb_costs_reports_never_time(tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text("import time\ntime.sleep(100)")
    monkeypatch.setattr(tracking, "__file__", str(tmp_path / "stuck.py"))
    monkeypatch.setattr(tracking, "_QUEUE_SIZE", 10)
    tracker, notes = start(tmp_path, "online", close_seconds=0.5)
    begin = time.monotonic()
    for step in range(50):
        tracker.log({"x" * 20_000: 1.0}, step)
    assert time.monotonic() - begin < 0.5
    tracker.close()
    assert time.monotonic() - begin < 3
    assert notes[0] == "wandb had not finished after 0.5 s and was stopped; the run is complete"
    assert notes[1].startswith("wandb was too slow for ") and 30 <= int(notes[1].split()[5]) <= 40


def test_a_run_whose_trainer_was_killed_is_marked_as_failed(tmp_path, calls):
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom merlin.runs.tracking import Tracker\n"
        "tracker = Tracker('online', Path(sys.argv[1]), {}, note=lambda line: os._exit(9))\ntime.sleep(60)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ['PYTHONPATH']}"}
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], env=environment).returncode == 9
    deadline = time.monotonic() + 20
    while calls()[-1] != {"finish": 1} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert calls()[-1] == {"finish": 1}


def test_wandb_itself_writes_an_offline_run(tmp_path):
    pytest.importorskip("wandb")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    tracker, notes = start(tmp_path, "offline", close_seconds=60.0)
    tracker.log({"loss": 1.5, "nothing": float("nan")}, 100)
    tracker.log_media(tmp_path / "a.png", "picture")
    tracker.close()
    assert notes == [f"wandb: offline, files in {tmp_path / 'run'}/wandb"]
    run_id = (tmp_path / "run/wandb_id.txt").read_text().strip()
    (stored,) = (tmp_path / "run/wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    assert b"nothing" in stored.read_bytes()
    assert list(stored.parent.glob("files/media/images/picture_*.png"))


def test_wandb_without_a_login_is_one_line_and_no_question(tmp_path):
    pytest.importorskip("wandb")
    tracker, notes = start(tmp_path, "online", close_seconds=60.0)
    tracker.close()
    assert len(notes) == 1 and notes[0].startswith("wandb is off for this run: No API key configured")


def test_an_unreachable_server_does_not_hold_up_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker, notes = start(tmp_path, "auto", close_seconds=3.0)
    begin = time.monotonic()
    for step in range(100):
        tracker.log({"x": 1.0}, step)
    assert time.monotonic() - begin < 0.5
    tracker.close()
    assert time.monotonic() - begin < 8
    assert notes == ["wandb had not finished after 3 s and was stopped; the run is complete"]
