"""FTW, the agent of capture the flag: two timescales that share a memory."""

from merlin.agents.ftw.agent import FTW, FTWConfig, FTWState
from merlin.agents.ftw.hyperparameters import Hyperparameters, internal_reward

__all__ = ["FTW", "FTWConfig", "FTWState", "Hyperparameters", "internal_reward"]
