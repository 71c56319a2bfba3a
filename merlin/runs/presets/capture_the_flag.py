"""Capture the flag: rows are players of games, whose reward is mostly that of events."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"grid_features": 128, "grid_channels": 16}
DECODER = {"grid_features": 300, "grid_rarity": 0.5}


COMMON = {
    "num_envs": 256,
    "model.discount_factor": 0.98,
    "model.gae_lambda": 0.95,
    "model.normalize_advantages": True,
    "model.entropy_cost": 0.003,
    "model.return_cost": 0.5,
    "model.encoder": ENCODER,
    "training.unroll_length": 16,
    "training.passes": 2,
    "training.minibatches": 4,
    "training.staggered_episodes": True,
    "training.max_grad_norm": 0.5,
}
"""Of all agents that learn from what they did.

All players of a batch end together, so that games are staggered. Opponents change while they are learnt from: each
window is soon used up, but two passes of four steps learn faster than one. Flags are a few steps apart from what is
done with them: a short horizon. With advantages by their spread an entropy cost of 0.02 keeps actions near chance for
200,000 steps, and flags are never brought home; with 0.0003 they are settled too soon.
"""


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults."""
    return {
        "merlin": COMMON
        | {
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.policy_hidden_size": 64,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.expectation_cost": 1.0,
            "model.decoder": DECODER,
            "training.policy_learning_rate": 5e-4,
        },
        "rl-mem": COMMON | {"model.latent_size": 64, "model.hidden_size": 64, "model.memory_size": 64},
        "rl-lstm": COMMON | {"model.num_layers": 1, "model.hidden_size": 128},
    }
