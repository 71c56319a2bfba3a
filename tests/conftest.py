"""Checks every jaxtyping annotation of the package while the tests run."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import pytest
import torch

from tests.shapes import check_every_shape

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # no test cuts the power, and a busy disk may take a second for each
check_every_shape()


@pytest.fixture
def on_a_command_line():
    """Messages that speak of the command line's options."""
    from merlin.errors import on_the_command_line  # after what checks shapes is in place

    with on_the_command_line("train"):
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw no learning curve, which takes longer than the runs of most tests."""
    monkeypatch.setattr("merlin.runs.monitor.Monitor.draw", lambda self: None)


@pytest.fixture
def steps_take_as_long(monkeypatch):
    """Looks at tasks find steps that take the same time, whatever else the machine does."""
    from merlin.environments import sight  # after what checks shapes is in place

    monkeypatch.setattr(sight, "_SEEN", {})
    monkeypatch.setattr(sight, "_step_seconds", lambda environment: 1e-4)
