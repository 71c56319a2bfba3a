"""FTW on a CPU: small cores, whatever the task."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}


def table(name: str, task: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what FTW's settings are where they are not the defaults.

    Args:
        name: Of the family of tasks.
    """
    return {
        "num_envs": 64,
        "model.hidden_size": 64,
        "model.latent_size": 32,
        "model.memory_size": 32,
        "model.word_size": 16,
        "model.num_read_keys": 2,
        "model.head_size": 128,
        "model.entropy_cost": 0.04,
        "model.return_cost": 0.5,
        "model.encoder": ENCODER,
        "training.unroll_length": 16,
        "training.learning_rate": 3e-3,
        "training.final_entropy_fraction": 0.1,
    }


def paper() -> dict[str, Any]:
    """Return what the paper states, as far as it is not the default (Jaderberg et al. 2019, supplement)."""
    return {
        "model.head_inputs": "latent",
        "training.unroll_length": 100,
        "training.learning_rate": 1e-4,
    }
