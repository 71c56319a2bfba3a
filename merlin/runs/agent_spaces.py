"""The spaces that a run's agent was built for, kept in config.json: it loads where its task is not installed."""

from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import Space

from merlin.environments.batch import Environment
from merlin.errors import MerlinError
from merlin.networks.serialization import space_from_dict, space_to_dict, spaces_from_dict, spaces_to_dict
from merlin.runs.directory import saved_config
from merlin.training.storage import read_json


class AgentSpaces(NamedTuple):
    """The entries of an observation, flat and in their order, and the actions."""

    spaces: dict[str, Space]
    action_space: Space


def to_config(owner: Environment | AgentSpaces) -> dict[str, Any]:
    """Return what config.json holds of the spaces beside the settings; nothing if there is one that cannot be kept."""
    try:
        kept = {"observation": spaces_to_dict(owner.spaces), "action": space_to_dict(owner.action_space)}
    except MerlinError:
        return {}
    return {"spaces": kept}


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
        return AgentSpaces(spaces_from_dict(kept["observation"]), space_from_dict(kept["action"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise MerlinError(f"{path} must hold the spaces that train wrote, but does not: restore it.") from error
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error


def check_spaces(run_dir: Path, task: str, environment: Environment | AgentSpaces) -> None:
    """Raise a MerlinError if an environment has other spaces than those that the run's agent was built for."""
    kept = read_spaces(run_dir)
    if kept is not None:
        check_same_spaces(kept, environment, task, f"{run_dir} was trained with")


def check_same_spaces(
    kept: Environment | AgentSpaces, environment: Environment | AgentSpaces, task: str, whose: str
) -> None:
    """Raise a MerlinError if an environment has other spaces than those that are kept.

    Args:
        whose: They are, to end "must have the spaces that".
    """
    if what := difference(kept, environment):
        raise MerlinError(
            f"{task} must have the spaces that {whose}, but differs in {what}: "
            "install the version of the task that it was trained on, or give it the same settings."
        )


def difference(kept: Environment | AgentSpaces, environment: Environment | AgentSpaces) -> str:
    """Return in what an environment has other spaces than those that are kept; nothing where that is not known."""
    found, before = to_config(environment).get("spaces"), to_config(kept).get("spaces")
    if found is None or before is None:
        return ""
    if before == found and list(before["observation"]) == list(found["observation"]):
        return ""
    names = {**before["observation"], **found["observation"]}
    changed = [f"entry {name!r}" for name in names if before["observation"].get(name) != found["observation"].get(name)]
    if before["action"] != found["action"]:
        changed.append("the action space")
    return ", ".join(changed) or "the order of entries"
