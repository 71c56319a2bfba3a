"""A run directory: its configuration, and which process writes to it.

RUN_DIR/config.json           the whole configuration; enough to rebuild the agent
        metrics.jsonl         one object per report
        checkpoints/          the last few and the best
        replay/               what was experienced, of agents that learn from it again
        learning_curve.png    written at the end
        .lock                 names the process that trains in it, or did last
"""

import itertools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from merlin.agents import find_agent
from merlin.errors import MerlinError, launched, obstacle, option, tell
from merlin.plugins import short_name
from merlin.runs.lock import alone_in
from merlin.runs.metrics import NAME as METRICS
from merlin.runs.presets import RunConfig
from merlin.runs.settings import from_dict, to_dict
from merlin.training import checkpoint
from merlin.training.storage import parse_json, read_json, replace_file
from merlin.version import __version__

CURVE = "learning_curve.png"
MAY_CHANGE = ("steps", "device", "vectorization", "preset", "preset_reason", "training", "environment.step_seconds")
"""Settings that a run may be resumed with other values of: they are not what it is, or are what is to change."""


def default_run_dir(config: RunConfig) -> Path:
    """Return where a run's files go unless told: runs/TASK-AGENT-seedS-DATE-TIME."""
    names = f"{short_name(config.task)}-{short_name(config.agent)}-seed{config.seed}"
    first = Path("runs") / f"{names}-{time.strftime('%Y%m%d-%H%M%S')}"
    again = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))  # begun in the same second
    return next(path for path in itertools.chain([first], again) if not path.exists())


def load_config(run_dir: str | Path, note: Callable[[str], object] = tell) -> RunConfig:
    """Return the configuration of a run directory.

    Where it is damaged, that which the last checkpoint was saved with. A device that this machine lacks is no part of
    what a run is: `auto` takes its place.

    Args:
        note: Is told of either.

    Raises:
        MerlinError: There is none, it was changed, or its agent's module cannot be imported.
    """
    run_dir = Path(run_dir)
    path = run_dir / "config.json"
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        values = saved_config(run_dir)
        if values is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise no_run(run_dir) from error
        if values is None:
            raise MerlinError(
                f"{path} must hold a run's configuration, but cannot be read: restore it or train anew."
            ) from error
        note(f"{path} cannot be read: the configuration that the last checkpoint was saved with is taken")
    name = values.get("agent") if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise MerlinError(f"{path} must name the agent that was trained, but names {name!r}: restore it.")
    for record in ("spaces", "version"):  # which are no settings: see merlin.runs.agent_spaces
        values.pop(record, None)
    # without this group it is of version 0.2.0 or before, whose weights are of the pictures of then
    values.setdefault("environment", {"pictures_by_bounds": True})
    try:
        config = from_dict(RunConfig, values, {"model": find_agent(name).config_class})
    except MerlinError as error:
        raise MerlinError(f"{path}: {error}") from error
    tell_changes(config, run_dir, note)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        note(f"the run was made on {config.device}, which this machine lacks: it goes on without")
        config = replace(config, device="auto")
    return config


