"""T-maze: one decision an episode is all that needs memory."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 64}


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    The longer the corridor, the more environments, for as many decisions in a window. Entropy keeps walking from being
    learnt so well that nobody turns at the junction.
    """
    length = env_kwargs.get("length", 10)
    steps = 400_000 + 120 * length**2
    num_envs = 64 * max(1, round(length / 50))
    memory_size = min(length + 16, 64)
    return {
        "merlin": {
            "steps": steps,
            "num_envs": num_envs,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.policy_hidden_size": 64,
            "model.policy_num_read_keys": 3,
            "model.memory_size": memory_size,
            "model.entropy_cost": 0.04,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 16,
            "training.learning_rate": 3e-3,
            "training.policy_learning_rate": 2e-3,
            "training.final_entropy_fraction": 0.1,
        },
        "rl-mem": {
            "steps": steps,
            "num_envs": num_envs,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.memory_size": memory_size,
            "model.entropy_cost": 0.04,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 3e-3,
            "training.policy_learning_rate": 2e-3,
            "training.final_entropy_fraction": 0.1,
        },
        "rl-lstm": {
            "steps": steps,
            "num_envs": num_envs,
            "model.hidden_size": 64,
            "model.entropy_cost": 0.04,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 3e-3,
            "training.policy_learning_rate": 2e-3,
            "training.final_entropy_fraction": 0.1,
        },
    }
