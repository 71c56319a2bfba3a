"""Whole run configurations by agent and task: the only place where sizes are chosen."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from merlin.agents import AGENTS
from merlin.errors import MerlinError
from merlin.networks.decoders import DecoderConfig
from merlin.networks.encoders import EncoderConfig
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.training.trainer import TrainingConfig

DEFAULT_TASK = "merlin/MemoryGame-v0"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made from."""

    task: str = DEFAULT_TASK
    """A gymnasium id, or `module:Id`, which imports the module first."""
    agent: str = "merlin"
    """Which agent: see `merlin agents`."""
    seed: int = 1
    """Of the weights, the environments and every random choice."""
    steps: int = 1_000_000
    """Environment steps to train for."""
    num_envs: int = 128
    """B, environments stepped together, by all processes."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    vectorization: str = "sync"
    """How environments that are not tensors are stepped: sync in this process, async in one process each."""
    model: ActorCriticConfig
    """The agent's configuration."""
    training: TrainingConfig
    """The training's configuration."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but is {getattr(self, name)}.")


def preset(agent: str = "merlin", task: str = DEFAULT_TASK, env_kwargs: dict[str, Any] | None = None) -> RunConfig:
    """Return the configuration that an agent is trained with on a task unless told otherwise.

    Raises:
        MerlinError: There is no such agent.
    """
    if agent not in AGENTS:
        raise MerlinError(f"An agent is one of {', '.join(AGENTS)}, but {agent!r} came: choose one of them.")
    env_kwargs = env_kwargs or {}
    run: dict[str, Any] = {}
    model: dict[str, Any] = {
        "latent_size": 32,
        "hidden_size": 64,
        "policy_hidden_size": 64,
        "policy_num_read_keys": 3,
        "memory_size": 64,
        "discount_factor": 0.96,
        "gae_lambda": 0.9,
        "entropy_cost": 0.02,
        "return_cost": 0.5,
        "encoder": EncoderConfig(
            image_features=128, image_channels=16, grid_features=64, grid_channels=16, text_features=16
        ),
        "decoder": DecoderConfig(image_features=128, image_channels=16, grid_features=64),
    }
    training: dict[str, Any] = {"unroll_length": 16, "learning_rate": 2e-3}
    name = task.rpartition(":")[2]
    if name.startswith("merlin/MemoryGame"):
        # An episode is 3·pairs flips, each written to a slot of its own.
        pairs = env_kwargs.get("pairs", 3)
        run |= {"steps": 1_000_000 if pairs <= 3 else 2_000_000 if pairs == 4 else 10_000_000}
        # Pictures have a hundred times the nats of symbols, and reads need their latents as clean.
        nats = 850_000.0 if env_kwargs.get("view") == "picture" else 85_000.0
        model |= {"memory_size": 3 * pairs, "kl_reference_nats": nats}
        training |= {"final_learning_rate_fraction": 0.1, "final_entropy_fraction": 0.1}
        if agent == "merlin" and pairs > 4:
            # Of few slots the policy soon learns to leave one out of what it reads, of many it does not: let it start
            # by reading what is like the card just shown, and change that in small steps, or noise undoes it. And it
            # must settle on an order of turning cards: little entropy, and many updates.
            run |= {"num_envs": 64}
            model |= {"policy_associative_start": True, "policy_read_strength": 10.0, "entropy_cost": 0.005}
            training |= {"policy_learning_rate": 5e-4}
    elif name.startswith("merlin/TMaze"):
        # One decision an episode is all that needs memory: the longer the corridor, the more environments for as many
        # of them in a window, and entropy so that walking is not learnt so well that nobody turns at the junction.
        length = env_kwargs.get("length", 10)
        run |= {"num_envs": 64 * max(1, round(length / 50)), "steps": 400_000 + 120 * length**2}
        model |= {"memory_size": min(length + 16, 64), "entropy_cost": 0.04}
        training |= {"learning_rate": 3e-3, "policy_learning_rate": 2e-3, "final_entropy_fraction": 0.1}
    elif name.startswith(("merlin/RepeatPrevious", "merlin/Playback", "merlin/VisuomotorMapping")):
        # What is seen is a symbol, and each step is rewarded at once: many short windows, each learnt from once. Where
        # no step changes what comes later, the return is mostly noise.
        model |= {"gae_lambda": 0.95, "kl_reference_nats": 85_000.0}
        if not name.startswith("merlin/VisuomotorMapping"):
            run |= {"num_envs": 64}
            model |= {"discount_factor": 0.5, "entropy_cost": 0.03}
        model |= {"hidden_gain": 1.4, "policy_hidden_gain": 2.0, "policy_read_strength": 10.0}
        training |= {"max_grad_norm": 0.5}
    else:
        # Of many steps few matter, and what matters is often a cue and a sight together, of which a policy gradient
        # says little: small steps. What is to be remembered is a small part of a view: so a wide latent, decoded
        # early, but for Memory, whose views have few cells that matter and whose steps are better spent fast.
        model |= {
            "hidden_gain": 1.4,
            "normalize_advantages": True,
            "discount_factor": 0.99,
            "gae_lambda": 0.95,
            "entropy_cost": 0.03,
            "policy_read_strength": 10.0,
            "policy_hidden_gain": 2.0,
        }
        training |= {"learning_rate": 1e-3, "max_grad_norm": 0.5}
        if agent == "rl-lstm":  # remembers no longer than gradients reach
            model |= {"hidden_size": 256, "num_layers": 1}
        is_memory = name.startswith(("merlin/Memory-", "MiniGrid-Memory"))
        is_match = is_memory or name.startswith(("merlin/LatentLearning", "merlin/TransientInstruction"))
        if is_match:
            # Two things seen far apart say what to do, once in an episode. Whoever is not done in time earns nothing,
            # and who wanders has more to search through: so little entropy. The match is seen by V before the policy.
            model |= {"entropy_cost": 0.02 if agent == "rl-mem" else 0.01}  # RL-MEM's soon falls to nothing
            training |= {"truncation_ends": True, "unroll_length": 16}
            if agent == "merlin":
                run |= {"num_envs": 64}
                model |= {"return_cost": 5.0}
                training |= {"learning_rate": 2e-3, "policy_learning_rate": 1e-3}
        if is_memory:
            # Advantages that do not reach far back say with less noise what the last step was worth, and time must
            # cost little, or nobody goes back to look at the cue.
            run |= {"num_envs": 64}
            model |= {"discount_factor": 0.999, "gae_lambda": 0.8}
            of_id = re.match(r"MiniGrid-MemoryS(\d+)", name)
            if agent == "merlin" and (int(of_id[1]) if of_id else env_kwargs.get("size", 7)) > 7:
                # Most episodes end without the cue having been seen, by luck: in larger steps that settles what is done
                # at an object before what the few say of cue and object together is learnt. In size 7 they are not few.
                training |= {"policy_learning_rate": 3e-4}
            if agent == "rl-mem":  # in larger steps it learns at once to end no episode, and never unlearns it
                training |= {"learning_rate": 3e-4}
            if agent == "rl-lstm":
                training |= {"unroll_length": 64, "passes": 4, "minibatches": 8, "learning_rate": 5e-4}
        else:
            # A small step after each small window: in the same time four times the experience of several passes.
            run |= {"num_envs": 64 if agent == "merlin" else 32}
            model |= {
                "latent_size": 64,
                "encoder": replace(model["encoder"], grid_features=128),
                "decoder": replace(model["decoder"], grid_features=300, grid_rarity=0.5),
            }
            if agent == "rl-lstm":
                training |= {"unroll_length": 32}
            if agent == "merlin":  # what it expects is decoded too, so that it learns to predict within a run
                model |= {"expectation_cost": 1.0}
            if agent == "merlin" and not is_match:
                # Short windows of many environments, because steps that follow one another tell the predictor little
                # that is new.
                model |= {"policy_hidden_gain": 0.7}
                training |= {"unroll_length": 8, "learning_rate": 2e-3, "policy_learning_rate": 5e-4}
    config_class = AGENTS[agent].config_class
    known = {name: value for name, value in model.items() if name in config_class.__dataclass_fields__}
    return RunConfig(
        task=task,
        agent=agent,
        env_kwargs=env_kwargs,
        model=config_class(**known),
        training=TrainingConfig(**training),
        **run,
    )
