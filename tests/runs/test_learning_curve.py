import json
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from merlin.errors import MerlinError
from merlin.runs.learning_curve import draw_references, load, plot_learning_curve


def write_run(run_dir, reports=200, slope=1.0):
    noise = np.random.default_rng(0).normal(scale=0.1, size=reports + 1)
    run_dir.mkdir()
    with open(run_dir / "metrics.jsonl", "w") as file:
        for i in range(1, reports + 1):
            mean = None if i == 1 else slope * i / reports + noise[i]
            row = {"env_steps": 1000 * i, "wall_seconds": 0.5 * i, "episode_return_mean": mean}
            file.write(json.dumps(row) + "\n")
    return run_dir


def test_load_returns_columns_with_nan_for_what_is_missing(tmp_path):
    rows = '{"env_steps": 10, "kl_nats": null}\n{"env_steps": 20, "kl_nats": 3, "return": 1.5}\n{"env_st'
    (tmp_path / "metrics.jsonl").write_text(rows)
    columns = load(tmp_path)
    np.testing.assert_array_equal(columns["env_steps"], [10.0, 20.0])
    np.testing.assert_array_equal(columns["kl_nats"], [np.nan, 3.0])
    np.testing.assert_array_equal(columns["return"], [np.nan, 1.5])


def test_load_says_where_reports_are_missing(tmp_path):
    with pytest.raises(MerlinError, match=r"metrics.jsonl must hold the reports of a run, and there are none"):
        load(tmp_path)


@pytest.mark.parametrize("seeds", [1, 3])
def test_picture_is_small_light_and_shows_the_curve(tmp_path, seeds):
    runs = [write_run(tmp_path / f"run{seed}", slope=1.0 + seed) for seed in range(seeds)]
    plot_learning_curve(runs, tmp_path / "curve.png", {"oracle": 3.0})
    assert (tmp_path / "curve.png").stat().st_size < 60_000
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    assert (pixels[:3] == 255).all()
    blue = (pixels[..., 2] - pixels[..., 0] > 100).sum(axis=0) > 0
    assert blue.mean() > 0.5, "the curve spans the picture"


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_learning_curve([write_run(tmp_path / "run")], tmp_path / "curve.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in __import__("sys").modules or not matplotlib.pyplot.get_fignums()


def test_a_run_without_a_finished_episode_is_drawn(tmp_path):
    run = write_run(tmp_path / "run", reports=1)
    plot_learning_curve([run], tmp_path / "one.png")
    plot_learning_curve([run, run], tmp_path / "two.png")
    plot_learning_curve([run, write_run(tmp_path / "longer")], tmp_path / "two.png")
    assert (tmp_path / "one.png").exists() and (tmp_path / "two.png").exists()


def test_equal_references_share_a_line_and_its_label():
    axes = Figure().add_subplot()
    draw_references(axes, {"random": 12.5, "memoryless": 12.5, "oracle": 44})
    assert [text.get_text() for text in axes.texts] == ["random, memoryless 12.50", "oracle 44.00"]
    assert [line.get_ydata()[0] for line in axes.lines] == [12.5, 44.0]


def test_names_of_near_references_do_not_overlap():
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.plot([0, 1], [0, 4])
    draw_references(axes, {"random": 1.1, "memoryless": 1.18, "expert": 3.5, "oracle": 4.0, "costs $1, or $2": 3.95})
    canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    names = ["memoryless 1.18\nrandom 1.10", "expert 3.50", "oracle 4.00\ncosts \\$1, or \\$2 3.95"]
    assert [text.get_text() for text in axes.texts] == names
    assert sorted(line.get_ydata()[0] for line in axes.lines[1:]) == [1.1, 1.18, 3.5, 3.95, 4.0]


def test_a_single_report_is_a_dot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 10, "wall_seconds": 1.5, "episode_return_mean": 0.25}\n')
    picture = plot_learning_curve([tmp_path], title="of $x^$ {").convert("RGB")
    pixels = np.asarray(picture).astype(int)
    assert (pixels[..., 2] - pixels[..., 0] > 50).sum() > 50
