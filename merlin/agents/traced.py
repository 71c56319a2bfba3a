"""Acting alone: a step's action and next state, without what only learning and analyses read.

Of an agent that says it `is_traceable`, on a CPU, both halves of a step are traced once and then run as programs of
tensor operations, without Python in between (`torch.jit.trace`). The operations are the agent's own, so actions and
states equal those of `Agent.step` bit for bit.
"""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from merlin.agents import border
from merlin.agents.agent import Agent
from merlin.states import flatten_state, reset_state, unflatten_state

log = logging.getLogger(__name__)


class Actor:
    """Steps of an agent that acts and does not learn.

    A program is of one batch size and of one type of each entry. Programs hold the agent's parameters themselves, so
    that what changes in them is seen.

    Attributes:
        agent: Who acts.
        is_traced: Whether steps are traced; no more once PyTorch could not.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        parts = [agent] if agent.memory is None else [agent, agent.memory]
        is_said = all(vars(type(part)).get("is_traceable", False) for part in parts)
        self.is_traced = is_said and next(agent.parameters()).device.type == "cpu"
        self._programs: dict[Any, tuple[Any, Any, Any]] = {}

    @torch.inference_mode()
    def step(
        self,
        observation: Any,
        state: Any,
        is_first: Any,
        reward: Any = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[Tensor, Any, bool]:
        """Return the action, the next state, and whether the observation came without a batch's axis.

        Arguments and errors are those of `Agent.step`.
        """
        agent = self.agent
        if self.is_traced:
            like, num_choices = state.previous_action, agent.actions.num_choices
            seen = border.convert(agent.spaces, observation, is_first, reward, like, num_choices)
            entries = [seen.observation[name] for name in agent.spaces]
            key = (like.shape, like.dtype, *(x.dtype for x in entries))
            if key not in self._programs:
                self._trace(key, entries, state)
        if not self.is_traced:
            output, state = agent.step(observation, state, is_first, reward, generator=generator, greedy=greedy)
            return output.action, state, output.value.ndim == 0
        perceive, advance, template = self._programs[key]
        state, reward = agent.begin_step(state, seen.is_first, seen.reward)
        extras = agent.likeliest_extras(state) if greedy else agent.draw_extras(state, generator)
        parameters, perceived = perceive(entries, flatten_state((state, extras)), reward)
        parameters = agent.actions.restrict(parameters, seen.observation)
        action = agent.actions.greedy(parameters) if greedy else agent.actions.sample(parameters, generator)
        state = unflatten_state(template, advance(perceived, action))
        return action[0] if seen.is_single else action, state, seen.is_single

    @torch.inference_mode(False)
    @torch.no_grad()
    def _trace(self, key: Any, entries: list[Tensor], state: Any) -> None:
        """Trace both halves of a step, or note that they cannot be."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that become constants, which they are; of deprecation
                self._programs[key] = _programs(self.agent, entries, state)
        except Exception as error:  # whatever PyTorch makes of an agent, or a PyTorch that traces no more
            self.is_traced = False
            log.info("acting is not traced, and slower: %s", error)


def _programs(agent: Agent, entries: list[Tensor], state: Any) -> tuple[Any, Any, Any]:
    """Return the halves of a step as programs, and a state whose form the second one's results have."""
    # Zeros, each a tensor of its own: a tensor that came in twice would be one input.
    entries = [torch.zeros_like(x) for x in entries]
    carried = state, agent.likeliest_extras(state)
    perceive = _Perceive(agent, carried)
    inputs = (entries, _zeros(carried), torch.zeros_like(state.previous_action[:, 0]))
    parameters, _ = perceive(*inputs)
    advance = _Advance(agent, perceive.perceived)
    choice = _zeros(perceive.perceived), agent.actions.greedy(parameters)
    advance(*choice)
    traced = (
        torch.jit.trace(program, example, check_trace=False)
        for program, example in ((perceive, inputs), (advance, choice))
    )
    return *traced, advance.advanced


def _zeros(state: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) for x in flatten_state(state))


class _Perceive(nn.Module):
    """The first half: from entries, state and extras to the policy's parameters and what was perceived, flat."""

    def __init__(self, agent: Agent, carried: Any) -> None:
        super().__init__()
        self.agent, self.carried, self.perceived = agent, carried, None

    def forward(
        self, entries: list[Tensor], carried: tuple[Tensor, ...], reward: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        observation = dict(zip(self.agent.spaces, entries, strict=True))
        state, extras = unflatten_state(self.carried, carried)
        code = self.agent.encode(observation, state.previous_action, reward)
        self.perceived = self.agent.perceive(code, state, extras)
        return self.agent.policy_parameters(self.perceived.activations), flatten_state(self.perceived)


class _Advance(nn.Module):
    """The second half: from what was perceived and the action to the next state, flat."""

    def __init__(self, agent: Agent, perceived: Any) -> None:
        super().__init__()
        self.agent, self.perceived, self.advanced = agent, perceived, None

    def forward(self, perceived: tuple[Tensor, ...], action: Tensor) -> tuple[Tensor, ...]:
        perceived = unflatten_state(self.perceived, perceived)
        self.advanced = self.agent.advance(perceived, self.agent.actions.encode(action)).state
        return flatten_state(self.advanced)
