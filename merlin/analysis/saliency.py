"""Saliency of the parts of an observation: the change of V when they are replaced by another environment's."""

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.agents.agent import Agent
from merlin.environments.batch import Environment
from merlin.networks.spaces import Picture, Symbols
from merlin.training.play import Moment, Observer, play

PATCHES = 16  # along each side of a picture


class SaliencyProbe(Observer):
    """Mean change of V, for each part of each entry of the observation, when that part is another environment's.

    The step is taken once more with each changed observation, from the same state and with the same noise.

    Args:
        chosen: The steps at which that is done.
    """

    def __init__(self, agent: Agent, environment: Environment, chosen: set[int]) -> None:
        self.agent, self.spaces, self.chosen, self.step = agent, environment.spaces, chosen, 0
        self.generator = torch.Generator(environment.device)
        self.change: dict[str, Tensor] = {}

    def observe(self, moment: Moment) -> None:
        """Add what each part changes, if this is one of the chosen steps."""
        if self.step in self.chosen:
            for name, space in self.spaces.items():
                value = moment.timestep.observation[name]
                found = [self._change(moment, name, part) for part in _parts(space, value)]
                self.change[name] = self.change.get(name, 0) + torch.stack(found) / len(self.chosen)
        self.step += 1
        self.is_done = self.step > max(self.chosen)

    def _change(self, moment: Moment, name: str, part: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
        timestep = moment.timestep
        value = timestep.observation[name]
        observation = timestep.observation | {name: torch.where(part, value.roll(1, 0), value)}
        self.generator.set_state(moment.generator_state)
        output, _ = self.agent.step(
            observation, moment.state, timestep.is_first, timestep.reward, generator=self.generator
        )
        return (output.value - moment.output.value).abs().mean().cpu()

    def saliency(self) -> dict[str, Float[Tensor, "*shape"]]:
        """Return maps of grids and pictures, and one number for anything else."""
        return {name: x.reshape(_shape(self.spaces[name])) for name, x in self.change.items()}


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
    order = torch.randperm(steps * every, generator=torch.Generator().manual_seed(seed))
    probe = SaliencyProbe(agent, environment, set(order[:steps].tolist()))
    play(agent, environment, probe, seed=seed)
    return probe.saliency()


def _shape(space: spaces.Space) -> tuple[int, ...]:
    match space:
        case Symbols():
            return tuple(space.shape[:2])
        case Picture():
            return tuple(min(PATCHES, size) for size in space.size)
    return ()


def _parts(space: spaces.Space, value: Tensor) -> list[Tensor]:
    """Return masks, each true in one part of an entry, that together cover it."""
    shape = _shape(space)
    if not shape:
        return [torch.ones_like(value[:1], dtype=torch.bool)]
    axis = 1 + (space.row_axis if isinstance(space, Picture) else 0)
    size = value.shape[axis : axis + 2]
    y, x = (torch.arange(n, device=value.device) * parts // n for n, parts in zip(size, shape, strict=True))
    part = (y.unsqueeze(1) * shape[1] + x).view(*[1] * axis, *size, *[1] * (value.ndim - 2 - axis))
    return [part == index for index in range(shape[0] * shape[1])]
