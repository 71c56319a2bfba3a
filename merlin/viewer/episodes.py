"""An episode, step by step, with the agent's values, predictions, reads and writes: `merlin watch` draws it."""

import math
from collections.abc import Sequence
from enum import EnumMeta
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from merlin.agents.agent import Agent, Predicts
from merlin.environments.batch import Environment
from merlin.networks.action_spaces import SimpleSpace, open_action_space
from merlin.networks.actions import GaussianActions
from merlin.networks.spaces import shape_of
from merlin.training.play import Moment, Observer, play


class Step(NamedTuple):
    """One observation and the agent's step on it. Entries that an agent lacks are None.

    `expected` is decoded from the prior, before the agent looked; `reconstruction` from the latent of what it saw.
    `policy` holds probabilities of choices [C], of those beside a Box in a Dict too; where there are only n numbers of
    Boxes, their means, their standard deviations and the action [3, n], in half ranges from the middle. `reward` is
    that of `action`. Reads are of the memory before this step's write of `word` into `slot`, and after what was written
    before them, into `slot_before_reads`. `slot` is −1 where a step wrote nothing, None where no slot is
    known.
    """

    observation: dict[str, np.ndarray]
    expected: dict[str, np.ndarray] | None
    reconstruction: dict[str, np.ndarray] | None
    value: float
    policy: np.ndarray
    action: np.ndarray
    reward: float
    read_weights: np.ndarray | None  # [K, N]
    policy_read_weights: np.ndarray | None  # [K, N]
    slot: int | None
    word: np.ndarray | None  # [Z]
    picture: np.ndarray | None  # the task, as it draws itself [Y, X, 3]
    imagined: list[dict[str, np.ndarray]] | None = None
    """Observations of the steps that follow as they are imagined from this one on, where what was done is done."""
    slot_before_reads: int | None = None


class Episode(NamedTuple):
    """The steps of an episode, and what is needed to draw them. `success` is NaN where the task does not define it."""

    task: str
    spaces: dict[str, gymnasium.Space]
    action_space: gymnasium.Space
    action_names: Sequence[str] | None
    steps: list[Step]
    is_complete: bool
    success: float

    def held(self, step: int) -> dict[int, int]:
        """Return, for each slot that holds what a step saw when `step` reads the memory, that step."""
        return {slot: writer for slot, (writer, saw) in self._writers(step).items() if saw}

    def held_before_reads(self, step: int) -> dict[int, int]:
        """Return the same of each slot that holds what a step wrote before it read."""
        return {slot: writer for slot, (writer, saw) in self._writers(step).items() if not saw}

    def _writers(self, step: int) -> dict[int, tuple[int, bool]]:
        found: dict[int, tuple[int, bool]] = {}
        for index, past in enumerate(self.steps[: step + 1]):
            if past.slot_before_reads is not None:
                found[past.slot_before_reads] = index, False
            if past.slot is not None and past.slot >= 0 and index < step:
                found[past.slot] = index, True
        return found

    def action_name(self, step: int) -> str:
        """Return in words what was done in a step."""
        if self.action_names is not None:
            assert isinstance(self.action_space, spaces.Discrete), "a single choice is what has names"
            return self.action_names[int(self.steps[step].action) - int(self.action_space.start)]
        words = []
        for _, part, numbers in self.action_parts(step):
            is_box = isinstance(part, spaces.Box)
            words += [f"{x:.2f}" for x in numbers[:4]] if is_box else map(str, numbers.astype(int))
        return "action " + " ".join(words).replace("-", "−")

    def action_parts(self, step: int) -> list[tuple[str, SimpleSpace, np.ndarray]]:
        """Return the simple spaces of the action space with their paths, and what was done in each, flat."""
        parts = open_action_space(self.action_space)
        ends = np.cumsum([math.prod(shape_of(part)) for _, part in parts])
        numbers = np.split(self.steps[step].action.reshape(-1), ends[:-1])
        return [(path, part, x) for (path, part), x in zip(parts, numbers, strict=True)]

    @property
    def outcome(self) -> str | None:
        """The success in words; None where it is not known."""
        if math.isnan(self.success):
            return None
        return {1.0: "success", 0.0: "no success"}.get(self.success, f"success {self.success:.2g}")

    @property
    def has_choices(self) -> bool:
        """Whether something is chosen, so that `policy` holds probabilities; else all actions are numbers of Boxes."""
        return any(not isinstance(part, spaces.Box) for _, part in open_action_space(self.action_space))


