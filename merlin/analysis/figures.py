"""The pictures of `merlin analyse`."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import gymnasium
import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from merlin.runs.learning_curve import literal
from merlin.viewer.canvas import GREY, INK, Canvas, width_of
from merlin.viewer.observations import draw_entry, height_of, is_picture, label

Array = np.ndarray
COLOURS = ("#6b3fa0", "#d9822b", "#2b7bba", "#3a8f5c", "#b8336a", "#7a6a58", "#1fa3a3")
MAX_COLUMNS = 12


def plot_lines(
    lines: Mapping[str, tuple[Array, Array]],
    path: Path,
    *,
    x: str,
    y: str,
    title: str,
    reference: str | None = None,
    from_zero: bool = True,
) -> None:
    """Write a PNG of named lines, each (x, y); the one called `reference` is dashed and grey."""
    figure = Figure(figsize=(6.4, 3.6), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = cycle(COLOURS)
    for name, (at, values) in lines.items():
        if name == reference:
            axes.plot(at, values, color="#8a8a8a", linestyle="--", label=literal(name))
        else:
            dot = "o" if len(at) <= 40 else None
            axes.plot(at, values, color=next(colours), marker=dot, markersize=3.5, label=literal(name))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8.5)
    canvas.print_png(str(path))


def plot_maps(maps: Sequence[tuple[str, Float[Array, "H W"]]], path: Path, title: str) -> None:
    """Write a PNG of maps side by side, each (name, values), dark where there is most and grey where there is NaN."""
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(
        figsize=(max(5.2, 2.3 * columns), 2.4 * rows + 0.4), dpi=120, facecolor="white", layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    for index, (name, values) in enumerate(maps):
        axes = figure.add_subplot(rows, columns, index + 1)
        image = axes.imshow(values, cmap=colormaps["Purples"].with_extremes(bad="#d9d9d9"), vmin=0)
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
        axes.set_title(literal(name), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
    canvas.print_png(str(path))


def draw_observations(
    rows: Sequence[tuple[str, Sequence[dict[str, Array]]]],
    heads: Sequence[str],
    entries: dict[str, gymnasium.Space],
    path: Path,
    title: str,
) -> None:
    """Write a PNG of observations: a column for each headline, a row for each (name, observations)."""
    side, gap, left, top = 92, 10, 96, 58
    height = sum(side if is_picture(space) else 18 + height_of(space) for space in entries.values()) + gap
    width = max(left + len(heads) * (side + gap) + gap, width_of(title, 12, bold=True) + 2 * gap)
    canvas = Canvas(width, top + len(rows) * height + gap)
    canvas.text(gap, 18, title, 12, INK, bold=True)
    for column, head in enumerate(heads):
        canvas.text(left + column * (side + gap), 42, head, 10, GREY)
    for row, (name, observations) in enumerate(rows):
        y = top + row * height
        canvas.text(gap, y + 20, name, 10.5, INK, width=left - gap - 4)
        for column, observation in enumerate(observations):
            x, below = left + column * (side + gap), y
            for entry, space in entries.items():
                if is_picture(space):
                    draw_entry(canvas, x, below, side, side, space, observation[entry])
                    below += side + 4
                else:
                    canvas.text(x, below + 6, label(entry), 8.5, GREY, width=side)
                    draw_entry(canvas, x, below + 13, side, height_of(space), space, observation[entry])
                    below += 14 + height_of(space)
    canvas.save(path)
