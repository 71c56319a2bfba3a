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

    A program is of one batch size and of one type of each entry. It holds the agent's parameters themselves, so that
    what changes in them is seen.

    Attributes:
        agent: Who acts.
        is_traced: Whether steps are traced; no more once PyTorch could not.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        parts = [agent] if agent.memory is None else [agent, agent.memory]
        is_said = all(vars(type(part)).get("is_traceable", False) for part in parts)
        like = next(agent.parameters())
        has_noise = agent.actions.draw_noise((1,), like, torch.Generator(like.device)) is not None
        self.is_traced = is_said and has_noise and like.device.type == "cpu"
        self._programs: dict[Any, tuple[Any, Any]] = {}

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
            state, reward = agent.begin_step(state, seen.is_first, seen.reward)
            entries = tuple(seen.observation.values())
            key = (greedy, like.shape, like.dtype, *seen.observation, *[x.dtype for x in entries])
            if key not in self._programs:
                self._trace(key, seen.observation, state, greedy)
        if not self.is_traced:
            output, state = agent.step(observation, state, is_first, reward, generator=generator, greedy=greedy)
            return output.action, state, output.value.ndim == 0
        program, form = self._programs[key]
        if greedy:
            drawn = agent.likeliest_extras(state), None
        else:
            drawn = agent.draw_extras(state, generator), agent.actions.draw_noise(like.shape[:1], like, generator)
        action, *after = program(entries, reward, flatten_state((state, *drawn)))
        return action[0] if seen.is_single else action, unflatten_state(form, after), seen.is_single

    @torch.inference_mode(False)
    @torch.no_grad()
    def _trace(self, key: Any, observation: dict[str, Tensor], state: Any, greedy: bool) -> None:
        """Trace a step, or note that it cannot be."""
        try:
            # Zeros, each a tensor of its own: one that came in twice would be one input.
            entries = tuple(map(torch.zeros_like, observation.values()))
            like = state.previous_action
            noise = None if greedy else self.agent.actions.draw_noise(like.shape[:1], like)
            carried = state, self.agent.likeliest_extras(state) if greedy else self.agent.draw_extras(state), noise
            tensors = tuple(map(torch.zeros_like, flatten_state(carried)))
            step = _Step(self.agent, tuple(observation), carried)
            inputs = entries, torch.zeros_like(like[:, 0]), tensors
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that become constants, which they are; of deprecation
                program = torch.jit.trace(step, inputs, check_trace=False)
            self._programs[key] = program, step.after
        except Exception as error:  # whatever PyTorch makes of an agent, or a PyTorch that traces no more
            self.is_traced = False
            log.info("acting is not traced, and slower: %s", error)


class _Step(nn.Module):
    """A step from tensors to tensors: of the state, the extras and the action's noise, None where it is greedy."""

    def __init__(self, agent: Agent, names: tuple[str, ...], carried: tuple[Any, Any, Any]) -> None:
        super().__init__()
        self.agent, self.names, self.carried = agent, names, carried
        self.after: Any = None
        """The state that came out last, of the form that all have."""

    def forward(self, entries: tuple[Tensor, ...], reward: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        agent, observation = self.agent, dict(zip(self.names, entries, strict=True))
        state, extras, noise = unflatten_state(self.carried, carried)
        perceived = agent.perceive(agent.encode(observation, state.previous_action, reward), state, extras)
        parameters = agent.actions.restrict(agent.policy_parameters(perceived.activations), observation)
        action = agent.actions.greedy(parameters) if noise is None else agent.actions.choose(parameters, noise)
        self.after = agent.advance(perceived, agent.actions.encode(action)).state
        return action, *flatten_state(self.after)
