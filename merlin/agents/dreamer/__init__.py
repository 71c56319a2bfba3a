"""DreamerV2: a world model of discrete latents, and a policy that learns in what it imagines."""

from merlin.agents.dreamer.agent import Dreamer, DreamerConfig, DreamerState

__all__ = ["Dreamer", "DreamerConfig", "DreamerState"]
