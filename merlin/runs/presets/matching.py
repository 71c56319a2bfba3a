"""LatentLearning and TransientInstruction: two things seen far apart say what to do, once in an episode."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 128, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 300, "grid_rarity": 0.5}


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    What is to be remembered is a small part of a view: a wide latent, decoded early, and what is expected is decoded
    too, so that MERLIN learns to predict within a run. Whoever is not done in time earns nothing (`truncation_ends`),
    and who wanders has more to search through: little entropy. But where whatever comes first earns a part, agents
    learn to choose after millions of steps, and must still search by then. The match is seen by the value function
    before the policy: a large `return_cost`. The baselines take a small step after each small window: in the same time
    four times the experience of several passes.
    """
    chooses = task.startswith("merlin/TransientInstruction")
    search = {"training.final_entropy_fraction": 0.1 if chooses else 1.0}
    return {
        "merlin": {
            "steps": 12_000_000 if chooses else 1_000_000,
            "num_envs": 64,
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.hidden_gain": 1.4,
            "model.policy_hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.expectation_cost": 1.0,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.return_cost": 5.0,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 16,
            "training.truncation_ends": True,
            "training.learning_rate": 2e-3,
            "training.policy_learning_rate": 1e-3,
            "training.max_grad_norm": 0.5,
            "model.entropy_cost": 0.06 if chooses else 0.01,
            "model.policy_encoder": chooses,
            "model.policy_value_cost": 0.5 if chooses else 0.0,
            "model.policy_latent_scale": 0.1 if chooses else 1.0,
            "model.policy_read_scale": 0.3 if chooses else 1.0,
            **search,
        },
        "rl-mem": {
            "steps": 10_000_000 if chooses else 1_000_000,
            "num_envs": 32,
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.memory_size": 64,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.06 if chooses else 0.02,  # its entropy soon falls to nothing
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.truncation_ends": True,
            "training.max_grad_norm": 0.5,
            **search,
        },
        "rl-lstm": {
            "steps": 10_000_000 if chooses else 1_000_000,
            "num_envs": 32,
            "model.num_layers": 1,
            "model.policy_hidden_gain": 2.0,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.06 if chooses else 0.01,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 32,  # it remembers no longer than gradients reach
            "training.truncation_ends": True,
            "training.max_grad_norm": 0.5,
            **search,
        },
    }
