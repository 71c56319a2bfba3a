"""Tasks that no family names: settings by what a look at them shows."""

from typing import Any

from merlin.environments.sight import Sight

ENCODER = {"image_features": 128, "image_channels": 16, "grid_features": 128, "grid_channels": 16, "text_features": 16}
DECODER = {"image_features": 128, "image_channels": 16, "grid_features": 300, "grid_rarity": 0.5}

DEAR_SECONDS = 2e-3
"""From which on a step costs more than learning from it a few times more."""


def table(sight: Sight) -> dict[str, dict[str, Any]]:
    """Return what each agent's settings are where they are not the defaults.

    Nothing is known of units, of lengths of episodes, or of where reward comes from: running scales, staggered
    episodes, advantages by their spread. Steps that cost time are learnt from several times.
    """
    passes = 1 if sight.is_native else 3 if sight.step_seconds < DEAR_SECONDS else 6
    common = {
        "model.discount_factor": 0.99,
        "model.gae_lambda": 0.95,
        "model.normalize_advantages": True,
        "model.return_cost": 0.5,
        "model.running_scales": True,
        "model.box_actions": "beta",
        "model.encoder": ENCODER,
        "num_envs": 32,
        "training.staggered_episodes": True,
        "training.final_learning_rate_fraction": 0.1,
        "training.final_entropy_fraction": 0.1,
        "training.max_grad_norm": 0.5,
    }
    baseline = common | {"model.policy_hidden_gain": 2.0}
    often: dict[str, Any] = {}
    if not sight.is_native:
        # Latents begin some 6 wide: the gates of the policy's LSTM would stay where they put them. And each is a
        # sample: what is seen now the policy sees better for itself.
        often = {
            "model.policy_encoder": True,
            "model.policy_latent_scale": 0.2,
            "model.policy_read_scale": 0.2,
            "training.policy_passes": 4,
        }
        # The mode of a Beta moves little in a step, and a choice is soon settled.
        rate = {} if sight.is_continuous else {"training.learning_rate": 3e-4}
        # In larger steps MERLIN's predictor changes the code of what is remembered faster than its policy learns to
        # read it. But what is more than categories takes longer to be seen well.
        if not sight.is_continuous and set(sight.kinds) == {"category"}:
            often |= {"training.learning_rate": 5e-4, "model.return_cost": 5.0}
        baseline |= {"training.passes": passes + 1, "training.minibatches": 4} | rate
    return {
        "merlin": common
        | {
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.hidden_gain": 1.4,
            "model.policy_hidden_size": 64,
            "model.policy_hidden_gain": 0.7,
            "model.policy_num_read_keys": 3,
            "model.policy_read_strength": 10.0,
            "model.memory_size": 64,
            "model.expectation_cost": 1.0,
            "model.decoder": DECODER,
            "training.passes": passes,
            "training.unroll_length": 16,
            "training.learning_rate": 2e-3,
            "training.policy_learning_rate": 5e-4,
        }
        | often,
        "rl-mem": baseline
        | {
            "model.latent_size": 64,
            "model.hidden_size": 64,
            "model.memory_size": 64,
            "training.unroll_length": 16,
        },
        "rl-lstm": baseline
        | {
            "model.num_layers": 1,
            "training.unroll_length": 32,  # it remembers no longer than gradients reach
        },
    }