class EpisodeRecorder(Observer):
    """One episode of a batch's first environment, with its pictures: of the first player, where these play a game.

    Args:
        imagine: Steps ahead that are imagined from each step, by agents that can.
        seed: Of what is imagined.
    """

    def __init__(self, agent: Agent, environment: Environment, imagine: int = 0, seed: int = 0) -> None:
        self.agent, self.environment = agent, environment
        self.ahead = imagine if isinstance(agent, Predicts) else 0
        self.generator = torch.Generator(environment.device).manual_seed(seed)
        self.states: list[Any] = []  # the last ones, from which nothing was imagined yet
        self.steps: list[Step] = []
        self.success = math.nan

    def before_step(self, environment: Environment) -> None:
        """Keep the picture of the task."""
        picture = environment.render(0)
        self.picture = None if picture is None else np.array(picture)

    def observe(self, moment: Moment) -> None:
        """Keep a step."""
        agent, output, timestep = self.agent, moment.output, moment.timestep
        slot = None if output.slots is None else int(output.slots[0])
        word = None
        if slot is not None and agent.memory is not None:
            word = agent.memory.last_word(agent.memory_state(moment.next_state))
        slot = None if word is None else slot  # of a memory that cannot tell what it holds nothing is drawn
        before = None if slot is None else agent.slots_before_reads(output, moment.next_state)
        self.steps.append(
            Step(
                observation=first_row(timestep.observation),
                expected=first_row(agent.expect(moment.state, timestep.is_first)),
                reconstruction=None if output.latent is None else first_row(agent.reconstruct(output.latent)),
                value=output.value[0].item(),
                policy=_policy(agent, output.policy_parameters, output.action),
                action=first_row(output.action),
                reward=moment.next_timestep.reward[0].item(),
                read_weights=None if slot is None else first_row(output.read_weights),
                policy_read_weights=None if slot is None else first_row(output.policy_read_weights),
                slot=slot,
                word=first_row(word),
                picture=self.picture,
                slot_before_reads=None if before is None or before[0] < 0 else int(before[0]),
            )
        )
        self.is_done = bool(moment.next_timestep.is_end[0])
        self.success = moment.next_timestep.success[0].item()
        if self.ahead:
            self.states.append(moment.next_state)
            while len(self.states) > self.ahead or (self.is_done and self.states):
                self._imagine()

    def _imagine(self) -> None:
        """Imagine what was seen after the oldest state that is kept, and drop it."""
        agent: Predicts = cast(Predicts, self.agent)
        state, *later = self.states
        imagined: list[dict[str, np.ndarray]] = []
        if later:
            actions = torch.stack([x.previous_action for x in later])
            latents = agent.imagine(state, len(later), self.generator, actions)[:, 0]
            decoded = agent.reconstruct(latents)
            imagined = [{name: x[i].cpu().numpy() for name, x in decoded.items()} for i in range(len(later))]
        index = len(self.steps) - len(self.states)
        self.steps[index] = self.steps[index]._replace(imagined=imagined)
        self.states.pop(0)

    def episode(self) -> Episode:
        """Return the episode as far as it was played."""
        while self.states:
            self._imagine()
        environment = self.environment
        return Episode(
            environment.task,
            environment.spaces,
            environment.action_space,
            action_names(_one_task(environment), environment.action_space),
            self.steps,
            self.is_done,
            self.success,
        )


def record_episode(
    agent: Agent,
    environment: Environment,
    seed: int,
    generator: torch.Generator,
    *,
    greedy: bool = False,
    max_steps: int | None = None,
    imagine: int = 0,
) -> Episode:
    """Play one episode and return it as the first environment of the batch had it, cut off after `max_steps`.

    Args:
        generator: Of actions and latents; on the environment's device.
        imagine: Steps ahead that are imagined from each step, by agents that can.
    """
    recorder = EpisodeRecorder(agent, environment, imagine, seed)
    play(agent, environment, recorder, seed=seed, generator=generator, greedy=greedy, max_steps=max_steps)
    return recorder.episode()


def _policy(agent: Agent, parameters: Tensor, action: Tensor) -> np.ndarray:
    actions = agent.actions
    if not isinstance(actions, GaussianActions):
        return first_row(actions.probabilities(parameters))
    mean, log_std = actions.moments(parameters)
    mean = (mean - actions.centre) / actions.half_range
    return first_row(torch.stack([mean, log_std.exp() / actions.half_range, actions.encode(action)], 1))


def action_names(task: Any, action_space: gymnasium.Space) -> Sequence[str] | None:
    """Return what a task calls its actions: in `action_names`, in an enumeration as MiniGrid's, or not at all."""
    names = getattr(task, "action_names", None)
    if names is None and isinstance(getattr(task, "actions", None), EnumMeta):
        names = [action.name for action in task.actions]
    is_whole = names is not None and isinstance(action_space, spaces.Discrete) and len(names) == action_space.n
    return names if is_whole else None


def _one_task(environment: Environment) -> Any:
    vector_env: Any = environment.vector_env.unwrapped
    return vector_env.envs[0].unwrapped if hasattr(vector_env, "envs") else vector_env


def first_row(value: Any) -> Any:
    """Return the first row of a tensor, or of each in a dict; None of None."""
    if isinstance(value, dict):
        return {name: first_row(x) for name, x in value.items()}
    return None if value is None else value[0].cpu().numpy()
