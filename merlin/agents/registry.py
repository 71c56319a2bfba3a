"""Agents by the names that the command line knows them by, and those of anybody's module."""

import difflib
import inspect
from dataclasses import is_dataclass
from typing import NamedTuple

from merlin.agents.agent import Agent
from merlin.agents.merlin import Merlin, MerlinConfig
from merlin.agents.rl_lstm import RLLSTM, RLLSTMConfig
from merlin.agents.rl_mem import RLMem, RLMemConfig
from merlin.errors import MerlinError
from merlin.imports import import_named
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


def find_agent(name: str) -> AgentEntry:
    """Return the agent of a name in `AGENTS`, or of `module:Class`, which imports the module.

    Raises:
        MerlinError: There is no such agent, or the class is none: a subclass of `Agent` with all of its methods, whose
            attribute `config_class` is the dataclass that configures it, an `ActorCriticConfig`.
    """
    if name in AGENTS:
        return AGENTS[name]
    class_name = name.rpartition(":")[2]
    if class_name == name:
        near = difflib.get_close_matches(name, AGENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
        raise MerlinError(f"An agent is one of {', '.join(AGENTS)}, or module:Class, but {name!r} came: {hint}")
    module = import_named(name)
    agent_class = getattr(module, class_name, None)
    if agent_class is None:
        near = difflib.get_close_matches(class_name, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name a class that it defines."
        raise MerlinError(f"{module.__name__} ({getattr(module, '__file__', None)}) has no {class_name!r}: {hint}")
    if not (isinstance(agent_class, type) and issubclass(agent_class, Agent)):
        raise MerlinError(f"An agent is a class that extends merlin.Agent, but {name!r} does not: let it extend that.")
    if inspect.isabstract(agent_class):
        lacking = ", ".join(sorted(agent_class.__abstractmethods__))
        raise MerlinError(f"An agent has all methods of merlin.Agent, but {name!r} lacks {lacking}: add them.")
    config_class = getattr(agent_class, "config_class", None)
    is_config = isinstance(config_class, type) and issubclass(config_class, ActorCriticConfig)
    if not (is_config and is_dataclass(config_class)):
        raise MerlinError(
            f"An agent's config_class is the dataclass that configures it, which extends {ActorCriticConfig.__module__}"
            f".{ActorCriticConfig.__name__}, but that of {name!r} is {config_class!r}: add it to the class."
        )
    return AgentEntry(agent_class, config_class, (agent_class.__doc__ or name).strip().splitlines()[0])
