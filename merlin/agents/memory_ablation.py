"""Ablations of a memory: an agent whose memory is emptied, frozen or another's, to find out its worth."""

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.errors import MerlinError
from merlin.experience import StepOutput
from merlin.states import choose_rows, flatten_state, map_state, reset_state

ABLATIONS = {
    "zeroed": "it is empty at every step",
    "frozen": "it stays as an earlier episode left it, and nothing is written",
    "shuffled": "each environment's agent reads that of another's, and writes its own",
}


class MemoryAblationState(NamedTuple):
    """The agent's state, and the frozen memories, in the rows that have one."""

    agent_state: Any
    frozen: Any
    is_frozen: Bool[Tensor, "B"]


class MemoryAblation:
    """An agent that reads another memory than its own; the rest of its state, that of LSTMs too, is left alone.

    A memory is emptied where an episode starts, so that the first read of an episode finds nothing, frozen or not.
    Where memories are frozen, the first episode of each environment is as without an ablation: it writes them.

    Args:
        ablation: One of `ABLATIONS`.

    Raises:
        MerlinError: The agent has no memory, or none that can be ablated so.
    """

    def __init__(self, agent: Agent, ablation: str) -> None:
        assert ablation in ABLATIONS
        name = type(agent).__name__
        if agent.memory is None:
            raise MerlinError(f"Only a memory can be {ablation}, and {name} has none: take an agent that has.")
        if ablation == "shuffled" and not agent.writes_once:
            raise MerlinError(
                f"A memory can be shuffled where a step writes one word after its reads, but {name} writes others too: "
                f"take zeroed or frozen."
            )
        state = agent.memory_state(agent.initial_state(1))
        if ablation == "shuffled" and agent.memory.last_word(state) is None:
            raise MerlinError(
                f"A memory that is shuffled must tell what was written last, but {name}'s does not: "
                f"give it last_word, or take another ablation."
            )
        self.agent, self.memory, self.ablation = agent, agent.memory, ablation

    def initial_state(self, batch_size: int) -> MemoryAblationState:
        """Return the state before anything was seen."""
        state = self.agent.initial_state(batch_size)
        memory = self.agent.memory_state(state)
        return MemoryAblationState(state, memory, torch.zeros_like(_holds_something(memory)))

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
        own = self.agent.memory_state(agent_state)
        if self.ablation == "zeroed":
            shown = map_state(torch.zeros_like, own)
        elif self.ablation == "shuffled":
            own = reset_state(own, is_first)
            shown = map_state(lambda x: x.roll(1, 0), own)
        else:
            ended = is_first & ~is_frozen & _holds_something(own)
            frozen, is_frozen = choose_rows(ended, own, frozen), is_frozen | ended
            shown = choose_rows(is_frozen, frozen, own)
        agent_state = self.agent.with_memory(agent_state, shown)
        output, agent_state = self.agent.step(
            observation, agent_state, is_first, reward, generator=generator, greedy=greedy
        )
        after = self.agent.memory_state(agent_state)
        if self.ablation == "shuffled":
            after = self._write_once(own, shown, after, is_first, output)
        elif self.ablation == "frozen":
            after = choose_rows(is_frozen, frozen, after)
        return output, MemoryAblationState(self.agent.with_memory(agent_state, after), frozen, is_frozen)

    def _write_once(self, own: Any, shown: Any, after: Any, is_first: Bool[Tensor, "B"], output: StepOutput) -> Any:
        """Return the agent's own memory with the word that a step wrote to the one that it was shown.

        Raises:
            MerlinError: The step made something else of that than the word written by the step's reads.
        """
        word, weights = self.memory.last_word(after), output.read_weights
        if word is not None and weights is not None:
            expected, _ = self.memory.write(reset_state(shown, is_first), word, weights)
            if all(map(_is_close, flatten_state(expected), flatten_state(after))):
                return self.memory.write(own, word, weights)[0]
        raise MerlinError(
            f"A memory can be shuffled where every step writes its last_word by the step's reads, but "
            f"{type(self.agent).__name__} or its memory does something else: take zeroed or frozen, and let the agent "
            f"say writes_once = False."
        )


def possible_ablations(agent: Agent) -> list[str]:
    """Return the ablations that an agent's memory can be put through; none of an agent without one."""
    found = []
    for name in ABLATIONS:
        with suppress(MerlinError):
            MemoryAblation(agent, name)
            found.append(name)
    return found


def _is_close(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x, y) if x.is_floating_point() else torch.equal(x, y)


def _holds_something(memory: Any) -> Bool[Tensor, "B"]:
    """Return the rows of the batch whose memory is not all zeros."""
    rows: list[Tensor] = []
    map_state(lambda x: rows.append((x != 0).flatten(1).any(1) if x.ndim > 1 else x != 0) or x, memory)
    return torch.stack(rows).any(0)
