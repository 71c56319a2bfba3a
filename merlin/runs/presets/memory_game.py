"""Memory game: an episode is 3·pairs flips, each written to a slot of its own."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 64}


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    Of few slots MERLIN's policy soon learns to leave one out of what it reads, of many it does not. With more than 4
    pairs it starts by reading what is like the card just shown, and changes that in small steps, or noise undoes it.
    There it must also settle on an order of turning cards: little entropy, many updates of few environments, and a
    predictor in small steps.
    """
    pairs = env_kwargs.get("pairs", 3)
    is_large, is_drawn = pairs > 4, env_kwargs.get("view") == "picture"
    steps = 1_000_000 if pairs <= 3 else 2_000_000 if pairs == 4 else 10_000_000
    return {
        "merlin": {
            "steps": steps,
            "num_envs": 64 if is_large else 128,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.policy_hidden_size": 64,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0 if is_large else None,
            "model.policy_associative_start": is_large,
            "model.memory_size": 3 * pairs,
            # Pictures have a hundred times the nats of symbols, and reads need their latents as clean.
            "model.kl_reference_nats": 850_000.0 if is_drawn else 85_000.0,
            "model.entropy_cost": 0.005 if is_large else 0.02,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 16,
            "training.learning_rate": 5e-4 if is_large and not is_drawn else 2e-3,
            "training.policy_learning_rate": 5e-4 if is_large else None,
            "training.final_learning_rate_fraction": 0.1,
            "training.final_entropy_fraction": 0.1,
        },
        "rl-mem": {
            "steps": steps,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.memory_size": 3 * pairs,
            "model.entropy_cost": 0.02,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.final_learning_rate_fraction": 0.1,
            "training.final_entropy_fraction": 0.1,
        },
        "rl-lstm": {
            "steps": steps,
            "model.hidden_size": 64,
            "model.entropy_cost": 0.02,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.final_learning_rate_fraction": 0.1,
            "training.final_entropy_fraction": 0.1,
        },
    }
