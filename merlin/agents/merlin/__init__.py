"""MERLIN: a memory-based predictor and a read-only policy."""

from merlin.agents.merlin.agent import Merlin, MerlinConfig, MerlinState

__all__ = ["Merlin", "MerlinConfig", "MerlinState"]
