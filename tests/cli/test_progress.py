"""What an evaluation shows while it plays."""

import io
from types import SimpleNamespace

import pytest

from merlin.cli import progress
from merlin.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def at(ended, asked, steps, is_done=False):
    return SimpleNamespace(returns=[0.0] * ended, episodes=asked, env_steps=steps, is_done=is_done)


def test_a_pipe_gets_a_line_now_and_then_and_at_least_each_minute(clock):
    shown = Progress(stream := io.StringIO())
    for second in range(125):
        clock.seconds = 100.0 + second
        shown(at(second // 10, 12, 1000 * second))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluating: 2 of 12 episodes, 20,000 steps, 20 s" and len(lines) == 6


def test_a_terminal_gets_a_bar_that_goes_away_at_the_end(clock):
    shown = Progress(stream := Terminal())
    clock.seconds += 1
    shown(at(1, 2, 10))
    assert stream.getvalue() == f"\r\x1b[K|{'#' * 15:<30}| 1 of 2 episodes, 10 steps, 1 s"
    shown(at(2, 2, 20, is_done=True))
    assert stream.getvalue().endswith("\r\x1b[K")
