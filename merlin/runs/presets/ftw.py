"""FTW on a CPU: small cores, whatever the task."""

from collections.abc import Mapping
from typing import Any

from merlin.runs.presets import capture_the_flag

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}


def table(name: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what FTW's settings are where they are not the defaults.

    A KL weight of 1e-3 leaves the latent of a small network a few nats, too few to tell slots apart.

    Args:
        name: Of the family of tasks.
    """
    values = {
        "num_envs": 64,
        "model.hidden_size": 64,
        "model.latent_size": 32,
        "model.memory_size": 64,
        "model.word_size": 16,
        "model.num_read_keys": 2,
        "model.head_size": 128,
        "model.kl_cost": 1e-5,
        "model.prior_kl_cost": 1e-5,
        "model.entropy_cost": 0.02,
        "model.return_cost": 0.5,
        "model.encoder": ENCODER,
        "training.unroll_length": 16,
    }
    if name == "capture-the-flag":
        return (
            values
            | capture_the_flag.COMMON
            | {
                "model.objective": "ppo",
                "model.kl_cost": 2e-3,  # of a variance of returns of 0.005, since events are worth little
                "model.prior_kl_cost": 2e-3,
            }
        )
    values |= {
        "training.learning_rate": 2e-3,
        "training.final_learning_rate_fraction": 0.1,
        "training.final_entropy_fraction": 0.1,
    }
    if name == "tmaze":
        length = env_kwargs.get("length", 10)
        return values | {
            "steps": 400_000 + 120 * length**2,
            "num_envs": 64 * max(1, round(length / 50)),
            "model.memory_size": min(2 * length + 16, 128),
            "model.entropy_cost": 0.04,
            "training.learning_rate": 3e-3 if length <= 20 else 1e-3,  # in larger steps it unlearns long corridors
        }
    if name == "general":
        return values | {
            "num_envs": 32,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.running_scales": True,
            "model.box_actions": "beta",
            "training.staggered_episodes": True,
            "training.max_grad_norm": 0.5,
        }
    return values


def paper() -> dict[str, Any]:
    """Return what the paper states, as far as it is not the default (Jaderberg et al. 2019, supplement)."""
    return {
        "model.head_inputs": "latent",
        "model.pixel_control_cost": 0.03,
        "training.unroll_length": 100,
        "training.learning_rate": 1e-4,
    }
