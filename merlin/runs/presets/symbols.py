"""RepeatPrevious, Playback and VisuomotorMapping: a symbol or a picture is seen, and each step is rewarded at once."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 64}


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    Many short windows are each learnt from once. Where no step changes what comes later, as in RepeatPrevious and
    Playback, the return is mostly noise: a small discount.
    """
    is_mapping = "VisuomotorMapping" in task
    num_envs = 128 if is_mapping else 64
    discount_factor = 0.96 if is_mapping else 0.5
    entropy_cost = 0.02 if is_mapping else 0.03
    return {
        "merlin": {
            "num_envs": num_envs,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.hidden_gain": 1.4,
            "model.policy_hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.kl_reference_nats": 85_000.0,
            "model.discount_factor": discount_factor,
            "model.gae_lambda": 0.95,
            "model.entropy_cost": entropy_cost,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.max_grad_norm": 0.5,
        },
        "rl-mem": {
            "num_envs": num_envs,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.memory_size": 64,
            "model.discount_factor": discount_factor,
            "model.gae_lambda": 0.95,
            "model.entropy_cost": entropy_cost,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.max_grad_norm": 0.5,
        },
        "rl-lstm": {
            "num_envs": num_envs,
            "model.hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.discount_factor": discount_factor,
            "model.gae_lambda": 0.95,
            "model.entropy_cost": entropy_cost,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.max_grad_norm": 0.5,
        },
    }
