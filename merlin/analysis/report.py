"""`merlin analyse`: the paper's analyses of a trained agent, as a report with tables and pictures.

Wayne et al. 2018, arXiv:1803.10760, Figure 3 and Extended Data Figure 3.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merlin.agents.memory_ablation import WAYS, Tampered, find_memory
from merlin.agents.merlin import Merlin
from merlin.analysis.figures import MOST_COLUMNS, draw_observations, plot_lines, plot_maps
from merlin.analysis.metrics import decode_goal, predict_returns, steps_to_goal, where_keys_read
from merlin.analysis.predictions import Rows, expectations
from merlin.analysis.recording import gather
from merlin.analysis.saliency import saliency
from merlin.errors import MerlinError
from merlin.networks.spaces import ROOT, kind
from merlin.runs.run import build_environment, existing_checkpoint, load_agent, load_config
from merlin.training.evaluation import HELD_OUT_SEED, evaluate
from merlin.viewer.observations import is_minigrid

FEWEST = 5  # of which a mean is drawn


def analyse(
    run_dir: Path,
    out: Path | None = None,
    *,
    episodes: int = 256,
    seed: int = 0,
    which: str = "best",
    note: Callable[[str], object] = lambda sentence: None,
) -> Path:
    """Analyse a run's agent on episodes that training never began with, and return the report, a Markdown file.

    Beside it lie the pictures and `analysis.json`, which holds every number.

    Args:
        out: Where they go; RUN_DIR/analysis unless told.
        episodes: Played for each figure; half of them train what decodes from features, the others are asked.
        which: The run's best weights or its last.
        note: Is told of progress.

    Raises:
        MerlinError: Not a run, or a directory that cannot be written.
    """
    run_dir = Path(run_dir)
    out = run_dir / "analysis" if out is None else Path(out)
    config, which = load_config(run_dir), existing_checkpoint(run_dir, which)
    config.training.set_torch()
    report = _Report(out, f"{config.agent} on {config.task}")
    seed += config.seed + HELD_OUT_SEED
    count = max(4, min(config.num_envs, episodes))  # some to fit to, some to choose by, some to ask
    with build_environment(config, count) as environment:
        agent = load_agent(run_dir, environment, config, which)
        note("playing")
        played = gather(agent, environment, episodes=max(episodes, count), seed=seed)
        fewer = f" of the {episodes:,} asked for" if played.num_complete < episodes else ""
        report.lines.append(
            f"{played.num_complete} held-out episodes{fewer} in {count} environments, {len(played.reward):,} steps of "
            f"each{', which is the most' if fewer else ''}, sampled actions, {which} checkpoint."
        )
        note("which memory the score needs")
        _memory_section(report, agent, environment, episodes, seed)
        note("decoding")
        _arrivals_section(report, played)
        _decoding_section(report, played)
        _returns_section(report, played, config.model.discount_factor)
        _reads_section(report, played)
        note("saliency")
        _saliency_section(report, agent, environment, seed)
    if isinstance(agent, Merlin):
        note("expectations")
        config = dataclasses.replace(config, vectorization="sync")
        with build_environment(config, num_envs=1) as environment:
            _expectations_section(report, agent, environment, seed)
    else:
        report.leave_out("What it expects", "only MERLIN predicts what it will see")
    return report.write()


class _Report:
    """Markdown, pictures and numbers, written together."""

    def __init__(self, out: Path, title: str) -> None:
        self.out, self.lines, self.numbers = out, [f"# {title}"], {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / ".analysis.json").write_text("", encoding="utf-8")
        except OSError as error:
            raise MerlinError(f"{out} must be a directory to write into, but {error}: choose another --out.") from error

    def add(
        self,
        title: str,
        sentence: str,
        head: Sequence[str] = (),
        rows: Sequence[Sequence[Any]] = (),
        picture: str | None = None,
        **numbers: Any,
    ) -> None:
        self.lines += [f"## {title}", sentence]
        if rows:
            cells = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
            self.lines.append("\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *cells]))
        if picture is not None:
            self.lines.append(f"![{title}]({picture})")
        self.numbers |= numbers

    def leave_out(self, title: str, why: str) -> None:
        self.lines += [f"## {title}", f"Left out: {why}."]

    def write(self) -> Path:
        path, numbers = self.out / "analysis.md", self.out / ".analysis.json"
        path.write_text("\n\n".join(self.lines) + "\n", encoding="utf-8")
        numbers.write_text(json.dumps(_plain(self.numbers), indent=1) + "\n", encoding="utf-8")
        numbers.replace(self.out / "analysis.json")
        return path


def _memory_section(report: _Report, agent, environment, episodes: int, seed: int) -> None:
    title = "What the memory is worth"
    if find_memory(agent.initial_state(1)) is None:
        report.leave_out(title, "the agent has no memory but its recurrent state")
        return
    rows, numbers = [], {}
    for way in ("own", *WAYS):
        player = agent if way == "own" else Tampered(agent, way)
        result = evaluate(player, environment, episodes=episodes, seed=seed, skip=1 if way == "frozen" else 0)
        success = result.get("success_rate", math.nan)
        numbers[way] = {"episode_return_mean": result["episode_return_mean"], "success_rate": success}
        rows.append((way, WAYS.get(way, "as the agent wrote it"), result["episode_return_mean"], success))
    for name, score in environment.scores.items():
        rows.append((f"*{name} play*", "", score, math.nan))
    report.add(
        title,
        f"{episodes} held-out episodes each; frozen, those after each environment's first.",
        ("memory", "what the agent reads", "return", "success"),
        rows,
        memory=numbers,
    )


def _arrivals_section(report: _Report, played) -> None:
    title = "Steps to the goal"
    found = steps_to_goal(played)
    if found is None or not bool((found.count >= FEWEST).any()):
        why = "the task has no sub-episodes"
        if found is not None:
            why = f"the goal was reached fewer than {FEWEST} times in episodes that came to their end"
        report.leave_out(title, why)
        return
    numbers = torch.arange(1, len(found.count) + 1)
    known = found.count >= FEWEST
    lines = {"all arrivals": (numbers[known].numpy(), found.mean_steps[known].numpy())}
    same = found.mean_steps_of_same
    if found.same_episodes >= FEWEST:
        lines[f"the same {found.same_episodes} episodes"] = (numbers[: len(same)].numpy(), same.numpy())
    plot_lines(lines, report.out / "steps_to_goal.png", x="sub-episode", y="steps", title="Steps to the goal")
    rows = [
        (int(n), int(c), float(m) if c >= FEWEST else math.nan, float(same[i]) if i < len(same) else math.nan)
        for i, (n, c, m) in enumerate(zip(numbers, found.count, found.mean_steps, strict=True))
    ]
    report.add(
        title,
        "From the place where a sub-episode begins. Who is slow arrives less often in the same time; the last column "
        f"is of the {found.same_episodes} episodes that arrive in each of these sub-episodes.",
        ("sub-episode", "arrivals", "steps", "steps, same episodes"), rows, "steps_to_goal.png",
        steps_to_goal=found._asdict(),
    )  # fmt: skip


def _decoding_section(report: _Report, played) -> None:
    title = "Where the goal is, decoded from frozen features"
    found = decode_goal(played)
    if found is None:
        report.leave_out(title, "the task tells of no goal on a map")
        return
    known = found.count >= FEWEST
    numbers = torch.arange(1, len(known) + 1)
    lines = {name: (numbers[known].numpy(), error[known].numpy()) for name, error in found.error.items()}
    lines["no features"] = (numbers[known].numpy(), found.constant[known].numpy())
    plot_lines(
        lines, report.out / "goal_decoding.png", x="sub-episode", y="error in steps", title=title,
        reference="no features",
    )  # fmt: skip
    names = [*found.error, "no features"]
    columns = [*found.error.values(), found.constant]
    rows = [
        (int(numbers[i]), int(found.count[i]), *(float(x[i]) for x in columns)) for i in range(len(known)) if known[i]
    ]
    report.add(
        title,
        "Manhattan distance from the goal to the cell that is nearest to it in the mean, as far as a softmax of a "
        "linear map of the features can tell, in episodes that it was not fitted to. Of these "
        f"{found.unseen:.0%} of the steps have a goal where none was in the others, which no map can name: more "
        "episodes lower that.",
        ("sub-episode", "steps asked", *names), rows, "goal_decoding.png",
        goal_decoding={"error": found.error, "constant": found.constant, "count": found.count, "unseen": found.unseen},
    )  # fmt: skip


def _returns_section(report: _Report, played, discount: float) -> None:
    title = "The return, predicted"
    found = predict_returns(played, discount)
    if found is None:
        report.leave_out(title, "no episode ended")
        return
    steps = np.arange(len(found.value))
    lines = {"V": (steps, found.value.numpy()), "return": (steps, found.returns.numpy())}
    plot_lines(
        lines, report.out / "returns.png", x="step", y="discounted return", from_zero=False,
        title="Along one episode: what V says and what was earned from there on",
    )  # fmt: skip
    known = (found.count >= FEWEST).numpy()
    at = np.arange(len(known))[known]
    if known.any():
        errors = found.error_before_reward.numpy()[known]
        plot_lines(
            {"|return − V|": (at, errors)}, report.out / "return_error.png", x="steps before a reward", y="mean error",
            title="Error before what is rewarded",
        )  # fmt: skip
    chosen = [int(d) for d in (0, 1, 2, 5, 10, 20, 29) if d in at]
    what = f"V explains {found.explained:.0%} of the variance of the discounted return."
    if math.isnan(found.explained):
        what = "Every discounted return was the same."
    elif found.explained < 0:
        what = "V says less of the discounted return than its mean would."
    if found.is_cut:
        what += " Where time ended an episode, the V of its last step stands for what would have followed."
    report.add(
        title,
        what,
        ("steps before a reward", "mean error", "times"),
        [(d, float(found.error_before_reward[d]), int(found.count[d])) for d in chosen],
        "returns.png",
        returns=found._asdict(),
    )
    if known.any():
        report.lines.append("![Error before a reward](return_error.png)")


def _reads_section(report: _Report, played) -> None:
    title = "Where each key reads"
    found = where_keys_read(played)
    if found is None:
        why = "the task tells of no map" if played.has_memory else "the agent has no memory"
        report.leave_out(title, why)
        return
    plot_maps(
        [(place.name, place.on_map.numpy()) for place in found], report.out / "reads.png",
        "Where what was read had been written, in one episode",
    )  # fmt: skip
    report.add(
        title,
        "The cell that the agent was in when it wrote what is read, weighted by how much of it is read; distances in "
        "steps, means over all steps. `by chance` reads everything alike.",
        ("key", "to the goal", "to the agent", "steps ago", "largest weight"),
        [(place.name, place.to_goal, place.to_agent, place.age, place.largest) for place in found],
        "reads.png",
        reads=[place._asdict() for place in found],
    )


def _saliency_section(report: _Report, agent, environment, seed: int) -> None:
    found = saliency(agent, environment, seed=seed)
    # MiniGrid's views count columns first
    maps = [
        (name, (x.T if is_minigrid(environment.spaces[name]) else x).numpy())
        for name, x in found.items()
        if x.ndim == 2
    ]
    if maps:
        plot_maps(maps, report.out / "saliency.png", "Change of V when a part is another environment's")
    report.add(
        "What the value looks at",
        "Mean change of V when a part of the observation is what another environment shows there, in 32 steps of each: "
        "of grids and pictures the whole map's mean, the picture shows it part by part.",
        ("entry", "mean change of V"),
        [(_named(name), float(x.mean())) for name, x in found.items()],
        "saliency.png" if maps else None,
        saliency=found,
    )


def _expectations_section(report: _Report, agent: Merlin, environment, seed: int) -> None:
    found = expectations(agent, environment, seed=seed)
    shown = _spread(len(found.seen))
    rows = [
        (name, [observations[i] for i in shown])
        for name, observations in (("seen", found.seen), ("expected", found.expected), ("inferred", found.inferred))
    ]
    heads = [f"step {i + 1}" for i in shown]
    draw_observations(
        rows, heads, environment.spaces, report.out / "expected.png",
        "Decoded from the prior, before it looked, and from the posterior",
    )  # fmt: skip
    held = [found.written[i] for i in _spread(len(found.written))]
    rows = [("remembered", [found.remembered[i] for i in _spread(len(found.written))])]
    draw_observations(
        [*rows, ("seen then", [found.seen[step] for step in held])], [f"step {step + 1}" for step in held],
        environment.spaces, report.out / "remembered.png", "Decoded from the memory's rows after the last step",
    )  # fmt: skip
    ahead = found.seen[found.imagined_from + 1 : found.imagined_from + 1 + len(found.imagined)]
    draw_observations(
        [("imagined", found.imagined), ("what came", ahead)],
        [f"+{i + 1}" for i in range(len(found.imagined))], environment.spaces, report.out / "imagined.png",
        f"Imagined from step {found.imagined_from + 1} on, without looking",
    )  # fmt: skip
    agreement = {
        name: _agreement(environment.spaces, found.seen, observations)
        for name, observations in (("prior", found.expected), ("posterior", found.inferred))
    }
    report.add(
        "What it expects, infers, remembers and imagines",
        f"Of the first {len(found.seen)} steps of one episode. Expected is decoded from the prior's mean, before the "
        "observation was seen; inferred from the posterior's. Imagination samples the prior and the policy and sees "
        "nothing.",
        ("decoded from", *agreement["prior"]),
        [(name, *shares.values()) for name, shares in agreement.items()],
        "expected.png",
        expectations=agreement,
    )
    report.lines += ["![Remembered](remembered.png)", "![Imagined](imagined.png)"]


def _spread(count: int) -> list[int]:
    """Return as many of `count` indices as are drawn side by side, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(MOST_COLUMNS, count)).round().astype(int)).tolist()


def _agreement(spaces: dict, seen: Rows, decoded: Rows) -> dict[str, float]:
    """Return for each entry the share of it that is decoded right, or of numbers and pixels the mean error."""
    found = {}
    for name, space in spaces.items():
        pairs = [(x[name].astype(float), y[name].astype(float)) for x, y in zip(seen, decoded, strict=True)]
        is_measured = kind(space) in ("image", "vector")
        what = "mean error" if is_measured else "share right"
        differences = [np.abs(x - y) if is_measured else x == y for x, y in pairs]
        found[f"{_named(name)}: {what}"] = float(np.mean([x.mean() for x in differences]))
    return found


def _named(entry: str) -> str:
    return "observation" if entry == ROOT else entry


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