def no_run(run_dir: Path) -> MerlinError:
    """Return what is wrong with a directory that is none of a run, and which to give."""
    whole = next((path for path in run_dir.parents if (path / "config.json").exists() and checkpoint.steps(path)), None)
    which = "one that train made" if whole is None else f"the one that it lies in, {whole}"
    if run_dir.is_file():
        return MerlinError(f"A run directory must be a directory, but {run_dir} is a file: give {which}.")
    if not run_dir.is_dir():
        return MerlinError(f"There is no directory {run_dir}: give one that train made.")
    agents = sorted(run_dir.glob("agents/*/config.json"))  # of a population
    runs = sorted(run_dir.glob("*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if agents:
        which = f"that of one of its agents, such as {agents[0].parent}, or go on with all of them by "
        which += launched(f"population --resume {shlex.quote(str(run_dir))}")
    elif runs:
        which = f"one that is in it, such as {', '.join(str(path.parent) for path in runs[:3])}"
    return MerlinError(f"A run directory holds a config.json, but {run_dir} has none: give {which}.")


def names_modules(config: RunConfig) -> bool:
    """Return whether a run names something as module:Name, whose module may lie where `--import-from` says."""
    named = (config.task, config.agent, getattr(config.model, "memory", ""), *config.environment.wrappers)
    return any(":" in str(part) for part in named)


def saved_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration that the last checkpoint was saved with, as JSON has it; None where none is known."""
    try:
        values = parse_json(checkpoint.read_about(run_dir)["config"].encode())
    except (KeyError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def changes(config: RunConfig, saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that differ from saved ones: path, value now, value then. What either lacks is left out."""
    return _differences(to_dict(config), saved, "")


def _differences(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name in now.keys() & then.keys():
        if isinstance(now[name], dict) and isinstance(then[name], dict) and prefix + name != "env_kwargs":
            yield from _differences(now[name], then[name], f"{prefix}{name}.")
        elif now[name] != then[name]:
            yield prefix + name, now[name], then[name]


def tell_changes(config: RunConfig, run_dir: Path, note: Callable[[str], object], but: str = "") -> None:
    """Tell in a sentence which settings are not those that the last checkpoint was saved with, if there are any.

    Args:
        but: One that is not told of, as it is meant to be another.
    """
    changed = [
        f"{path} {then!r} rather than {now!r}"
        for path, now, then in changes(config, saved_config(run_dir) or {})
        if path not in ("device", "preset", but)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        note(f"{run_dir} was trained with {', '.join(changed[:3])}{more}")


def may_change(path: str) -> bool:
    """Return whether a run may be resumed with another value of a setting, by its dotted name."""
    return f"{path}.".startswith(tuple(f"{name}." for name in MAY_CHANGE))


def check_unchanged(config: RunConfig, run_dir: Path) -> None:
    """Refuse a configuration that is not that of the run's last checkpoint, but for what may change.

    Raises:
        MerlinError: It names the setting.
    """
    for path, now, then in changes(config, saved_config(run_dir) or {}):
        if not may_change(path):
            raise MerlinError(
                f"A run goes on as it began, so {path} must be {then!r}, but is {now!r}: resume without that "
                f"change, or start a new run with the weights of this one by {option('from', run_dir)}."
            )


def unwritable(run_dir: Path, error: OSError) -> MerlinError:
    """Return what to do about a run directory that cannot be written."""
    return MerlinError(
        f"The run directory {run_dir} must be writable, but {obstacle(error)}: choose another {option('run-dir')}."
    )


@contextmanager
def claimed(run_dir: Path, resume: bool, note: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Make the run directory and keep other processes from it; yield what tells whether it is still this one's.

    What fails before anything was reported or saved leaves nothing behind.

    Raises:
        MerlinError: It holds files of a run and is not to be resumed, another process trains in it, or it cannot be
            written.
    """
    was_there = run_dir.exists()
    if not resume and not _holds_run(run_dir):
        check_free(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(run_dir, error) from error
    with alone_in(run_dir, note) as is_ours:
        if not resume and _holds_run(run_dir):
            raise MerlinError(
                f"{run_dir} holds a run already: continue it with {option('resume', run_dir)}, or choose another "
                f"{option('run-dir')}."
            )
        checkpoint.tidy(run_dir)
        is_new = not _holds_run(run_dir)
        try:
            yield lambda: is_ours() and (run_dir / "config.json").exists()
        except BaseException:
            if is_new and not _has_learnt(run_dir):
                for name in ("config.json", METRICS):
                    (run_dir / name).unlink(missing_ok=True)
            raise
        finally:
            if not _holds_run(run_dir):
                with suppress(OSError):
                    (run_dir / ".lock").unlink()
                    if not was_there:
                        run_dir.rmdir()


def check_free(run_dir: Path) -> None:
    """Refuse a directory with files of a run that a new one would write over."""
    for name in (METRICS, CURVE):
        if (path := run_dir / name).exists() and path.stat().st_size:
            raise MerlinError(
                f"A new run writes over no other's files, but {path} is there: choose another {option('run-dir')}, or "
                "move it away."
            )


def _holds_run(run_dir: Path) -> bool:
    return (run_dir / "config.json").exists() or bool(checkpoint.steps(run_dir))


def _has_learnt(run_dir: Path) -> bool:
    metrics = run_dir / METRICS
    return (run_dir / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)


def start(config: RunConfig, run_dir: Path) -> None:
    """Make the run directory, which must not hold a run already, and write its configuration."""
    with claimed(run_dir, False, tell):
        write_config(config, run_dir)


def write_config(config: RunConfig, run_dir: Path, spaces: Mapping[str, Any] | None = None) -> None:
    """Write the configuration and the package's version, under another name first: a kill leaves the old or the new.

    Args:
        spaces: What `merlin.runs.agent_spaces.to_config` keeps of the agent's.
    """
    text = json.dumps({**to_dict(config), "version": __version__, **(spaces or {})}, indent=2) + "\n"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_file(run_dir / "config.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise unwritable(run_dir, error) from error
