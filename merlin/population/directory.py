"""The directory of a population: its files, and where its agents' own are."""

import json
from pathlib import Path
from typing import Any, TextIO

from merlin.agents import find_agent
from merlin.errors import MerlinError
from merlin.population.population import PopulationConfig
from merlin.runs.presets import RunConfig
from merlin.runs.settings import from_dict, to_dict
from merlin.training.storage import parse_json, read_json, replace_file

CONFIG, JOURNAL, PICTURE, AGENTS = "population.json", "population.jsonl", "population.png", "agents"


def agent_dir(run_dir: Path, index: int) -> Path:
    """Return the run directory of an agent."""
    return run_dir / AGENTS / f"{index:02d}"


def load_config(run_dir: Path) -> tuple[RunConfig, PopulationConfig]:
    """Return the configuration of a population's directory.

    Raises:
        MerlinError: It holds none, or it was changed.
    """
    path = Path(run_dir) / CONFIG
    try:
        values = read_json(path)
        run, population = dict(values["run"]), values["population"]
        classes = {"model": find_agent(run["agent"]).config_class}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MerlinError(
            f"A population's directory holds a {CONFIG}, but {run_dir} has none that can be read: give one that "
            "`merlin population` made."
        ) from error
    return from_dict(RunConfig, run, classes), from_dict(PopulationConfig, population)


def write_population(config: RunConfig, population: PopulationConfig, run_dir: Path) -> None:
    """Write the configuration of a population's directory."""
    text = json.dumps(whole_config(config, population), indent=2) + "\n"
    replace_file(run_dir / CONFIG, lambda file: file.write(text.encode()))


def whole_config(config: RunConfig, population: PopulationConfig) -> dict[str, Any]:
    """Return the whole configuration, as files and trackers have it."""
    return {"run": to_dict(config), "population": to_dict(population)}


def open_journal(path: Path, env_steps: int) -> TextIO:
    """Return the journal for more rows, without those beyond the steps that the run goes on from."""
    if path.exists():
        kept = [line for line in path.read_bytes().splitlines(keepends=True) if _is_kept(line, env_steps)]
        replace_file(path, lambda file: file.write(b"".join(kept)))
    return open(path, "a", encoding="utf-8")


def _is_kept(line: bytes, env_steps: int) -> bool:
    try:
        return line.endswith(b"\n") and parse_json(line)["env_steps"] <= env_steps
    except (ValueError, KeyError, TypeError):
        return False
