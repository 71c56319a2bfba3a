"""`merlin analyse`: the paper's analyses of a trained agent, as a report with tables and pictures.

Wayne et al. 2018, arXiv:1803.10760, Figure 3 and Extended Data Figure 3.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from merlin.agents.agent import Predicts
from merlin.analysis import sections
from merlin.analysis.recording import gather
from merlin.analysis.sections import Section, left_out
from merlin.errors import MerlinError, obstacle, option
from merlin.precision import restoring_torch
from merlin.runs.build import build_environment, describe_weights, load_agent_and_weights
from merlin.runs.directory import load_config
from merlin.training.evaluation import HELD_OUT_SEED


@restoring_torch()
def analyse(
    run_dir: Path,
    out: Path | None = None,
    *,
    episodes: int = 256,
    seed: int = 0,
    which: str = "best",
    device: str | None = None,
    note: Callable[[str], object] = lambda sentence: None,
) -> Path:
    """Analyse a run's agent on episodes that training never began with, and return the report, a Markdown file.

    Beside it lie the pictures and `analysis.json`, which holds every number.

    Args:
        out: Where they go; RUN_DIR/analysis unless told.
        episodes: Played for each figure; half of them train the probes that decode features, the others test them.
        which: The run's best weights or its last.
        device: auto, cpu or cuda; the run's unless told.
        note: Is told of progress.

    Raises:
        MerlinError: Not a run, or a directory that cannot be written.
    """
    run_dir = Path(run_dir)
    out = run_dir / "analysis" if out is None else Path(out)
    config = load_config(run_dir)
    config = dataclasses.replace(config, device=config.device if device is None else device)
    config.training.set_torch()
    _make_writable(out)
    seed += config.seed + HELD_OUT_SEED
    count = max(4, min(config.num_envs, episodes))  # some to train probes, some to validate, some to test them
    with build_environment(config, count) as environment:
        count = environment.num_envs
        agent, weights = load_agent_and_weights(run_dir, environment, config, which)
        note("playing")
        played = gather(agent, environment, episodes=max(episodes, count), seed=seed)
        fewer = f" of the {episodes:,} asked for" if played.num_complete < episodes else ""
        head = (
            f"{played.num_complete} held-out episodes{fewer} in {count} environments, {len(played.reward):,} steps of "
            f"each{', which is the most' if fewer else ''}, sampled actions, {describe_weights(weights)}."
        )
        note("which memory the score needs")
        found = [sections.memory_section(agent, environment, episodes, seed)]
        note("decoding")
        found.append(sections.arrivals_section(played, out))
        found.append(sections.decoding_section(played, out))
        found.append(sections.returns_section(played, config.model.discount_factor, out))
        found.append(sections.reads_section(played, out))
        note("saliency")
        found.append(sections.saliency_section(agent, environment, seed, out))
    if isinstance(agent, Predicts):
        note("expectations")
        config = dataclasses.replace(config, vectorization="sync")
        with build_environment(config, num_envs=1) as environment:
            found.append(sections.expectations_section(agent, environment, seed, out))
    else:
        found.append(left_out("What it expects", "the agent does not predict what it will see"))
    return _write(out, [f"# {config.agent} on {config.task}", head], found)


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".analysis.json").write_text("", encoding="utf-8")
    except OSError as error:
        raise MerlinError(
            f"{out} must be a directory to write into, but {obstacle(error)}: choose another {option('out')}."
        ) from error


def _write(out: Path, head: list[str], found: list[Section]) -> Path:
    """Write the report and its numbers, and return the report's path."""
    path, temporary = out / "analysis.md", out / ".analysis.json"
    numbers = {name: value for section in found for name, value in section.numbers.items()}
    path.write_text("\n\n".join(head + [x for section in found for x in _markdown(section)]) + "\n", encoding="utf-8")
    temporary.write_text(json.dumps(_plain(numbers), indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / "analysis.json")
    return path


def _markdown(section: Section) -> list[str]:
    """Return a section's paragraphs."""
    paragraphs = [f"## {section.title}", section.text]
    if section.rows:
        lines = [f"| {' | '.join(section.head)} |", "|" + "---|" * len(section.head)]
        paragraphs.append("\n".join(lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in section.rows]))
    return paragraphs + [f"![{caption}]({file})" for caption, file in section.pictures.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _plain(value: Any) -> Any:
    """Return numbers as JSON holds them, NaN as null."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
