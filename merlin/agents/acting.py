"""Acting for a window of steps, with the graph kept where learning follows."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.agents.agent import Advanced, Agent, Perceived
from merlin.errors import MerlinError
from merlin.experience import Reads
from merlin.networks.window_linear import in_window
from merlin.states import detach_state, map_state, stack_states


class Acting:
    """An agent acting for a window, step by step.

    Args:
        length: T, steps that may be taken.
        records: Keep the graph, for `Agent.losses` to learn from what was acted by.

    Attributes:
        agent: Whose parameters must stay until the window was learnt from.
    """

    def __init__(
        self, agent: Agent, state: Any, length: int, generator: torch.Generator | None = None, records: bool = False
    ) -> None:
        self.agent, self.length, self.generator, self.records = agent, length, generator, records
        self._stepping = in_window(agent) if records else agent
        self._versions = [x._version for x in agent.parameters()]
        with torch.set_grad_enabled(records):  # whoever collects: what a window begins with may depend on parameters
            self._running, self._end = agent.begin_window(state, length), None
        self._activations: Any = []
        self._parameters: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._extras: list[Any] = []
        self._reads: list[tuple[Tensor, ...]] = []  # weights, strengths and is_first, where value is transported
        self._peaks: dict[str, list[Tensor]] = {}

    @property
    def state(self) -> Any:
        """The agent's state after the steps taken, none of which may follow."""
        if self._end is None:
            self._end, self._running = self.agent.end_window(self._running), None
        return self._end

    def step(self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]) -> Tensor:
        """Return the action, and go on."""
        with torch.set_grad_enabled(self.records):
            perceived = self._stepping.perceive_new(observation, self._running, is_first, reward, self.generator)
            activations = perceived.activations
            with torch.no_grad():
                parameters = self.agent.actions.restrict(self.agent.policy_parameters(activations), observation)
                action = self.agent.actions.sample(parameters, self.generator)
                code = self.agent.actions.encode(action)
            advanced = self._stepping.advance(perceived, code)
        self._running, extras = advanced.state, advanced.extras
        if self.agent.config.value_transport:
            self._keep_reads(perceived, advanced, is_first)
        self._keep_peaks(perceived.read_weights, advanced.read_weights)
        self._activations.append(activations)
        self._parameters.append(parameters)
        self._actions.append(action)
        self._extras.append(map_state(Tensor.detach, extras))
        return action

    def _keep_reads(self, perceived: Perceived, advanced: Advanced, is_first: Bool[Tensor, "B"]) -> None:
        """Keep the reads that the next step sees, those after the action of an agent that has them."""
        read = perceived if advanced.read_weights is None else advanced
        if read.read_weights is None or read.read_strengths is None:
            raise MerlinError(
                f"Value is transported along reads, but {type(self.agent).__name__} gives no read_weights and "
                f"read_strengths with its steps: return them from perceive or advance, or take model.value_transport=0."
            )
        self._reads.append((read.read_weights.detach(), read.read_strengths.detach(), is_first))

    @torch.no_grad()
    def _keep_peaks(self, before: Tensor | None, after: Tensor | None) -> None:
        """Keep how sharp reads are: those that the action depends on, and those after it."""
        own, policys = (before, None) if after is None else (after, before)
        for name, weights in (("read_peak", own), ("policy_read_peak", policys)):
            if weights is not None and weights.shape[-1]:
                self._peaks.setdefault(name, []).append(weights.amax(-1).mean())

    def read_metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Return the largest weight of a read, in the mean over keys, environments and steps, by whose it is."""
        return {name: torch.stack(peaks).mean() for name, peaks in self._peaks.items()}

    @torch.no_grad()
    def next_value(
        self, observation: dict[str, Tensor], is_first: Bool[Tensor, "B"], reward: Float[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Return what would be the next step's value, and go nowhere."""
        state = detach_state(self._running if self._end is None else self._end)
        perceived = self.agent.perceive_new(observation, state, is_first, reward, self.generator)
        return self.agent.heads(perceived.activations, observation)[1]

    @torch.no_grad()
    def columns(self) -> dict[str, Any]:
        """Return the columns of `Unroll` that are the agent's, for all steps taken."""
        parameters = torch.stack(self._parameters)
        return {
            "log_prob": self.agent.actions.log_prob(parameters, torch.stack(self._actions)),
            "value": self.agent.value(self._stacked(), parameters),
            "extras": stack_states(self._extras),
            "reads": self._reads_by_step() if self._reads else None,
        }

    def _reads_by_step(self) -> Reads:
        """Return the reads of all steps taken."""
        weights, strengths, is_first = zip(*self._reads, strict=True)
        begins = torch.stack(is_first)
        slots = getattr(self._extras[0], "slots", None)
        slots = None if slots is None else torch.stack([extras.slots for extras in self._extras])
        assert self.agent.memory is not None, "what is read is a memory"
        by_step, earlier = self.agent.memory.weights_by_step(list(weights), slots, begins)
        has_begun = (begins.cumsum(0) > 0).unsqueeze(-1)  # of an episode of the window nothing was written before
        return Reads(torch.stack(strengths), by_step, earlier.masked_fill(has_begun, 0))

    def activations(self) -> Any:
        """Return the activations of all steps, with their graph, from which can be learnt once."""
        assert self.records, "a window is recorded where it is learnt from"
        assert len(self._actions) == self.length, "a window is learnt from after all of its steps"
        assert self._activations is not None, "a window is learnt from once"
        unchanged = self._versions == [x._version for x in self.agent.parameters()]
        assert unchanged, "what was acted by is learnt from before a parameter changes"
        activations, self._activations = self._stacked(), None
        return activations

    def _stacked(self) -> Any:
        """Return the activations of all steps as they are, with their graph if it was recorded."""
        if isinstance(self._activations, list):
            with torch.set_grad_enabled(self.records):
                self._activations = stack_states(self._activations)
        return self._activations
