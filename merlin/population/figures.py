"""Pictures of a population: ratings, lineage and hyperparameters over time; and who beats whom in a tournament."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from merlin.errors import MerlinError
from merlin.runs.learning_curve import literal, shorten
from merlin.training.storage import parse_json

COLUMNS = 5
"""Panels of hyperparameters side by side."""
_BOTS, _PAST = "#8a8a8a", "#b9b9b9"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a population's journal, without a last one that a kill cut short.

    Raises:
        MerlinError: There are none.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(parse_json(line))
        except ValueError:
            continue
    if not rows:
        raise MerlinError(f"{path} must hold the journal of a population, and there is none: train one.")
    return rows


def plot_population(journal: Path, path: Path, title: str = "", env_steps: int = 1) -> None:
    """Write a PNG of a population's time: ratings, who descends from whom, and each number that evolves.

    An agent has one colour in ratings and numbers. In the lineage the colour of a row is that of the agent that its
    weights descend from, and a line joins a copy to its model.

    Args:
        env_steps: Of the population so far, where these are more than the journal's: nothing happened since.
    """
    rows = read_journal(journal)
    rated = [row for row in rows if row["kind"] == "ratings"]
    copies = [row for row in rows if row["kind"] == "evolution"]
    count = _num_agents(rows)
    numbers = _numbers(rows, count)
    end = max(env_steps, *(row["env_steps"] for row in rows))
    panels = -(-len(numbers) // COLUMNS)
    figure = Figure(figsize=(11.0, 3.2 + 0.5 + 0.22 * count + 1.5 * panels), dpi=110, facecolor="white",
                    layout="constrained")  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 + panels, COLUMNS, height_ratios=[3.2, 0.5 + 0.22 * count, *[1.5] * panels])
    colours = _colours(count)

    axes = figure.add_subplot(grid[0, :])
    _draw_ratings(axes, rated, count, colours)
    _draw_copies(axes, rated, copies, colours)
    axes.set_title(
        literal(title) or "Ratings; dotted where an agent copied another, with its rating", loc="left", fontsize=10
    )
    _finish(axes, end)

    axes = figure.add_subplot(grid[1, :])
    _draw_lineage(axes, copies, count, colours, end)
    axes.set_title("Lineage: whose weights each agent has, and when it copied", loc="left", fontsize=9)
    _finish(axes, end)

    for index, (name, lines) in enumerate(numbers.items()):
        axes = figure.add_subplot(grid[2 + index // COLUMNS, index % COLUMNS])
        for agent, (steps, values) in enumerate(lines):
            axes.plot([*steps, end], [*values, *values[-1:]], drawstyle="steps-post", color=colours[agent], linewidth=1)
        if name != "tick_steps":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.set_title(name.replace("_", " "), fontsize=8, loc="left")
        axes.tick_params(labelsize=7, which="both")
        axes.minorticks_off()
        _finish(axes, end, is_small=True)
    canvas.print_png(str(path))


def plot_points(names: Sequence[str], points: Float[np.ndarray, "P P"], path: Path, title: str) -> None:
    """Write a PNG of the points of each entrant (row) against each other (column), a draw being half a point.

    Args:
        points: Shares, NaN where a pair has not played.
    """
    side, room = 0.62 * len(names), max(2.4, 0.075 * max(map(len, names)))  # inches; directories have long names
    figure = Figure(figsize=(side + room + 1.2, side + room), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(points, cmap="RdYlGn", vmin=0, vmax=1)
    for row, column in np.argwhere(np.isfinite(points)):
        share = points[row, column]
        axes.text(column, row, f"{share:.0%}", horizontalalignment="center", verticalalignment="center", fontsize=8,
                  color="white" if abs(share - 0.5) > 0.35 else "black")  # fmt: skip
    labels = [literal(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, horizontalalignment="right", fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_xlabel("against", fontsize=9)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[:].set_visible(False)
    canvas.print_png(str(path))


def _num_agents(rows: Sequence[Mapping[str, Any]]) -> int:
    for row in rows:
        if row["kind"] in ("start", "ratings"):
            return len(row["hyperparameters" if row["kind"] == "start" else "games"])
    return 1 + max(max(row["agent"], row["copied"]) for row in rows if row["kind"] == "evolution")


def _colours(count: int) -> list[Any]:
    return [colormaps["tab10"](i) if count <= 10 else colormaps["turbo"](i / (count - 1)) for i in range(count)]


def _draw_ratings(axes, rated: Sequence[Mapping[str, Any]], count: int, colours: Sequence[Any]) -> None:
    steps = [row["env_steps"] for row in rated]
    for agent in range(count):
        ratings = [row["ratings"][agent] for row in rated]
        axes.plot(steps, ratings, color=colours[agent], linewidth=1.6, label=f"agent {agent}")
    if rated and len(rated[0]["ratings"]) > count:
        axes.plot(steps, [row["ratings"][count] for row in rated], color=_BOTS, linestyle="--", label="bots")
    past: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for row in rated:
        for one in row.get("past", ()):
            past.setdefault((one["agent"], one["env_steps"]), []).append((row["env_steps"], one["rating"]))
    for index, curve in enumerate(past.values()):
        axes.plot(*zip(*curve, strict=True), color=_PAST, linewidth=0.8, marker=".", markersize=2, zorder=1,
                  label="past selves" if index == 0 else None)  # fmt: skip
    axes.set_ylabel("rating", fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7.5, ncols=8, loc="upper left", bbox_to_anchor=(0, -0.1))


def _draw_copies(axes, rated: Sequence[Mapping], copies: Sequence[Mapping], colours: Sequence[Any]) -> None:
    """Mark where agents copied: from the rating that they had to that which they took over."""
    for row in copies if rated else ():
        low, high = row["before"]["rating"], row["after"]["rating"]
        axes.plot([row["env_steps"]] * 2, [low, high], color=colours[row["agent"]], linewidth=0.8, linestyle=":")
        axes.plot(row["env_steps"], high, color=colours[row["copied"]], marker="o", markersize=4)


def _draw_lineage(axes, copies: Sequence[Mapping], count: int, colours: Sequence[Any], end: int) -> None:
    founder, since = list(range(count)), [0] * count

    def draw(agent: int, until: int) -> None:
        axes.plot([since[agent], until], [agent, agent], color=colours[founder[agent]], linewidth=4,
                  solid_capstyle="butt")  # fmt: skip

    for row in copies:
        agent, model, steps = row["agent"], row["copied"], row["env_steps"]
        draw(agent, steps)
        founder[agent], since[agent] = founder[model], steps
        axes.plot([steps, steps], [model, agent], color=colours[founder[model]], linewidth=0.9)
        axes.plot(steps, agent, color=colours[founder[model]], marker="o", markersize=4)
    for agent in range(count):
        draw(agent, end)
    axes.set_yticks(range(count), [str(agent) for agent in range(count)], fontsize=7)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_ylabel("agent", fontsize=9)


def _numbers(rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[tuple[list[int], list[float]]]]:
    """Return the magnitude of each number that evolves, by name: of each agent, since which steps it had which value.

    Those that are 0 everywhere are left out.
    """
    found: dict[str, list[tuple[list[int], list[float]]]] = {}

    def add(agent: int, steps: int, settings: Mapping[str, float]) -> None:
        for name, value in settings.items():
            if name != "rating":
                lines = found.setdefault(name, [([], []) for _ in range(count)])
                lines[agent][0].append(steps)
                lines[agent][1].append(abs(value))

    for row in rows:
        if row["kind"] == "start":
            for agent, settings in enumerate(row["hyperparameters"]):
                add(agent, row["env_steps"], settings)
        if row["kind"] == "evolution":
            add(row["agent"], row["env_steps"], row["after"])
    return {name: lines for name, lines in found.items() if any(any(values) for _, values in lines)}


def _finish(axes, end: int, is_small: bool = False) -> None:
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(lambda value, _: shorten(value))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    if is_small:
        axes.locator_params(axis="x", nbins=4)
    else:
        axes.tick_params(labelsize=8)
