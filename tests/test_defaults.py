"""What `benchmarks/defaults.py` makes of reports and rows."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def defaults(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import defaults

    return defaults


def reports(*rows):
    return [dict(zip(("env_steps", "episodes", "episode_return_mean"), row, strict=True)) for row in rows]


def test_a_return_is_reached_by_100_episodes_together(defaults):
    seen = reports((10, 60, 9.0), (20, 0, None), (30, 40, 0.0), (40, 90, 6.0), (50, 10, 8.0))
    # At 10 too few; at 30 (60·9 + 40·0) / 100 = 5.4; at 40 (40·0 + 90·6) / 130; at 50 (90·6 + 10·8) / 100 = 6.2.
    for threshold, steps in ((5.4, 30), (5.5, 50), (6.2, 50), (6.3, None)):
        assert defaults.first_reached(seen, threshold) == steps
    assert defaults.first_reached([], 0.0) is None


def test_a_curve_has_20_points_of_all_episodes(defaults):
    seen = reports(*((step, 1 + step % 2, float(step)) for step in range(1, 41)))
    found = defaults.curve(seen)
    assert [steps for steps, _ in found] == list(range(2, 41, 2))
    assert found[0] == [2, round((2 * 1 + 1 * 2) / 3, 4)]
    assert defaults.curve(reports((10, 0, None), (20, 3, 1.0))) == [[20, 1.0]]
    assert defaults.curve([]) == []


def test_the_standard_error_is_that_of_a_sample(defaults):
    assert defaults.score(2.0, 1.0, 5)["standard_error"] == pytest.approx(0.5)  # of [1, 1, 2, 3, 3] and the like
    assert defaults.score(float("nan"), float("nan"), 0) == {"mean": None, "standard_error": None, "episodes": 0}


def test_rows_become_tables_and_the_newest_of_a_run_counts(defaults, tmp_path):
    def row(agent, seed, mean, **more):
        of = {"group": "cue", "name": "20", "agent": agent, "seed": seed, "preset": None, "commit": "abc"}
        last = {"mean": mean, "standard_error": 0.1, "episodes": 100}
        return json.dumps(of | {"steps": 2000, "held_out": {"last": last}, "warnings": []} | more)

    told = {"reached": {"0.5": 1000}}, {"reached": {"0.5": None}}
    path = tmp_path / "rows.jsonl"
    rows = [row("random", 0, 0.0), row("merlin", 1, -1.0, **told[1]), row("merlin", 1, 0.5, **told[0])]
    path.write_text("\n".join([*rows, row("merlin", 2, 1.0, **told[1])]) + "\n")
    found = defaults.table([*defaults.read([path]).values()])
    assert "| cue:20 | 0 | 0.75 (0.5 to 1) |" in found
    assert "| cue:20 | merlin | 1, 2 | 2 k | - | 0.75 (0.5 to 1) | - | - | - | 0.1 | 0.5: 1 k (1 of 2) | abc |" in found


def test_tasks_are_chosen_by_group_and_name(defaults):
    assert list(defaults.selected(["cue", "minigrid:FourRooms"])) == ["cue:20", "cue:100", "minigrid:FourRooms"]
    with pytest.raises(SystemExit, match=r"--only takes control, .* but nothing came"):
        defaults.selected(["nothing"])
