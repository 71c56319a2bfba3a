"""Checks every jaxtyping annotation of the package while the tests run."""

import os

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
_hook = install_import_hook(["merlin"], "beartype.beartype")


@pytest.fixture
def forgets_ids():
    """Forgets the environments that a test registers by their classes, so that another may use their names."""
    import gymnasium

    before = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - before:
        if callable(gymnasium.registry[name].entry_point):
            del gymnasium.registry[name]
