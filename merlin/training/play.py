"""The play loop: a player steps a batch of environments, and observers are told of each step.

Evaluation, recordings, pictures and analyses are observers. For each step an observer that is not done gets

    before_step(environment)    to see what no timestep holds, as a picture of the task
    observe(moment)             the timesteps and the player's states before and after the step, and its output

What observers find is theirs to return; several in one play find the same as each alone.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from merlin.environments.batch import Environment, Timestep
from merlin.experience import StepOutput


@runtime_checkable
class Player(Protocol):
    """An agent, or whatever acts as one. See `merlin.agents.Agent`."""

    def initial_state(self, batch_size: int) -> Any:
        """Return the state before anything was seen."""
        ...

    def step(
        self,
        observation: Any,
        state: Any,
        is_first: Bool[Tensor, "B"],
        reward: Float[Tensor, "B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> tuple[StepOutput, Any]:
        """Return the action and the next state.

        Args:
            reward: Of the previous action. Where an episode starts it is the last one's, which the player takes for 0.
        """
        ...


class Moment(NamedTuple):
    """One step of a batch of environments."""

    timestep: Timestep  # seen by the player
    state: Any  # the player's, before it saw that
    output: StepOutput
    next_state: Any
    next_timestep: Timestep  # what the action led to
    generator_state: Tensor  # before the step: a generator set to it draws the step's noise once more


class Observer(ABC):
    """One that is told of play. It changes nothing: neither states nor the generator, whose draws are the player's."""

    is_done: bool = False
    """It needs no more steps, and is told of none, though others may be."""

    def before_step(self, environment: Environment) -> None:  # noqa: B027, most have no need of it
        """Look at the environment before a step: for what no timestep holds."""

    @abstractmethod
    def observe(self, moment: Moment) -> None:
        """Take in one step."""


@torch.no_grad()
def play(
    player: Player,
    environment: Environment,
    *observers: Observer,
    seed: int,
    generator: torch.Generator | None = None,
    greedy: bool = False,
    max_steps: int | None = None,
) -> None:
    """Play from a reset of the environment on, until all observers are done.

    Args:
        seed: Of the environment, and of actions and latents unless there is a `generator`.
        generator: Of actions and latents, on the environment's device.
        greedy: Take the most probable actions rather than samples.
        max_steps: Of each environment, after which playing stops whoever is not done.
    """
    if generator is None:
        generator = torch.Generator(environment.device).manual_seed(seed)
    timestep, state = environment.reset(seed), player.initial_state(environment.num_envs)
    steps = 0
    while steps != max_steps and (told := [observer for observer in observers if not observer.is_done]):
        for observer in told:
            observer.before_step(environment)
        before, generator_state = (timestep, state), generator.get_state()
        output, state = player.step(
            timestep.observation, state, timestep.is_first, timestep.reward, generator=generator, greedy=greedy
        )
        timestep = environment.step(output.action)
        for observer in told:
            observer.observe(Moment(*before, output, state, timestep, generator_state))
        steps += 1
