"""A run's environments and agent, built from its configuration, and the weights of its checkpoints."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from merlin import distributed
from merlin.agents import Agent, find_agent
from merlin.environments.batch import Environment, make_environment
from merlin.environments.make import find_spec, rows_per_game
from merlin.errors import MerlinError, describe, is_out_of_memory, option, quote, tell
from merlin.runs.agent_spaces import AgentSpaces, check_spaces, spaces_of
from merlin.runs.directory import tell_changes
from merlin.runs.presets import RunConfig
from merlin.states import flatten_state
from merlin.training import checkpoint


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise MerlinError(f"A device is auto, cpu, cuda or cuda:N, but {quote(name)} came: choose one of them.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MerlinError(
            f"Device cuda needs a GPU that PyTorch can use, and there is none here: take {option('device', 'cpu')}."
        )
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise MerlinError(
            f"Device {name} must be there, but PyTorch counts {torch.cuda.device_count()} GPUs: take another."
        )
    return torch.device("cuda", distributed.local_rank()) if device == torch.device("cuda") else device


def build_environment(config: RunConfig, num_envs: int | None = None, render_mode: str | None = None) -> Environment:
    """Return the run's environments, or this process's share of them.

    Args:
        num_envs: So many instead, or the few more that make whole games, of tasks with several players: 1 is one game.
    """
    if num_envs is None:
        num_envs = config.num_envs // distributed.world_size()
    else:
        rows = rows_per_game(find_spec(config.task), config.env_kwargs, config.environment)
        num_envs = -(-num_envs // rows) * rows
    return make_environment(
        config.task,
        num_envs,
        device=resolve_device(config.device),
        env_kwargs=config.env_kwargs,
        vectorization=config.vectorization,
        render_mode=render_mode,
        truncation_ends=config.training.truncation_ends,
        config=config.environment,
    )


def build_judged(
    config: RunConfig, num_envs: int | None = None, note: Callable[[str], object] = lambda _: None
) -> Environment:
    """Return environments in which an agent is judged: those of training, or in self-play games against bots.

    In self-play what one row wins another loses, so that returns say nothing. A task says by `judged_by` with which
    settings they do.

    Args:
        note: Is told of these.
    """
    environment = build_environment(config, num_envs)
    settings = environment.judged_by
    if not settings:
        return environment
    environment.close()
    named = ", ".join(f"{name}={value}" for name, value in settings.items())
    note(f"games against itself would say nothing of the agent, so it plays with {named}")
    return build_environment(replace(config, env_kwargs=config.env_kwargs | settings), num_envs)


def build_agent(config: RunConfig, environment: Environment) -> Agent:
    """Return the run's agent with fresh weights, drawn from the run's seed without touching PyTorch's global one."""
    return build_agent_of(config, spaces_of(environment)).to(environment.device)


def build_agent_of(config: RunConfig, spaces: AgentSpaces) -> Agent:
    """Return `build_agent`'s agent, on the CPU, of spaces alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        agent_class = find_agent(config.agent).agent_class
        try:
            agent = agent_class(spaces.spaces, spaces.action_space, config.model)
            agent.gives_masks = spaces.gives_masks
            state = agent.initial_state(1)
            assert hasattr(state, "previous_action"), "its state must have an entry previous_action"
            for name, entry in state._asdict().items():
                if any(bool(x.any()) for x in flatten_state(entry)):  # rows that start an episode are zeroed
                    raise MerlinError(
                        f"The state of {config.agent!r} at an episode's start must be all zeros, but {name!r} of its "
                        "initial_state is not: return zeros, and add what it should begin with where it is read."
                    )
        except Exception as error:  # whatever an agent of anybody's file does
            if isinstance(error, MerlinError) or is_out_of_memory(error):
                raise
            raise MerlinError(
                f"The agent {config.agent!r} cannot be built for {config.task}: {describe(error)}: correct it."
            ) from error
    return agent


def describe_weights(weights: checkpoint.Best) -> str:
    """Return which weights were loaded, in words."""
    return f"{which_weights(weights)} checkpoint, of {weights.step:,} steps"


def which_weights(weights: checkpoint.Best) -> str:
    """Return which weights were loaded: best, or last, whose score is NaN."""
    return "last" if math.isnan(weights.score) else "best"


def load_agent(
    run_dir: str | Path,
    environment: Environment,
    config: RunConfig,
    which: str = "best",
    note: Callable[[str], object] = tell,
) -> Agent:
    """Return the run's agent with the weights of its best or last checkpoint.

    Args:
        note: Is told of damage for which other weights are taken, and of settings that the run was not trained with,
            but for those of the task.

    Raises:
        MerlinError: The environment has other spaces than the run's, or the weights cannot be read.
    """
    return load_agent_and_weights(run_dir, environment, config, which, note)[0]


def load_agent_and_weights(
    run_dir: str | Path,
    environment: Environment,
    config: RunConfig,
    which: str = "best",
    note: Callable[[str], object] = tell,
) -> tuple[Agent, checkpoint.Best]:
    """Return `load_agent`'s agent, and which weights it has."""
    run_dir = Path(run_dir)
    tell_changes(config, run_dir, note, but="env_kwargs")
    check_spaces(run_dir, config.task, environment)
    agent = build_agent(config, environment).eval()
    return agent, load_weights(run_dir, agent, which, note)


def load_weights(run_dir: Path, agent: Agent, which: str, note: Callable[[str], object] = tell) -> checkpoint.Best:
    """Load the weights of the run's best or last checkpoint, the last where there are no best ones; tell which.

    The score of the last ones is NaN.
    """
    best = checkpoint.load_best(run_dir, agent, note) if which == "best" else None
    return best or checkpoint.Best(checkpoint.load_last_weights(run_dir, agent, note), math.nan)
