"""Saliency of the parts of an observation: the change of V when they are replaced by what was seen elsewhere."""

import math

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
    """Mean change of V, for each part of each entry of the observation, when that part is as it was seen elsewhere.

    Elsewhere is one, drawn at random, of all steps of all environments that were asked about so far: at the same step
    environments may all show the same. The step is taken once more with each changed observation, from the same state
    and with the same noise.

    Args:
        chosen: The steps at which that is done.
    """

    def __init__(self, agent: Agent, environment: Environment, chosen: set[int]) -> None:
        self.agent, self.spaces, self.chosen, self.step = agent, environment.spaces, chosen, 0
        self.generator = torch.Generator(environment.device)
        self.draws = torch.Generator().manual_seed(0)
        self.seen: list[dict[str, Tensor]] = []
        self.change: dict[str, Tensor] = {}
        self.has_differed: dict[str, Tensor] = {}

    def observe(self, moment: Moment) -> None:
        """Add what each part changes, if this is one of the chosen steps."""
        if self.step in self.chosen:
            self.seen.append(moment.timestep.observation)
            elsewhere = self._elsewhere(len(moment.timestep.is_first))
            for name, space in self.spaces.items():
                value = moment.timestep.observation[name]
                other = torch.stack([self.seen[step][name][row] for step, row in elsewhere])
                parts = [part & (other != value) for part in _parts(space, value)]
                change = torch.stack([self._change(moment, name, other, part) for part in parts])
                self.change[name] = self.change.get(name, 0) + change / len(self.chosen)
                differs = torch.stack([part.any() for part in parts]).cpu()
                self.has_differed[name] = self.has_differed.get(name, differs) | differs
        self.step += 1
        self.is_done = self.step > max(self.chosen)

    def _elsewhere(self, num_envs: int) -> list[tuple[int, int]]:
        """Return for each environment a step that was seen, by its index, and a row of it: any but its own present."""
        count = len(self.seen) * num_envs
        here = torch.arange(count - num_envs, count)
        shift = torch.randint(1, max(2, count), (num_envs,), generator=self.draws)
        return [divmod(index, num_envs) for index in ((here + shift) % count).tolist()]

    def _change(self, moment: Moment, name: str, other: Tensor, part: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return the mean change of V when an entry is another in a part."""
        if not part.any():
            return torch.zeros(())
        timestep = moment.timestep
        observation = timestep.observation | {name: torch.where(part, other, timestep.observation[name])}
        self.generator.set_state(moment.generator_state)
        output, _ = self.agent.step(
            observation, moment.state, timestep.is_first, timestep.reward, generator=self.generator
        )
        return (output.value - moment.output.value).abs().mean().cpu()

    def saliency(self) -> dict[str, Float[Tensor, "*shape"]]:
        """Return maps of grids and pictures, and one number for anything else; NaN of a part that never differed."""
        found = {name: x.where(self.has_differed[name], math.nan) for name, x in self.change.items()}
        return {name: x.reshape(_shape(self.spaces[name])) for name, x in found.items()}


def saliency(
    agent: Agent, environment: Environment, *, seed: int, steps: int = 32, every: int = 4
) -> dict[str, Float[Tensor, "*shape"]]:
    """Return, for each entry of the observation, the mean change of V when a part of it is as it was seen elsewhere.

    A grid gives a map of its cells, a picture one of 16x16 patches, anything else one number; NaN of what was never
    different elsewhere. Occlusion by what is as likely elsewhere says for categories what a gradient says for pixels.

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
