"""MiniGrid's Memory, ours or its own: a cue and an object, seen far apart, say where to go, once in an episode."""

import re
from collections.abc import Mapping
from typing import Any

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 64, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 64}


def table(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    Whoever is not done in time earns nothing (`truncation_ends`), and who wanders has more to search through: little
    entropy. The match is seen by the value function before the policy: a large `return_cost`. Advantages that do not
    reach far back say with less noise what the last step was worth. Time must cost little, or nobody goes back to look
    at the cue.
    """
    of_id = re.search(r"MiniGrid-MemoryS(\d+)", task)
    size = int(of_id[1]) if of_id else env_kwargs.get("size", 7)
    return {
        "merlin": {
            "num_envs": 64,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.hidden_gain": 1.4,
            "model.policy_hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.discount_factor": 0.999,
            "model.gae_lambda": 0.8,
            "model.normalize_advantages": True,
            "model.return_cost": 5.0,
            "model.encoder": ENCODER,
            "model.decoder": DECODER,
            "training.unroll_length": 16,
            "training.truncation_ends": True,
            "training.learning_rate": 2e-3,
            # Above size 7 most episodes end without the cue having been seen, by luck. In larger steps that settles
            # what is done at an object before what the few say of cue and object together is learnt.
            "training.policy_learning_rate": 1e-3 if size <= 7 else 3e-4,
            "training.max_grad_norm": 0.5,
        },
        "rl-mem": {
            "num_envs": 64,
            "model.latent_size": 32,
            "model.hidden_size": 64,
            "model.policy_hidden_gain": 2.0,
            "model.memory_size": 64,
            "model.discount_factor": 0.999,
            "model.gae_lambda": 0.8,
            "model.normalize_advantages": True,
            "model.entropy_cost": 0.02,  # its entropy soon falls to nothing
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 16,
            "training.truncation_ends": True,
            "training.learning_rate": 3e-4,  # in larger steps it learns to end no episode, and never unlearns it
            "training.max_grad_norm": 0.5,
        },
        "rl-lstm": {
            "num_envs": 64,
            "model.num_layers": 1,
            "model.policy_hidden_gain": 2.0,
            "model.discount_factor": 0.999,
            "model.gae_lambda": 0.8,
            "model.normalize_advantages": True,
            "model.return_cost": 0.5,
            "model.encoder": ENCODER,
            "training.unroll_length": 64,  # it remembers no longer than gradients reach
            "training.truncation_ends": True,
            "training.passes": 4,
            "training.minibatches": 8,
            "training.learning_rate": 5e-4,
            "training.max_grad_norm": 0.5,
        },
    }
