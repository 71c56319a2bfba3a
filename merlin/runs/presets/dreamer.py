"""Dreamer on a CPU: a small world model that is learnt from often, whatever the task."""

from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 128, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 128}


def table(name: str, is_continuous: bool = False) -> dict[str, Any]:
    """Return what Dreamer's settings are where they are not the defaults.

    Args:
        name: Of the family of tasks.
        is_continuous: Whether actions are numbers.
    """
    small = name in ("memory-game", "tmaze", "symbols")
    long = small and name != "memory-game"  # a cue and what it decides must meet in a window
    return {
        "steps": 200_000,
        "num_envs": 32 if small else 16,
        "model.latent_groups": 2 if small else 8,
        "model.latent_classes": 32 if small else 8,
        "model.latent_uniform_mix": 0.01,
        "model.deterministic_size": 96 if small else 128,
        "model.hidden_size": 96 if small else 128,
        "model.head_size": 96 if small else 128,
        "model.head_layers": 2,
        "model.observe_reward": True,
        "model.kl_cost": 0.1 if small and name != "memory-game" else 1.0,
        "model.kl_balance": 0.95 if name == "memory-game" else 0.8,
        "model.reward_cost": 20.0,
        "model.reward_transform": "identity",
        "model.discount_factor": 0.97,
        "model.imagination_length": 10,
        "model.imagination_starts": 192,
        "model.entropy_cost": 3e-3 if is_continuous else 0.05 if small else 0.03,
        "model.box_actions": "beta",
        "model.scale_advantages": True,
        "model.running_scales": name == "general",
        "model.reinforce_fraction": 0.0 if is_continuous else 1.0,
        "model.replay_rows": 200_000,
        "model.replay_windows": 16 if long else 32,
        "model.replay_ratio": 32.0 if is_continuous else 4.0 if small else 8.0,
        "model.target_updates": 25 if is_continuous else 100,
        "model.replay_state": "stored",
        "model.prefill_steps": 2000,
        "model.weight_decay": 0.0,
        "model.encoder": ENCODER,
        "model.decoder": DECODER,
        "training.unroll_length": 32 if long else 16,
        "training.policy_learning_rate": 3e-4 if is_continuous else None,
        "training.adam_epsilon": 1e-5,
        "training.max_grad_norm": 100.0,
    }


def paper(is_continuous: bool = False) -> dict[str, Any]:
    """Return the paper's, for Atari (Hafner et al. 2021, Table D.1), as far as they are not the defaults."""
    return {
        "steps": 200_000_000,
        "num_envs": 1,
        "model.reinforce_fraction": 0.0 if is_continuous else 1.0,
        "model.entropy_cost": 1e-4 if is_continuous else 1e-3,
        "model.decoder.image_likelihood": "gaussian",
        "training.unroll_length": 50,
        "training.learning_rate": 2e-4,
        "training.policy_learning_rate": 4e-5,
        "training.value_learning_rate": 1e-4,
        "training.adam_epsilon": 1e-5,
        "training.max_grad_norm": 100.0,
    }
