"""The agents, by the names that the command line knows them by."""

from merlin.agents.agent import Agent
from merlin.agents.registry import AGENTS, AgentEntry, find_agent

__all__ = ["AGENTS", "Agent", "AgentEntry", "find_agent"]
