"""Which parts of an observation the value depends on, by putting what others saw in their place."""

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.networks.spaces import kind

PATCHES = 16  # along each side of a picture


@torch.no_grad()
def saliency(
    agent: Agent, environment: Environment, *, seed: int, steps: int = 32, every: int = 4
) -> dict[str, Float[Tensor, "*shape"]]:
    """Return, for each entry of the observation, the mean change of V when a part of it is another environment's.

    A grid gives a map of its cells, a picture one of 16x16 patches, anything else one number. Occlusion by what is as
    likely elsewhere says for categories what a gradient says for pixels.

    Args:
        seed: Of environments, actions and latents.
        steps: Played steps that are asked about, one of `every`, drawn at random: tasks may have a rhythm.
    """
    generator = torch.Generator(environment.device).manual_seed(seed)
    timestep, state = environment.reset(seed), agent.initial_state(environment.num_envs)
    asked = set(torch.randperm(steps * every, generator=torch.Generator().manual_seed(seed))[:steps].tolist())
    change: dict[str, Tensor] = {}
    for step in range(steps * every):
        given = (state, timestep.is_first, timestep.reward)
        noise = generator.get_state()
        output, state = agent.step(timestep.observation, *given, generator=generator)
        if step in asked:
            after = generator.get_state()
            for name, space in environment.spaces.items():
                parts = _parts(space, timestep.observation[name])
                found = torch.zeros(len(parts))
                for index, part in enumerate(parts):
                    value = timestep.observation[name]
                    other = torch.where(part, value.roll(1, 0), value)
                    generator.set_state(noise)
                    changed, _ = agent.step(timestep.observation | {name: other}, *given, generator=generator)
                    found[index] = (changed.value - output.value).abs().mean().cpu()
                change[name] = change.get(name, 0) + found / steps
            generator.set_state(after)
        timestep = environment.step(output.action)
    return {name: x.reshape(_shape(environment.spaces[name])) for name, x in change.items()}


def _shape(space: spaces.Space) -> tuple[int, ...]:
    rows = {"symbols": lambda: space.shape[:2], "image": lambda: tuple(min(PATCHES, size) for size in space.shape[:2])}
    return rows.get(kind(space), lambda: ())()


def _parts(space: spaces.Space, value: Tensor) -> list[Tensor]:
    """Return masks, each true in one part of an entry, that together cover it."""
    shape = _shape(space)
    if not shape:
        return [torch.ones_like(value[:1], dtype=torch.bool)]
    y, x = (
        torch.arange(size, device=value.device) * parts // size for size, parts in zip(space.shape, shape, strict=False)
    )
    part = (y.unsqueeze(1) * shape[1] + x).view(1, *space.shape[:2], *[1] * (value.ndim - 3))
    return [part == index for index in range(shape[0] * shape[1])]
