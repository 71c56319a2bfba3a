import fcntl
import io
import json
import math
import os
import struct
import termios
import time

import pytest

from merlin.errors import MerlinError
from merlin.runs import reporting
from merlin.runs.metrics import read_rows
from merlin.runs.reporting import Reporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def metrics(env_steps, **more):
    return {"env_steps": env_steps, "wall_seconds": env_steps / 1000, "env_steps_per_second": 1000.0, **more}


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_each_report_is_one_row_and_is_on_disk_at_once(tmp_path):
    with Reporter(tmp_path, 1000, stream=io.StringIO()) as reporter:
        reporter.report(metrics(100, kl_nats=7.5, episode_return_mean=math.nan, loss=-math.inf))
        assert rows(tmp_path) == [metrics(100, kl_nats=7.5, episode_return_mean=None, loss=None)]
        reporter.report(metrics(200))
    assert [row["env_steps"] for row in rows(tmp_path)] == [100, 200]


def test_a_pipe_gets_one_aligned_line_per_report(tmp_path):
    stream = io.StringIO()
    with Reporter(tmp_path, 1_000_000, stream=stream) as reporter:
        scores = {"episode_return_mean": 1.42, "episode_return_std": 0.61, "kl_nats": 7.1}
        reporter.report(metrics(64_000, **{**scores, "env_steps_per_second": 25_310.4}))
        reporter.report(metrics(1_000_000, **scores, success_rate=0.5))
        reporter.report(metrics(1_000_000, kl_nats=187.2, observation_explained=-2.5))
        reporter.report(metrics(1_000_000, kl_nats=187.2, observation_explained=0.934))
    assert stream.getvalue().splitlines() == [
        "env_steps    64,000    25,310/s  return  1.42 ± 0.61  kl  7.1 nats  01:04 left 00:37",
        "env_steps 1,000,000     1,000/s  return  1.42 ± 0.61  success  50%  kl  7.1 nats  16:40 left 00:00",
        "env_steps 1,000,000     1,000/s  kl 187.2 nats  explained   0%  16:40 left 00:00",
        "env_steps 1,000,000     1,000/s  kl 187.2 nats  explained  93%  16:40 left 00:00",
    ]


def test_hours_and_unknown_speed(tmp_path):
    stream = io.StringIO()
    with Reporter(tmp_path, 10**8, stream=stream) as reporter:
        reporter.report({"env_steps": 5, "wall_seconds": 7384.0, "episode_return_mean": math.nan})
    assert stream.getvalue().endswith(" 2:03:04 left --:--\n")


def test_a_terminal_gets_a_bar_that_notes_do_not_break(tmp_path):
    stream = Terminal()
    with Reporter(tmp_path, 1000, first_step=250, stream=stream) as reporter:
        reporter.report(metrics(500, episode_return_mean=1.5))
        reporter.note("hello")
    shown = stream.getvalue()
    assert " 25% |" in shown, "the bar starts where the run resumes"
    assert " 50% |" in shown and "500/1.00k" in shown and "return  1.50" in shown
    assert "\rhello\n" in shown.replace(" ", ""), "the bar is cleared before the line is written"


@pytest.mark.parametrize(
    "columns, scores",
    [
        (140, ["return -0.19 ± 0.61", "success  50%", "kl 485.8 nats", "explained  93%"]),
        (110, ["return -0.19 ± 0.61", "success  50%", "explained  93%"]),
        (100, ["return -0.19", "success  50%", "explained  93%"]),
    ],
)
def test_a_narrow_terminal_goes_without_the_kl_and_then_without_the_spread(tmp_path, columns, scores):
    person, program = os.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    seen = {"episode_return_mean": -0.19, "episode_return_std": 0.61, "success_rate": 0.5}
    with os.fdopen(program, "w") as stream, Reporter(tmp_path, 1_000_000, stream=stream) as reporter:
        reporter.report(metrics(500_000, **seen, kl_nats=485.8, observation_explained=0.93))
        shown = b""
        while b"explained" not in shown:
            shown += os.read(person, 10_000)
    os.close(person)
    line = shown.decode().rpartition("\r")[2]
    assert line.rstrip().endswith(", " + ", ".join(scores)) and len(line) <= columns
    assert len(line.split("|")[1]) >= 10, "a bar is left"


