"""Checks every jaxtyping annotation of the package while the tests run."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
_hook = install_import_hook(["merlin"], "beartype.beartype")
