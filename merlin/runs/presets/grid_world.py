"""Grid worlds of ours that have no family of their own: of many steps few matter."""

from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 128, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 300, "grid_rarity": 0.5}

OWN_SIGHT = {
    "model.policy_encoder": True,
    "model.policy_value_cost": 0.5,
    "model.policy_latent_scale": 0.1,
    "model.policy_read_scale": 0.1,
    "model.policy_hidden_gain": 2.0,
}
"""MERLIN's policy with an encoder and a value function of its own, to which latents and reads are faint at first."""

OF_TASK = {
    "GoalMaze": OWN_SIGHT,
    "WaterMaze": {  # a slot for each step, and latents that tell which of them was rewarded
        "model.memory_size": 160,
        "model.reward_cost": 30.0,
        "model.policy_reward_keys": 2,
    },
    "RewardValuation": OWN_SIGHT  # traces that tell what was rewarded at once from what was so later
    | {"model.policy_read_scale": 0.3, "model.policy_reward_keys": 4, "model.retroactive_discount": 0.5},
}
"""What MERLIN has otherwise in a task."""

LONG_SEARCH = {"model.entropy_cost": 0.06, "training.final_entropy_fraction": 0.1}
"""Of all agents in RewardValuation, who learn to choose long after they have learnt to eat."""


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    What matters is often a cue and a sight together, of which a policy gradient says little: small steps. What is to
    be remembered is a small part of a view: a wide latent, decoded early, and what is expected is decoded too, so that
    MERLIN learns to predict within a run. MERLIN's windows are short and of many environments, because steps that
    follow one another tell the predictor little that is new. The baselines take a small step after each small window:
    in the same time four times the experience of several passes. In the goal maze most of the score is search, which
    MERLIN's policy learns sooner on what it sees than on latents.
    """
    name = task.removeprefix("merlin/").partition("-")[0]
    search = LONG_SEARCH if name == "RewardValuation" else {}
    return {
        "merlin": {
            "num_envs": 64,
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.hidden_gain": 1.4,
            "model.policy_hidden_size": 64,
            "model.policy_hidden_gain": 0.7,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.expectation_cost": 1.0,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.03,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 8,
            "training.learning_rate": 2e-3,
            "training.policy_learning_rate": 5e-4,
            "training.max_grad_norm": 0.5,
            **OF_TASK.get(name, {}),
            **search,
        },
        "rl-mem": {
            "num_envs": 32,
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.memory_size": 64,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.03,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.max_grad_norm": 0.5,
            **search,
        },
        "rl-lstm": {
            "num_envs": 32,
            "model.num_layers": 1,
            "model.policy_hidden_gain": 2.0,
            "model.discount_factor": 0.99,
            "model.gae_lambda": 0.95,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.03,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 32,  # it remembers no longer than gradients reach
            "training.max_grad_norm": 0.5,
            **search,
        },
    }
