"""Learning curves: a run's `metrics.jsonl` as columns and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Image, fromarray

from merlin.errors import MerlinError
from merlin.runs.metrics import read_rows

NAME_HEIGHT = 0.07  # of a name beside a line, as part of the axis' height
_COLOUR = "#1f5fa8"


def load(run_dir: str | Path) -> dict[str, np.ndarray]:
    """Return each metric of a run as a float64 column, one entry per report, NaN where a report lacks it.

    Raises:
        MerlinError: The directory holds no reports.
    """
    rows = read_rows(Path(run_dir))
    if not rows:
        raise MerlinError(f"{Path(run_dir) / 'metrics.jsonl'} must hold the reports of a run, and there are none")
    names = {name: None for row in rows for name in row}
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def plot_learning_curve(
    run_dirs: Sequence[str | Path],
    path: str | Path | None = None,
    reference_scores: Mapping[str, int | float] | None = None,
    title: str = "",
) -> Image:
    """Return a picture, which a notebook shows: the return of one run, or of several seeds and their median, by steps.

    Args:
        path: Of a PNG to write.
        reference_scores: Scores to compare with, such as the oracle's, each a dashed line with its name.
    """
    runs = [load(run_dir) for run_dir in run_dirs]
    curves = [(run["env_steps"], run["episode_return_mean"], run["wall_seconds"]) for run in runs]
    # A figure of its own canvas: pyplot and whichever backend the caller uses are left alone.
    figure = Figure(figsize=(6.4, 4.0), dpi=130, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    several = len(curves) > 1
    for env_steps, returns, _ in curves:
        seen = np.isfinite(returns)
        width, alpha = (0.9, 0.4) if several else (1.8, 1.0)
        draw_curve(axes, env_steps[seen], returns[seen], color=_COLOUR, linewidth=width, alpha=alpha)
    if several:
        axes.plot(*_median(curves), color=_COLOUR, linewidth=2.2, label=f"median of {len(curves)} seeds")
        axes.legend(loc="best", frameon=False, fontsize=9)
    draw_references(axes, reference_scores or {})
    last_step = max(env_steps[-1] for env_steps, _, _ in curves)
    axes.set_xlim(0, last_step)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode return")
    axes.xaxis.set_major_formatter(lambda value, _: shorten(value))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    _add_seconds(axes, curves[int(np.argmax([env_steps[-1] for env_steps, _, _ in curves]))])
    if title:
        axes.set_title(literal(title), fontsize=11)
    canvas.draw()
    # A palette of 64 colours: half the size, and no difference to see.
    picture = fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64)
    if path is not None:
        picture.save(path, optimize=True)
    return picture


def _median(curves: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and the median over runs, as far as every run got."""
    end = min(env_steps[-1] for env_steps, _, _ in curves)
    grid = np.linspace(0, end, 200)
    rows = []
    for env_steps, returns, _ in curves:
        seen = np.isfinite(returns)
        if seen.any():
            rows.append(np.interp(grid, env_steps[seen], returns[seen], left=np.nan))
    if not rows:
        return grid[:0], grid[:0]
    started = np.isfinite(rows).all(axis=0)
    return grid[started], np.median(rows, axis=0)[started]


def draw_curve(axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Draw a curve, of a single report as a dot: a line has none to join it with."""
    dot = {"marker": "o", "markersize": 6, "clip_on": False} if len(x) == 1 else {}
    axes.plot(x, y, **dot, **style)


def literal(name: str) -> str:
    """Return a name for matplotlib to write as it is: two dollars would begin and end a formula."""
    return name.replace("$", r"\$")


def draw_references(axes, scores: Mapping[str, int | float]) -> None:
    """Draw each score as a dashed line with its name at the right, after the curves. Equal ones share a line.

    Names of lines that are too near for a name each stand one below the other, at their middle.
    """
    names: dict[str, list[str]] = {}
    for name, score in scores.items():
        names.setdefault(f"{score:.2f}", []).append(name)
    for score in names:
        axes.axhline(float(score), color="#8a8a8a", linewidth=1.0, linestyle=(0, (5, 4)))
    low, high = axes.get_ylim()
    groups: list[list[str]] = []
    for score in sorted(names, key=float):
        if groups and float(score) - float(groups[-1][-1]) < NAME_HEIGHT * (high - low):
            groups[-1].append(score)
        else:
            groups.append([score])
    for group in groups:
        text = "\n".join(literal(f"{', '.join(names[score])} {score}") for score in reversed(group))
        axes.annotate(
            text, (1.0, np.mean([float(score) for score in group])), xycoords=axes.get_yaxis_transform(), xytext=(5, 0),
            textcoords="offset points", verticalalignment="center", fontsize=8.5, color="#555555",
        )  # fmt: skip


def _add_seconds(axes, curve: tuple[np.ndarray, ...]) -> None:
    """Add a top axis in wall seconds, as the longest run spent them."""
    # Twice the run's length at its mean speed, because ticks beyond the end would be drawn at the end.
    env_steps, _, seconds = (np.concatenate([[0.0], column, [2 * column[-1]]]) for column in curve)
    if not np.isfinite(seconds).all() or not (np.diff(seconds) >= 0).all() or seconds[-1] == 0:
        return
    top = axes.secondary_xaxis("top", functions=(
        lambda steps: np.interp(steps, env_steps, seconds),
        lambda wall: np.interp(wall, seconds, env_steps),
    ))  # fmt: skip
    top.set_xlabel("wall seconds", fontsize=9)
    top.tick_params(labelsize=8.5)
    top.spines["top"].set_visible(False)


def _number(value: int | float | None) -> float:
    return np.nan if value is None else float(value)


def shorten(value: int | float) -> str:
    """Return 1500000 as "1.5M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