def test_warnings_are_given_once_per_key(tmp_path):
    stream = io.StringIO()
    with Reporter(tmp_path, 1000, stream=stream) as reporter:
        for key in ["collapse", "collapse", "other"]:
            reporter.warn_once(key, f"{key} happened")
    assert stream.getvalue() == "warning: collapse happened\nwarning: other happened\n"


def test_resuming_drops_rows_beyond_the_checkpoint_and_a_torn_line(tmp_path):
    with Reporter(tmp_path, 1000, stream=io.StringIO()) as reporter:
        for env_steps in (100, 200, 300):
            reporter.report(metrics(env_steps))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 4')
    with Reporter(tmp_path, 1000, first_step=200, stream=io.StringIO()) as reporter:
        reporter.report(metrics(250))
    assert [row["env_steps"] for row in rows(tmp_path)] == [100, 200, 250]


def test_a_whole_row_without_its_line_break_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 100}\n{"env_steps": 150}')
    Reporter(tmp_path, 1000, first_step=200, stream=io.StringIO()).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"env_steps": 100}\n{"env_steps": 150}\n'


DAMAGED = [
    b"\xfb" + b'"env_steps": 200}',
    b'{"env_steps": 200',
    b'{"env_steps": 200}}',
    b"[200]",
    b"200",
    b'"env_steps"',
    b'{"env_step": 200}',
    b'{"env_steps": "200"}',
    b'{"env_steps": true}',
    b'{"env_steps": -200}',
    b'{"env_steps": 200, "loss": [1]}',
    b'{"env_steps": 200, "loss": NaN}',
    b'{"env_steps": 200, "loss": 1' + b"0" * 400 + b"}",
    b'{"env_steps": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b"\x00" * 50,
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda line: repr(line[:20]))
def test_a_damaged_row_costs_itself_alone_and_is_kept_apart(tmp_path, damaged):
    good = [json.dumps(metrics(step)).encode() for step in (100, 300, 250, 400)]
    path, stream = tmp_path / "metrics.jsonl", io.StringIO()
    path.write_bytes(b"\n".join([good[0], damaged, *good[1:], b'{"env_st']))
    notes = []
    assert [row["env_steps"] for row in read_rows(tmp_path, notes.append)] == [100, 250, 300, 400]
    assert notes == [f"{path} has a damaged row, left out here"]
    Reporter(tmp_path, 1000, first_step=350, reported_step=300, stream=stream).close()
    assert [row["env_steps"] for row in rows(tmp_path)] == [100, 250, 300]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged + b'\n{"env_st\n'
    assert stream.getvalue() == f"{path} had a damaged row, moved into metrics.damaged.jsonl\n"


def test_a_row_that_is_being_written_is_no_damage(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"env_steps": 100}\n{"env_st')
    notes = []
    assert read_rows(tmp_path, notes.append) == [{"env_steps": 100}] and notes == []
    assert read_rows(tmp_path / "nowhere") == []
    (tmp_path / "other" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(MerlinError, match=r"other/metrics.jsonl must be a file of metrics, but .*jsonl is a directory"):
        read_rows(tmp_path / "other")


def test_a_full_disk_gets_one_sentence(tmp_path):
    reporter = Reporter(tmp_path, 1000, stream=io.StringIO())
    reporter.close()
    reporter._file = open("/dev/full", "w")
    for write in (lambda: reporter.report(metrics(100)), reporter.close):
        with pytest.raises(MerlinError, match=r"could not write .*metrics.jsonl \(No space left on device\)"):
            write()


def test_a_run_that_has_nothing_to_report_says_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "SILENCE_SECONDS", 0.2)
    stream, asked = io.StringIO(), []

    def standing():
        asked.append(time.monotonic())
        return "step 3 of 20"

    with Reporter(tmp_path, 1000, stream=stream) as reporter:
        reporter.break_silence(standing)
        deadline = time.monotonic() + 20
        while len(asked) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert asked[1] - asked[0] >= 0.19, "once in each such time"
    lines = stream.getvalue().splitlines()
    assert lines.count("step 3 of 20") == len(asked) and lines[-1] == "step 3 of 20"
    time.sleep(0.5)
    assert len(asked) == 2, "no longer than the run"
    assert rows(tmp_path) == [], "it is no report"
