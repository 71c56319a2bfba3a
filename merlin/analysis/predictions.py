"""Observations that an agent predicts, infers, remembers and imagines, beside those that it saw."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from merlin.agents.agent import Predicts
from merlin.environments.batch import Environment
from merlin.memory import MemoryState
from merlin.training.play import Moment, Observer, play
from merlin.viewer.episodes import first_row

Rows = list[dict[str, np.ndarray]]


class Predictions(NamedTuple):
    """Observations of one episode, each a dict of entries as their spaces describe them.

    `expected` is decoded from the prior's mean, before the observation was seen, `inferred` from the posterior's mean.
    `remembered` is decoded from the memory's rows when playing stopped, oldest first, `written` are the steps that
    wrote them. `imagined` goes on from the step `imagined_from` without looking: the latent of each step is a sample of
    the prior, and what was done then is done.
    """

    seen: Rows
    expected: Rows
    inferred: Rows
    remembered: Rows
    written: list[int]
    imagined: Rows
    imagined_from: int


class PredictionRecorder(Observer):
    """Observations of one episode of a batch's first environment, and those decoded from prior and posterior."""

    def __init__(self, agent: Predicts) -> None:
        self.agent = agent
        self.seen: Rows = []
        self.expected: Rows = []
        self.inferred: Rows = []
        self.slots: list[int] = []
        self.actions: list[Tensor] = []  # as codes
        self.states: dict[int, Any] = {}  # after steps 1, 2, 4, ...: a state holds a whole memory

    def observe(self, moment: Moment) -> None:
        """Decode a step."""
        self.seen.append(first_row(moment.timestep.observation))
        self.expected.append(first_row(self.agent.expect(moment.state, moment.timestep.is_first)))
        self.inferred.append(_decode(self.agent, self._infer(moment)))
        if moment.output.slots is not None:
            self.slots.append(int(moment.output.slots[0]))
        self.last_state = moment.next_state
        self.actions.append(moment.next_state.previous_action)
        if len(self.seen).bit_count() == 1:
            self.states[len(self.seen) - 1] = moment.next_state
        self.is_done = bool(moment.next_timestep.is_end[0])

    def _infer(self, moment: Moment) -> Float[Tensor, "B Z"]:
        """Return the mean of the posterior of a step, taken again."""
        is_first, reward = moment.timestep.is_first, moment.timestep.reward
        again = self.agent.perceive_new(moment.timestep.observation, moment.state, is_first, reward, None)
        return self.agent.infer(again.activations)

    @torch.no_grad()
    def predictions(self, imagine: int, generator: torch.Generator) -> Predictions:
        """Return these, the memory, and `imagine` steps imagined from somewhere before the episode's middle on."""
        written = sorted({slot: step for step, slot in enumerate(self.slots) if slot >= 0}.values())
        memory = self.agent.memory
        state = None if memory is None else self.agent.memory_state(self.last_state)
        if memory is None or not isinstance(state, MemoryState):  # of a memory of another kind it is not known
            written, words = [], []  # what a slot holds
        else:  # a latent, and behind it what followed, where the memory has a retroactive half
            words = [state.memory[:1, self.slots[step], : memory.word_size] for step in written]
        remembered = [_decode(self.agent, word) for word in words]
        middle = max(step for step in self.states if step <= len(self.seen) // 2)
        done = self.actions[middle + 1 : middle + 1 + imagine]
        latents = self.agent.imagine(self.states[middle], imagine, generator, torch.stack(done) if done else None)
        imagined = [_decode(self.agent, x) for x in latents]
        return Predictions(self.seen, self.expected, self.inferred, remembered, written, imagined, middle)


def expectations(
    agent: Predicts, environment: Environment, *, seed: int, max_steps: int = 500, imagine: int = 8
) -> Predictions:
    """Play one episode and return what was expected, inferred, remembered, imagined in the batch's first environment.

    Args:
        seed: Of the environment, actions and latents.
        max_steps: After which playing stops, though the episode goes on.
        imagine: Steps imagined, from somewhere before the middle of the episode on.
    """
    generator = torch.Generator(environment.device).manual_seed(seed)
    recorder = PredictionRecorder(agent)
    play(agent, environment, recorder, seed=seed, generator=generator, max_steps=max_steps)
    return recorder.predictions(imagine, generator)


def _decode(agent: Predicts, latent: Tensor) -> dict[str, np.ndarray]:
    return first_row(agent.reconstruct(latent))
