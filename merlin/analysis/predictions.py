"""What MERLIN expects before it looks, what it makes of what it saw, what it remembers, and what it imagines."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from merlin.agents.merlin import Merlin
from merlin.environments.batch import Environment
from merlin.states import reset_state

Rows = list[dict[str, np.ndarray]]


class Expectations(NamedTuple):
    """Observations of one episode, each a dict of entries as their spaces describe them.

    `expected` is decoded from the prior's mean, before the observation was seen, `inferred` from the posterior's mean.
    `remembered` is decoded from the memory's rows when playing stopped, oldest first, `written` are the steps that
    wrote them. `imagined` goes on from the step `imagined_from` without looking: the latent of each step is a sample of
    the prior, and the policy acts on it.
    """

    seen: Rows
    expected: Rows
    inferred: Rows
    remembered: Rows
    written: list[int]
    imagined: Rows
    imagined_from: int


@torch.no_grad()
def expectations(
    agent: Merlin, environment: Environment, *, seed: int, max_steps: int = 500, imagine: int = 8
) -> Expectations:
    """Play one episode in an environment of num_envs=1 and return what was expected, inferred, remembered, imagined.

    Args:
        seed: Of the environment, actions and latents.
        max_steps: After which playing stops, though the episode goes on.
        imagine: Steps imagined, from somewhere before the middle of the episode on.
    """
    assert environment.num_envs == 1
    generator = torch.Generator(environment.device).manual_seed(seed)
    timestep, state = environment.reset(seed), agent.initial_state(1)
    seen, expected, inferred, slots = [], [], [], []
    states = {}  # after steps 1, 2, 4, ...: a state holds a whole memory
    is_over = False
    while not is_over and len(seen) < max_steps:
        before = reset_state(state, timestep.is_first)
        expected.append(_row(agent.expect(state, timestep.is_first)))
        reward = timestep.reward.masked_fill(timestep.is_first, 0)
        output, state = agent.step(timestep.observation, state, timestep.is_first, timestep.reward, generator=generator)
        code = agent.predictor.encode(timestep.observation, before.previous_action, reward)
        assert output.noise is not None and output.slots is not None
        thought = agent.predictor.perceive(code, output.noise, before.predictor)
        seen.append(_row(timestep.observation))
        inferred.append(_decode(agent, thought.posterior.mean))
        slots.append(int(output.slots))
        if len(seen).bit_count() == 1:
            states[len(seen) - 1] = state
        timestep = environment.step(output.action)
        is_over = bool(timestep.terminated | timestep.truncated)
    written = sorted({slot: step for step, slot in enumerate(slots)}.values())
    words = state.predictor.memory.memory[0, [slots[step] for step in written], : agent.config.latent_size]
    remembered = [_decode(agent, word.unsqueeze(0)) for word in words]
    middle = max(step for step in states if step <= len(seen) // 2)
    imagined = [_decode(agent, latent) for latent in agent.imagine(states[middle], imagine, generator)]
    return Expectations(seen, expected, inferred, remembered, written, imagined, middle)


def _decode(agent: Merlin, latent: Tensor) -> dict[str, np.ndarray]:
    return _row(agent.reconstruct(latent))


def _row(entries: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: x[0].cpu().numpy() for name, x in entries.items()}
