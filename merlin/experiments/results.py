"""Results of a comparison: scores with intervals, a table, and curves."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from merlin.agents.memory_ablation import ABLATIONS
from merlin.experiments.spec import Comparison, Run, last_metrics
from merlin.runs.learning_curve import draw_curve, draw_references, literal, load, shorten
from merlin.runs.run import build_environment

COLOURS = (
    "#6b3fa0", "#d9822b", "#2b7bba", "#3a8f5c", "#b8336a", "#7a6a58", "#4c4c4c", "#c2a200", "#35b5b0", "#e08fb4",
)  # fmt: skip
COLUMNS = (
    "task", "agent", "seed", "env_steps", "wall_seconds", "episode_return_mean", "success_rate", "episodes",
    "unfinished_episodes", "of_gap", "value_explained", *ABLATIONS,
)  # fmt: skip
CURVE_COLUMNS = ("task", "agent", "seed", "env_steps", "wall_seconds", "episode_return_mean", "success_rate")


def interquartile_mean(scores: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Return the mean of the middle half: a quarter of the scores, rounded down, is left out at either end.

    Agarwal et al. 2021, *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, arXiv:2108.13264.
    """
    cut = scores.shape[-1] // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1))


def bootstrap_interval(
    groups: Sequence[Float[np.ndarray, " n"]], share: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return an interval for the interquartile mean over all groups' scores, by resampling runs within each group.

    The stratified percentile bootstrap of Agarwal et al. 2021, arXiv:2108.13264: groups are tasks.
    """
    rng = np.random.default_rng(seed)
    drawn = [scores[rng.integers(len(scores), size=(resamples, len(scores)))] for scores in groups]
    low, high = np.quantile(interquartile_mean(np.concatenate(drawn, -1)), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def reference_scores(comparison: Comparison, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return the returns of reference policies on each task that knows them, by the task's name."""
    found = {}
    for task in comparison.tasks:
        config = next(run for run in runs if run.task == task).config()
        with build_environment(config, num_envs=1) as environment:
            found[task.name] = environment.scores
    return found


def collect(runs: Sequence[Run], references: dict[str, dict[str, float]]) -> list[dict]:
    """Return a row for each run that was evaluated.

    `of_gap` is the return as a fraction of the way from the best memoryless policy to the oracle, `value_explained` the
    fraction of the return's variance that V explained in training's last report; `zeroed`, `frozen` and `shuffled` are
    returns with such a memory. `unfinished_episodes` were given up, of all of these evaluations, and count in no score.
    """
    rows = []
    for run in runs:
        result = run.result()
        if result is None:
            continue
        last, score, scores = last_metrics(run.run_dir), result["episode_return_mean"], references[run.task.name]
        row = {"task": run.task.name, "agent": run.agent.name, "seed": run.seed, **result}
        row |= {name: last.get(name) for name in ("env_steps", "wall_seconds", "value_explained")}
        if scores.get("oracle", 0.0) > scores.get("memoryless", math.inf):
            row["of_gap"] = (score - scores["memoryless"]) / (scores["oracle"] - scores["memoryless"])
        rows.append({name: row.get(name) for name in COLUMNS})
    return rows


def collect_curves(runs: Sequence[Run]) -> list[dict]:
    """Return a row for each report of each run in which an episode had ended: what `plot_comparison` draws."""
    rows = []
    for run in runs:
        curve = load(run.run_dir) if last_metrics(run.run_dir) else {"episode_return_mean": np.empty(0)}
        for index in np.flatnonzero(np.isfinite(curve["episode_return_mean"])):
            row = {"task": run.task.name, "agent": run.agent.name, "seed": run.seed}
            known = {name: curve[name][index] for name in CURVE_COLUMNS[3:] if name in curve}
            row |= {name: f"{x:.6g}" for name, x in known.items() if np.isfinite(x)}
            rows.append(row | {"env_steps": int(curve["env_steps"][index])})
    return rows


def write_rows(rows: Sequence[dict], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV file, a line for each row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[dict], references: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: of each agent on each task the interquartile mean and its 95% interval over seeds.

    Below it is told of which runs some episodes were given up.
    """
    ablations = [name for name in ABLATIONS if any(row.get(name) is not None for row in rows)]
    head = ("task", "agent", "seeds", "return", "success", "of the gap", "steps", "seconds", *ablations)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    tasks, agents = (list(dict.fromkeys(row[name] for row in rows)) for name in ("task", "agent"))
    for task in tasks:
        for agent in agents:
            mine = [row for row in rows if (row["task"], row["agent"]) == (task, agent)]
            if mine:
                cells = [_interval(mine, name) for name in ("episode_return_mean", "success_rate", "of_gap")]
                for name in ("env_steps", "wall_seconds"):
                    known = [row[name] for row in mine if row[name] is not None]
                    cells.append(f"{np.median(known):,.0f}" if known else "")
                cells += [_interval(mine, name) for name in ablations]
                lines.append(f"| {_cell(task)} | {_cell(agent)} | {len(mine)} | {' | '.join(cells)} |")
        for name, score in references[task].items():
            lines.append(f"| {_cell(task)} | *{name} play* |  | {score:.2f} |  |  |  |  |{'  |' * len(ablations)}")
    if len(tasks) > 1 and all(row["of_gap"] is not None for row in rows):
        for agent in agents:
            groups = [np.array([row["of_gap"] for row in rows if (row["task"], row["agent"]) == (task, agent)])
                      for task in tasks]  # fmt: skip
            if all(map(len, groups)):
                low, high = bootstrap_interval(groups)
                middle = interquartile_mean(np.concatenate(groups))
                count = sum(map(len, groups))
                interval = f"{middle:.2f} ({low:.2f} to {high:.2f})"
                lines.append(f"| all | {_cell(agent)} | {count} |  |  | {interval} |  |  |{'  |' * len(ablations)}")
    unfinished = [
        f"\n{row['task']}, {row['agent']}, seed {row['seed']}: {number:,} held-out episodes were given up unfinished, "
        "and count nowhere above."
        for row in rows
        if (number := row.get("unfinished_episodes"))
    ]
    return "\n".join(lines + unfinished) + "\n"


def legend(rows: Sequence[dict], comparison: Comparison) -> str:
    """Return what the table's figures are, and the settings of tasks, in sentences."""
    most = max(Counter((row["task"], row["agent"]) for row in rows).values())
    middle = "the interquartile mean over seeds, in brackets its 95% bootstrap interval"
    if most < 4:
        middle = "the mean over seeds, in brackets its 95% bootstrap interval, which of so few seeds says little"
    scores = f"Scores are of {comparison.episodes:,} held-out episodes of each run's {comparison.checkpoint} weights"
    sentences = [f"{scores}: {middle}.", "Steps and seconds are medians."] if most > 1 else [f"{scores}."]
    for task in comparison.tasks:
        if task.env_kwargs:
            told = ", ".join(f"{key} {value}" for key, value in task.env_kwargs.items())
            sentences.append(f"{task.name} has {told}.")
    return f"\n{' '.join(sentences)}\n"


def _cell(name: str) -> str:
    """Return a name that stays in its cell."""
    return name.replace("|", "\\|")


def _interval(rows: Sequence[dict], name: str) -> str:
    values = [row[name] for row in rows]
    if any(value is None for value in values):
        return ""
    scores = np.array(values, dtype=float)
    middle = interquartile_mean(scores)
    if len(scores) == 1:
        return f"{middle:.2f}"
    low, high = bootstrap_interval([scores])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def plot_comparison(runs: Sequence[Run], references: dict[str, dict[str, float]], path: Path) -> None:
    """Write a PNG: of each task a row, return against environment steps and against wall seconds, an agent a colour.

    Thick the interquartile mean over seeds, as far as all of them got, shaded its 95% interval, thin the seeds.
    """
    tasks, agents = (list(dict.fromkeys(x)) for x in ([r.task.name for r in runs], [r.agent.name for r in runs]))
    rows = math.ceil(len(agents) / 3)  # of the legend, below
    figure = Figure(
        figsize=(9.6, 3.0 * len(tasks) + 0.3 + 0.2 * rows), dpi=110, facecolor="white", layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    legend: dict[str, Line2D] = {}
    for task, pair in zip(tasks, grid, strict=True):
        for axes, column, label in zip(
            pair, ("env_steps", "wall_seconds"), ("environment steps", "wall seconds"), strict=True
        ):
            for agent, colour in zip(agents, cycle(COLOURS), strict=False):
                mine = [r for r in runs if (r.task.name, r.agent.name) == (task, agent) and last_metrics(r.run_dir)]
                if _draw([load(run.run_dir) for run in mine], column, axes, colour):
                    legend[literal(agent)] = Line2D([], [], color=colour, linewidth=2)
            draw_references(axes, references[task])
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(lambda value, _: shorten(value))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axes.set_axisbelow(True)
        pair[0].set_ylabel("episode return")
        pair[0].set_title(literal(task), loc="left", fontsize=10)
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    canvas.print_png(str(path))


def _draw(curves: list[dict[str, np.ndarray]], column: str, axes, colour: str) -> bool:
    """Draw an agent's curves, and return whether there is anything of them."""
    lines = []
    for curve in curves:
        seen = np.isfinite(curve["episode_return_mean"])
        if seen.any():
            lines.append((curve[column][seen], curve["episode_return_mean"][seen]))
    if not lines:
        return False
    for line in lines:
        draw_curve(axes, *line, color=colour, linewidth=0.7, alpha=0.35)
    begin, end = max(line[0][0] for line in lines), min(line[0][-1] for line in lines)
    if begin < end:  # somewhere all of them have reports
        x = np.linspace(begin, end, 100)
        scores = np.stack([np.interp(x, *line) for line in lines], -1)
        axes.plot(x, interquartile_mean(scores), color=colour, linewidth=2)
        if len(lines) > 1:
            intervals = np.array([bootstrap_interval([row], resamples=500) for row in scores])
            axes.fill_between(x, *intervals.T, color=colour, alpha=0.18, linewidth=0)
    return True
