"""The agents, by the names that the command line knows them by."""

from typing import NamedTuple

from merlin.agents.agent import Agent
from merlin.agents.merlin import Merlin, MerlinConfig
from merlin.agents.rl_lstm import RLLSTM, RLLSTMConfig
from merlin.agents.rl_mem import RLMem, RLMemConfig
from merlin.objectives.policy_gradient import ActorCriticConfig


class AgentEntry(NamedTuple):
    """An agent, its configuration, and what it is in one line."""

    agent_class: type[Agent]
    config_class: type[ActorCriticConfig]
    summary: str


AGENTS = {
    "merlin": AgentEntry(Merlin, MerlinConfig, "memory-based predictor with a read-only policy (Wayne et al. 2018)"),
    "rl-lstm": AgentEntry(RLLSTM, RLLSTMConfig, "two-layer LSTM trained by reinforcement alone"),
    "rl-mem": AgentEntry(RLMem, RLMemConfig, "the same LSTM with MERLIN's memory, trained by reinforcement alone"),
}

__all__ = ["AGENTS", "Agent", "AgentEntry"]
