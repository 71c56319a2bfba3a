"""The spaces that a run's agent was built for, kept in config.json: it loads where its task is not installed."""

from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import Space

from merlin.agents import Agent
from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.networks.serialization import space_from_dict, space_to_dict, spaces_from_dict, spaces_to_dict
from merlin.runs.directory import saved_config
from merlin.training.storage import read_json


class AgentSpaces(NamedTuple):
    """The entries of an observation, flat and in their order, and the actions."""

    spaces: dict[str, Space]
    action_space: Space
    gives_masks: bool | None = None
    """Whether masks of actions come with observations; None where that is not known."""


Owner = Environment | Agent | AgentSpaces


def to_config(owner: Owner) -> dict[str, Any]:
    """Return what config.json holds of the spaces beside the settings; nothing if there is one that cannot be kept."""
    try:
        kept = {"observation": spaces_to_dict(owner.spaces), "action": space_to_dict(owner.action_space)}
    except MerlinError:
        return {}
    return {"spaces": kept if owner.gives_masks is None else kept | {"action_masks": owner.gives_masks}}


def spaces_of(environment: Environment) -> AgentSpaces:
    """Return the spaces of an environment."""
    return AgentSpaces(environment.spaces, environment.action_space, environment.gives_masks)


def read_spaces(run_dir: Path) -> AgentSpaces | None:
    """Return the spaces of a run; None of one that kept none, as those of version 0.2.0.

    Raises:
        MerlinError: They were changed.
    """
    path = run_dir / "config.json"
    try:
        values = read_json(path)
    except (OSError, ValueError):
        values = saved_config(run_dir)
    kept = values.get("spaces") if isinstance(values, dict) else None
    if kept is None:
        return None
    try:
        observation, action = spaces_from_dict(kept["observation"]), space_from_dict(kept["action"])
        return AgentSpaces(observation, action, kept.get("action_masks"))
    except (KeyError, TypeError, AttributeError) as error:
        raise MerlinError(f"{path} must hold the spaces that train wrote, but does not: restore it.") from error
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error


def check_spaces(run_dir: Path, task: str, environment: Owner) -> None:
    """Raise a MerlinError if an environment has other spaces than those that the run's agent was built for."""
    kept = read_spaces(run_dir)
    if kept is not None:
        check_same_spaces(kept, environment, task, f"{run_dir} was trained with")


def check_same_spaces(kept: Owner, environment: Owner, task: str, whose: str) -> None:
    """Raise a MerlinError if an environment has other spaces than those that are kept.

    Args:
        whose: They are, to end "must have the spaces that".
    """
    if what := difference(kept, environment):
        raise MerlinError(
            f"{task} must have the spaces that {whose}, but differs in {what}: "
            "install the version of the task that it was trained on, or give it the same settings."
        )


def difference(kept: Owner, environment: Owner) -> str:
    """Return in what an environment has other spaces than those that are kept; nothing where that is not known."""
    found, before = to_config(environment).get("spaces"), to_config(kept).get("spaces")
    if found is None or before is None:
        return ""
    if all(before[x] == found[x] and list(before[x]) == list(found[x]) for x in ("observation", "action")):
        return ""
    names = {**before["observation"], **found["observation"]}
    changed = [f"entry {name!r}" for name in names if before["observation"].get(name) != found["observation"].get(name)]
    if before["action"] != found["action"]:
        changed.append("the action space")
    return ", ".join(changed) or "the order of entries"
