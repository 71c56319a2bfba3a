"""Acting alone: a step's action and next state, without what only learning and analyses read."""

from typing import Any

import torch
from torch import Tensor

from merlin.agents import border
from merlin.agents.agent import Agent
from merlin.recorded import NotRecordable, Replay, record
from merlin.states import flatten_state, unflatten_state


class Actor:
    """Steps of an agent that acts and does not learn: value and log-probability are not computed.

    The operations of a first step are recorded, and those that follow are these operations alone (`merlin.recorded`),
    of an agent that does the same whatever the numbers. So actions and states equal those of `Agent.step` bit for bit.
    Any other agent takes `Agent.step`.

    Attributes:
        agent: Who acts.
        is_recorded: Whether steps are recorded; no more once one could not be.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        like = next(agent.parameters())
        has_noise = agent.actions.draw_noise((1,), like, torch.Generator(like.device)) is not None
        self.is_recorded = has_noise and like.device.type == "cpu" and type(agent).step is Agent.step
        self._recorded: dict[Any, tuple[Replay, Any]] = {}

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
        agent, like = self.agent, state.previous_action
        if self.is_recorded:
            seen = border.convert(agent.spaces, observation, is_first, reward, like, agent.actions, agent.gives_masks)
            entries = seen.observation
            kind = (greedy, like.shape, like.dtype, *entries, *[x.dtype for x in entries.values()])
            if kind not in self._recorded:
                self._record(kind, seen, state)
        if not self.is_recorded:
            output, state = agent.step(observation, state, is_first, reward, generator=generator, greedy=greedy)
            return output.action, state, output.value.ndim == 0
        replay, form = self._recorded[kind]
        action, *after = replay(*flatten_state(self._inputs(seen, state, generator, greedy)))
        return action[0] if seen.is_single else action, unflatten_state(form, after), seen.is_single

    def _inputs(self, seen: border.Seen, state: Any, generator: torch.Generator | None, greedy: bool) -> Any:
        """Return entries, reward, state, and what is drawn, in the order in which a step draws it."""
        agent, like = self.agent, state.previous_action
        state, reward = agent.begin_step(state, seen.is_first, seen.reward)
        entries = tuple(seen.observation.values())
        if greedy:
            return entries, reward, state, agent.likeliest_extras(state), None
        extras = agent.draw_extras(state, generator)
        return entries, reward, state, extras, agent.actions.draw_noise(like.shape[:1], like, generator)

    def _record(self, kind: Any, seen: border.Seen, state: Any) -> None:
        """Record a step on inputs of this kind, or note that it cannot be."""
        agent, names, form = self.agent, tuple(seen.observation), None
        inputs = self._inputs(seen, state, torch.Generator(), kind[0])

        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            nonlocal form
            entries, reward, state, extras, noise = unflatten_state(inputs, tensors)
            observation = dict(zip(names, entries, strict=True))
            perceived = agent.perceive(agent.encode(observation, state.previous_action, reward), state, extras)
            parameters = agent.actions.restrict(agent.policy_parameters(perceived.activations), observation)
            action = agent.actions.greedy(parameters) if noise is None else agent.actions.choose(parameters, noise)
            form = agent.advance(perceived, agent.actions.encode(action)).state
            return action, *flatten_state(form)

        tensors = flatten_state(inputs)
        try:
            replay = record(step, tensors)
            others = [x + 0.5 if x.is_floating_point() else x for x in tensors]  # states begin with zeros alone
            is_alike = all(map(torch.equal, step(*others), replay(*others)))
        except NotRecordable:
            is_alike = False
        if is_alike:
            self._recorded[kind] = replay, form
        else:
            self.is_recorded = False
