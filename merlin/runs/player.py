"""A trained agent that plays: `merlin.load`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector.utils import batch_space, iterate

from merlin.agents import Agent
from merlin.agents.actor import Actor
from merlin.environments.actions import EnvironmentActions, row_view
from merlin.environments.adapters import token_reader
from merlin.environments.passed import Passed, known
from merlin.errors import MerlinError
from merlin.networks.spaces import ROOT, Tokens
from merlin.ranges import COUNT, SEED, check
from merlin.runs.agent_spaces import read_spaces, spaces_of
from merlin.runs.build import build_agent_of, build_environment, load_weights, resolve_device
from merlin.runs.directory import load_config
from merlin.runs.held_out import Shown, play_held_out
from merlin.runs.model_folder import check_folder, save_folder
from merlin.runs.presets import RunConfig
from merlin.training.checkpoint import Best


class LoadedAgent:
    """A trained agent that plays one environment or a batch: arrays in, arrays out, its memory kept inside.

        player = merlin.load("runs/mine")
        observation, _ = env.reset()
        player.reset()                                             with every env.reset()
        action = player.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        action = player.act(observation, reward)                   and so on, until the episode ends

    A batch that resets itself says where an episode starts, at every act after the first:

        player.reset(num_envs=8)
        action = player.act(observations)
        action = player.act(observations, rewards, is_first)

    `is_first` is true in rows whose observation is the first of an episode. That is `terminated | truncated` of the
    step just taken where the environment resets in the same step, of the step before where it resets in the next.

    Attributes:
        agent: The agent, whose `step` this calls.
        spaces, action_space: What it sees, flat, and does.
        config, weights: Of the run that trained it, and which of its weights; None of an agent that no run did.
    """

    def __init__(
        self, agent: Agent, seed: int = 0, config: RunConfig | None = None, weights: Best | None = None
    ) -> None:
        self.agent, self.spaces, self.action_space = agent, agent.spaces, agent.action_space
        self.config, self.weights = config, weights
        self._device = next(agent.parameters()).device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._readers = {name: token_reader(x) for name, x in self.spaces.items() if isinstance(x, Tokens)}
        self._actor = Actor(agent)
        self._state: Any = None
        self._num_envs: int | None = None
        self._has_acted = False

    def reset(self, num_envs: int | None = None, *, seed: int | None = None) -> None:
        """Begin an episode in every environment: what was remembered is forgotten.

        Args:
            num_envs: How many environments are played together; None plays one, without a batch's axis.
            seed: Of sampled actions and latents from here on.

        Raises:
            MerlinError: There is no environment.
        """
        check("num_envs", num_envs, Annotated[int | None, COUNT])
        check("seed", seed, Annotated[int | None, SEED])
        if seed is not None:
            self._generator.manual_seed(seed)
        if self._state is None or num_envs != self._num_envs:
            self._to_environment, self._num_envs = to_environment(self.action_space, num_envs), num_envs
        self._state, self._has_acted = self.agent.initial_state(num_envs or 1), False

    def act(self, observation: Any, reward: Any = None, is_first: Any = None, *, deterministic: bool = False) -> Any:
        """Return the action, as the environment takes it: inside the action space, in its type.

        Args:
            observation: As the environment gives it, nested or flat; texts may be strings.
            reward: What the action before earned. Needed at every act but the first after a reset.
            is_first: Whether the observation starts an episode, one flag for each environment. Needed of a batch at
                every act but the first after a reset; one environment is told by `reset`, or by this.
            deterministic: Take the most probable action rather than a sample.

        Raises:
            MerlinError: There was no reset, an argument is missing, or does not fit the spaces.
        """
        if self._state is None:
            raise MerlinError(
                "A player must be reset before it acts: call reset() with every reset of the environment."
            )
        if not self._has_acted:
            is_first = True if is_first is None else is_first
            if not np.all(is_first):
                raise MerlinError("The first observation after a reset starts an episode: pass is_first=None or True.")
        elif is_first is None and self._num_envs is not None:
            raise MerlinError(
                "A batch of environments must say which rows start an episode, but is_first is missing: "
                "pass it at every act after the first, since they reset themselves."
            )
        elif reward is None:
            raise MerlinError(
                "An agent must know what its last action earned, but the reward is missing: pass it at every act but "
                "the first after a reset."
            )
        observation = _with_tokens(observation, "", self._readers)
        first = torch.as_tensor(False if is_first is None else is_first)
        action, state, is_single = self._actor.step(
            observation, self._state, first, reward, generator=self._generator, greedy=deterministic
        )
        if is_single != (self._num_envs is None):
            came = "of one environment" if is_single else "a batch"
            raise MerlinError(
                "Observations must be of one environment, or a batch of as many as reset was told, but these are "
                f"{came}: call reset(num_envs) for a batch, reset() for one."
            )
        self._state, self._has_acted = state, True
        return self._to_environment(action)

    def evaluate(
        self,
        env: str | Passed | EllipsisType = ...,
        *,
        episodes: int = 100,
        seed: int | None = None,
        greedy: bool = False,
        num_envs: int | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        memory: Shown = "own",
        max_steps: int | None = None,
    ) -> dict[str, Any]:
        """Return the agent's scores in held-out episodes, as `merlin evaluate` prints them.

        Args:
            env: Played instead of the task that it was trained on: an id, an environment, or a function that makes one.
            seed: Chooses the episodes; the run's unless told. None of them begins as one in training did.
            greedy: Take the most probable actions rather than samples.
            num_envs: Environments that are stepped together; as many as in training unless told, or as there are in an
                environment that is passed itself.
            env_kwargs: Settings of the task that are not those of training. An agent that plays against itself is
                judged against bots unless there are any.
            memory: What the agent is shown: its own memory; or one that is zeroed at each step, frozen as an earlier
                episode left it, or shuffled among environments.
            max_steps: Of an episode, which is then given up.

        Raises:
            MerlinError: The environment has other spaces, or cannot be built.
        """
        config = self._known_config()
        config = replace(config, env_kwargs={**config.env_kwargs, **(env_kwargs or {})}, device=str(self._device))
        with known(config.task if isinstance(env, EllipsisType) else env) as task:
            if not isinstance(env, EllipsisType):
                config = replace(config, task=task, env_kwargs=dict(env_kwargs or {}))
            return play_held_out(
                self.agent,
                config,
                episodes=episodes,
                seed=seed,
                greedy=greedy,
                num_envs=num_envs,
                memory=memory,
                max_steps=max_steps,
                as_told=env_kwargs is not None,
            )[0]

    def save(self, folder: str | Path, *, episodes: int = 100) -> Path:
        """Write the agent as a folder, which `merlin.load` and the commands read, and return that.

        It has the weights, the configuration, and a model card with what the agent scores: see
        `merlin.runs.model_folder`.

        Args:
            episodes: Held-out episodes that are played for the card; 0 plays none.

        Raises:
            MerlinError: The folder holds a run, an agent of another or another README.md, it cannot be written, or the
                environment cannot be built.
        """
        config, scores = replace(self._known_config(), device=str(self._device)), None
        check_folder(config, Path(folder))
        if episodes:
            with known(config.task):
                scores, references = play_held_out(self.agent, config, episodes=episodes, plays_at_random=True)
            scores |= {f"{name} play's return": reference.mean for name, reference in references.items()}
        return save_folder(self.agent, config, Path(folder), self.weights, scores)

    def _known_config(self) -> RunConfig:
        if self.config is None:
            raise MerlinError(
                "The agent must be of a run for its task to be known: load it by merlin.load, or call merlin.evaluate."
            )
        return self.config


def load(run_dir: str | Path, checkpoint: str = "best", device: str = "auto") -> LoadedAgent:
    """Return the agent of a run directory or an exported folder, to play with. Its environment need not be installed.

    A run of version 0.2.0 or before kept no spaces: its environment is built once, to ask for them.

    Args:
        checkpoint: Which weights: best, or last.
        device: auto, cpu or cuda.

    Raises:
        MerlinError: There is no run, or it cannot be read.
    """
    run_dir = Path(run_dir)
    if checkpoint not in ("best", "last"):
        raise MerlinError(f"The checkpoint must be best or last, but is {checkpoint!r}: choose one of them.")
    config = load_config(run_dir)
    spaces = read_spaces(run_dir)
    if spaces is None:
        with build_environment(config, 1) as environment:
            spaces = spaces_of(environment)
    agent = build_agent_of(config, spaces).eval()
    weights = load_weights(run_dir, agent, checkpoint)
    return LoadedAgent(agent.to(resolve_device(device)), config.seed, config, weights)


def to_environment(space: Space, num_envs: int | None) -> Callable[[torch.Tensor], Any]:
    """Return the function from an agent's action, or a batch of them, to what an environment of arrays takes.

    Args:
        num_envs: None of one environment, whose actions have no batch's axis.
    """
    form = EnvironmentActions(space, num_envs or 1, torch.device("cpu"), is_native=False, task="the task")
    batched, view = batch_space(space, 1), row_view(space)

    def convert(action: torch.Tensor) -> Any:
        action = action.cpu()
        if num_envs is not None:
            return form(action)
        one = next(iter(iterate(batched, form(action.unsqueeze(0)))))
        return one if view is None else view(one)

    return convert


def _with_tokens(node: Any, path: str, readers: dict[str, Callable[[str], np.ndarray]]) -> Any:
    """Return an observation with its texts as token ids."""
    if isinstance(node, dict):
        return {key: _with_tokens(child, f"{path}.{key}" if path else str(key), readers) for key, child in node.items()}
    read = readers.get(path or ROOT)
    if read is None:
        if not isinstance(node, tuple):
            return node
        return tuple(_with_tokens(child, f"{path}.{i}" if path else str(i), readers) for i, child in enumerate(node))
    if isinstance(node, str):
        return _tokens(read, node)
    is_texts = isinstance(node, np.ndarray | list | tuple) and len(node) > 0 and isinstance(node[0], str)
    return np.stack([_tokens(read, text) for text in node]) if is_texts else node


def _tokens(read: Callable[[str], np.ndarray], text: str) -> np.ndarray:
    try:
        return read(str(text))
    except ValueError as error:
        raise MerlinError(
            f"A text must be of the words that the agent was trained on, but {text[:60]!r} has {error}: pass others."
        ) from error
