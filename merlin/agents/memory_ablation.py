"""Ablations of a memory: an agent whose memory is emptied, frozen or another's, to find out its worth."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin import memory as memories
from merlin.agents.agent import Agent
from merlin.errors import MerlinError
from merlin.experience import StepOutput
from merlin.memory import MemoryState
from merlin.networks.lstm import map_state

ABLATIONS = {
    "zeroed": "it is empty at every step",
    "frozen": "it stays as an earlier episode left it, and nothing is written",
    "shuffled": "each environment's agent reads that of another's, and writes its own",
}


class MemoryAblationState(NamedTuple):
    """The agent's state, and the frozen memories, in the rows that have one."""

    agent_state: Any
    frozen: MemoryState
    is_frozen: Bool[Tensor, "B"]


class MemoryAblation:
    """An agent that reads another memory than its own; the rest of its state, that of LSTMs too, is left alone.

    A memory is emptied where an episode starts, so that the first read of an episode finds nothing, frozen or not.
    Where memories are frozen, the first episode of each environment is as without an ablation: it writes them.

    Args:
        ablation: One of `ABLATIONS`.

    Raises:
        MerlinError: The agent has no memory.
    """

    def __init__(self, agent: Agent, ablation: str) -> None:
        assert ablation in ABLATIONS
        if find_memory(agent.initial_state(1)) is None:
            name = type(agent).__name__
            raise MerlinError(f"Only a memory can be {ablation}, and {name} has none: take an agent that has.")
        self.agent, self.ablation = agent, ablation

    def initial_state(self, batch_size: int) -> MemoryAblationState:
        """Return the state before anything was seen."""
        state = self.agent.initial_state(batch_size)
        memory = find_memory(state)
        assert memory is not None
        return MemoryAblationState(state, memory, torch.zeros_like(memory.num_written, dtype=torch.bool))

    @torch.no_grad()
    def step(
        self,
        observation: Any,
        state: MemoryAblationState,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, MemoryAblationState]:
        """Return the action and the next state. See `Agent.step`."""
        agent_state, frozen, is_frozen = state
        own = find_memory(agent_state)
        assert own is not None
        if self.ablation == "zeroed":
            shown = map_state(torch.zeros_like, own)
        elif self.ablation == "shuffled":
            own = memories.reset(own, is_first)
            shown = map_state(lambda x: x.roll(1, 0), own)
        else:
            ended = is_first & ~is_frozen & (own.num_written > 0)
            frozen, is_frozen = _choose(ended, own, frozen), is_frozen | ended
            shown = _choose(is_frozen, frozen, own)
        output, agent_state = self.agent.step(
            observation, replace_memory(agent_state, shown), is_first, reward, generator=generator, greedy=greedy
        )
        after = find_memory(agent_state)
        assert after is not None and output.read_weights is not None
        if self.ablation == "shuffled":
            discount = self.agent.config.retroactive_discount
            after = memories.write(own, last_word(after, discount), output.read_weights, discount)
        elif self.ablation == "frozen":
            after = _choose(is_frozen, frozen, after)
        return output, MemoryAblationState(replace_memory(agent_state, after), frozen, is_frozen)


def find_memory(state: Any) -> MemoryState | None:
    """Return the memory in an agent's state, however deep, or None if there is none."""
    if isinstance(state, MemoryState):
        return state
    found = (find_memory(part) for part in state) if isinstance(state, tuple) else ()
    return next((memory for memory in found if memory is not None), None)


def replace_memory(state: Any, memory: MemoryState) -> Any:
    """Return an agent's state with another memory."""
    if isinstance(state, MemoryState):
        return memory
    return type(state)(*(replace_memory(part, memory) for part in state)) if isinstance(state, tuple) else state


def _choose(condition: Bool[Tensor, "B"], chosen: MemoryState, other: MemoryState) -> MemoryState:
    return map_state(lambda x, y: torch.where(condition.view(-1, *[1] * (x.ndim - 1)), x, y), chosen, other)


def last_word(memory: MemoryState, discount: float | None) -> Float[Tensor, "B Z"]:
    """Return the word that was written last, whose slot holds nothing else yet."""
    index = memory.write_weights.argmax(-1).view(-1, 1, 1).expand(-1, 1, memory.memory.shape[2])
    slot = memory.memory.gather(1, index).squeeze(1)
    return slot if discount is None else slot[:, : slot.shape[1] // 2]
