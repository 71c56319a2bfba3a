"""Agents by the names that the command line knows them by, and those of anybody's module."""

import inspect
from dataclasses import is_dataclass
from typing import NamedTuple

from merlin.agents.agent import Agent
from merlin.agents.dreamer import Dreamer, DreamerConfig
from merlin.agents.ftw import FTW, FTWConfig
from merlin.agents.merlin import Merlin, MerlinConfig
from merlin.agents.rl_lstm import RLLSTM, RLLSTMConfig
from merlin.agents.rl_mem import RLMem, RLMemConfig
from merlin.errors import MerlinError
from merlin.objectives.policy_gradient import ActorCriticConfig
from merlin.plugins import load_class


class AgentEntry(NamedTuple):
    """An agent, its configuration, and what it is in one line."""

    agent_class: type[Agent]
    config_class: type[ActorCriticConfig]
    summary: str


AGENTS = {
    "merlin": AgentEntry(Merlin, MerlinConfig, "memory-based predictor with a read-only policy (Wayne et al. 2018)"),
    "dreamer": AgentEntry(
        Dreamer, DreamerConfig, "world model with a policy learnt in it (DreamerV2, Hafner et al. 2021)"
    ),
    "ftw": AgentEntry(FTW, FTWConfig, "two timescales that share a memory (For The Win, Jaderberg et al. 2019)"),
    "rl-lstm": AgentEntry(RLLSTM, RLLSTMConfig, "LSTM trained by reinforcement alone"),
    "rl-mem": AgentEntry(RLMem, RLMemConfig, "the same LSTM with MERLIN's memory, trained by reinforcement alone"),
}


def find_agent(name: str) -> AgentEntry:
    """Return the agent of a name in `AGENTS`, or of `module:Class`, which imports the module.

    Raises:
        MerlinError: There is no such agent, or the class is none: a subclass of `Agent` with all of its methods, whose
            attribute `config_class` is the dataclass that configures it, an `ActorCriticConfig`.
    """
    if name in AGENTS:
        return AGENTS[name]
    agent_class = load_class(name, {known: entry.agent_class for known, entry in AGENTS.items()}, Agent, "agent")
    if inspect.isabstract(agent_class):
        lacking = ", ".join(sorted(agent_class.__abstractmethods__))
        raise MerlinError(f"The agent {name!r} must have all methods of Agent, but lacks {lacking}: add them.")
    config_class = getattr(agent_class, "config_class", None)
    is_class = isinstance(config_class, type)
    if not (is_class and issubclass(config_class, ActorCriticConfig) and is_dataclass(config_class)):
        raise MerlinError(
            f"The agent {name!r} must have a config_class, the dataclass that configures it, derived from "
            f"{ActorCriticConfig.__module__}.ActorCriticConfig, but has {config_class!r}: add it to the class."
        )
    return AgentEntry(agent_class, config_class, (agent_class.__doc__ or name).strip().splitlines()[0])
