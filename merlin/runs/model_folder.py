"""A trained agent as one folder to hand on: weights, configuration, and a model card that says what it scores.

FOLDER/README.md           the card: scores, the command that makes such an agent, how to load it
       config.json         the run's configuration and spaces
       model.safetensors   the weights, with their checksum

Whatever reads a run directory reads it, except that training cannot go on in it.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merlin.agents import Agent
from merlin.environments.config import EnvironmentConfig
from merlin.environments.passed import is_of_this_process
from merlin.errors import MerlinError, counted, obstacle, option
from merlin.plugins import short_name
from merlin.runs.agent_spaces import to_config
from merlin.runs.directory import changes, may_change, names_modules, write_config
from merlin.runs.presets import RunConfig, preset
from merlin.runs.settings import to_dict
from merlin.training import checkpoint
from merlin.training.checkpoint import Best
from merlin.training.storage import read_json, replace_file
from merlin.training.weights import write_weights
from merlin.version import __version__


def save_folder(
    agent: Agent, config: RunConfig, folder: Path, best: Best | None, scores: Mapping[str, Any] | None
) -> Path:
    """Write a trained agent as a folder, and return that.

    Args:
        best: Which weights they are; None where nothing is known of them.
        scores: Of held-out episodes, for the card; None where none were played.

    Raises:
        MerlinError: It cannot be written.
    """
    best = best or Best(0, math.nan)
    metadata = {name: str(x) for name, x in best._asdict().items() if x is not None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder, to_config(agent))
        replace_file(folder / checkpoint.MODEL, lambda file: write_weights(file, agent.state_dict(), metadata))
        card = write_card(agent, config, best, scores)
        replace_file(folder / "README.md", lambda file: file.write(card.encode()))
    except OSError as error:
        raise MerlinError(
            f"{folder} must be writable, but {obstacle(error)}: choose another {option('out')}."
        ) from error
    return folder


def check_folder(config: RunConfig, folder: Path) -> None:
    """Refuse a folder in which there is anything but what an agent of the same run, however long, was written as."""
    held = None
    if not (folder / checkpoint.MODEL).exists():
        names = {"config.json": "a run", "README.md": "a README.md that is not an agent's"}
        held = next((what for name, what in names.items() if (folder / name).exists()), None)
    else:
        try:
            before = read_json(folder / "config.json")
            differing = [path for path, *_ in changes(config, before) if not may_change(path)]
            if differing or "agent" not in before:
                held = f"an agent of another run, which differs in {', '.join(differing[:3]) or 'its configuration'}"
        except (OSError, ValueError, TypeError, AttributeError):
            held = f"a {checkpoint.MODEL} of which nothing tells that it is this run's"
    if held is not None:
        raise MerlinError(f"{folder} holds {held}: choose another {option('out')} for the agent's folder.")


def write_card(agent: Agent, config: RunConfig, best: Best, scores: Mapping[str, Any] | None) -> str:
    """Return the model card, with a head that model hubs read."""
    name = f"{config.agent} on {config.task}"
    lines = [
        "---",
        "library_name: merlin-agents",
        f"tags: [reinforcement-learning, {short_name(config.task)}, {short_name(config.agent)}]",
        "---",
        "",
        f"# {name}",
        "",
        f"{sum(x.numel() for x in agent.parameters()):,} parameters, trained for {best.step:,} environment steps with "
        f"seed {config.seed}.",
        "",
        "## Score",
        "",
    ]
    if scores is None:
        lines.append("No held-out episodes were played when this was written.")
    else:
        lines += ["| held-out episodes of the task | |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in scores.items()]
    if math.isfinite(best.score):
        of = f" of {counted(best.episodes, 'episode')}" if best.episodes else ""
        kind = "mean return, in self-play points" if best.chosen_by == "evaluation" else "mean return"
        score = f"{best.score:.3f}, the {kind}{of} there"
        lines += ["", f"These weights were chosen in the run, by their score of {score}."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import merlin",
        "",
        'agent = merlin.load("FOLDER")  # this folder',
        "agent.reset()",
        "action = agent.act(observation)  # then agent.act(observation, reward)",
        "```",
        "",
        "```bash",
        "merlin evaluate FOLDER"
        + (" --import-from DIR  # where the modules lie, which Python must find too" if names_modules(config) else ""),
        "```",
        "",
        "## Training",
        "",
        *_training(config, best.step),
        "",
    ]
    return "\n".join(lines)


def _training(config: RunConfig, step: int) -> list[str]:
    """Return the lines of the card that say how to train such an agent."""
    early = [f"These weights are those of {step:,} steps of the {config.steps:,}.", ""] if step < config.steps else []
    if is_of_this_process(config.task):
        code = f"```python\nimport merlin\n\nenv = ...  # what was passed then, {config.task}\n{call_of(config)}\n```"
        return [*early, f"With merlin-agents {__version__} such an agent is trained from Python:", "", code]
    how = f"With merlin-agents {__version__} such an agent is trained by"
    return [*early, how, "", "```bash", command_of(config), "```"]


def command_of(config: RunConfig) -> str:
    """Return the command that trains with this configuration, by what differs from its preset."""
    words = ["merlin", "train", config.task, "--agent", config.agent]
    if config.env_kwargs:
        words += ["--env-kwargs", json.dumps(config.env_kwargs)]
    words += [word for wrapper in config.environment.wrappers for word in ("--wrap", wrapper)]
    if config.started_from is not None:
        words += ["--from", config.started_from, "--from-checkpoint", config.started_from_checkpoint]
    if (found := _differences(config)) is None:
        return shlex.join([*words, "--steps", str(config.steps), "--seed", str(config.seed)])
    words += ["--preset", config.preset] if config.preset else []
    flags = ("steps", "seed", "num_envs", "vectorization")
    words += [word for flag in flags for word in (f"--{flag.replace('_', '-')}", str(getattr(config, flag)))]
    return shlex.join([*words, "--set", *(f"{path}={_text(value)}" for path, value in found)] if found else words)


def call_of(config: RunConfig) -> str:
    """Return what trains so from Python, of an environment that has no name to be called by on a command line."""
    given = {"agent": config.agent, "preset": config.preset or None, "steps": config.steps, "seed": config.seed}
    given |= {"num_envs": config.num_envs, "env_kwargs": config.env_kwargs or None}
    given |= {"started_from": config.started_from, "set": dict(_differences(config) or ()) or None}
    arguments = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return f"merlin.train(env, {', '.join(arguments)})"


def _differences(config: RunConfig) -> list[tuple[str, Any]] | None:
    """Return the settings that are not the preset's, in order; None where it cannot be told what those are."""
    default = EnvironmentConfig(wrappers=config.environment.wrappers)
    try:
        name = config.preset or None
        before = preset(config.agent, config.task, config.env_kwargs, name=name, environment=config.environment)
    except MerlinError:  # of a task that is not installed, or a preset of another version
        return None
    found = changes(config, to_dict(replace(before, environment=default)))
    groups = ("model.", "training.", "curriculum.", "environment.")
    kinds = ((f"environment.kinds.{entry}", kind) for entry, kind in config.environment.kinds.items())
    return sorted([*((path, now) for path, now, _ in found if path.startswith(groups)), *kinds])


def _text(value: Any) -> str:
    """Return a setting as `--set` reads it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def _shown(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
