"""Writes docs/tasks.md: every task, with what random, memoryless and perfect play earn.

python benchmarks/task_scores.py [docs/tasks.md]
"""

import json
import sys
from pathlib import Path

import tasks

SETTINGS: dict[str, list[dict]] = {
    "merlin/MemoryGame-v0": [{"pairs": 3}, {"pairs": 4}, {"pairs": 8}],
    "merlin/TMaze-v0": [{"length": 10}, {"length": 50}, {"length": 200}],
    "merlin/RepeatPrevious-v0": [{"k": 4}, {"k": 16, "length": 64}],
    "merlin/Playback-v0": [{"length": 8}, {"length": 32}],
    "merlin/GoalMaze-v0": [
        {},
        {"size": 13, "rooms_per_side": 3},
        {"size": 13, "rooms_per_side": 3, "moving_doors": True},
    ],
    "merlin/WaterMaze-v0": [{}, {"num_rooms": 4}],
    "merlin/Maze-v0": [{"size": 9}, {"size": 15}],
    "merlin/Memory-v0": [
        {"size": 7, "agent_view_size": 3},
        {"size": 13, "agent_view_size": 3},
        {"size": 17, "random_length": True, "agent_view_size": 3},
    ],
    "merlin/DoorKey-v0": [{"size": 5}, {"size": 8}],
}
"""Which settings of a task are shown; its defaults alone unless told."""

HEAD = """# Tasks

What random, memoryless and perfect play earn in an episode. What "memoryless" and "oracle" mean, and whether a figure
is exact, a bound or an average over a fixed number of episodes from seed 0, says the `scores` of each task's module;
oracles of mazes know the whole grid, so that no agent that sees a part of it earns quite as much.

Written by `python benchmarks/task_scores.py docs/tasks.md`; a test writes it again and compares.

| id | settings | random | memoryless | oracle | what is asked |
|---|---|---|---|---|---|
"""


def table() -> str:
    """Return the page."""
    rows = []
    for task_id, task in tasks.TASKS.items():
        for index, settings in enumerate(SETTINGS.get(task_id, [{}])):
            scores = tasks.scores(task_id, **settings)
            figures = " | ".join(f"{scores[name]:.3f}" for name in ("random", "memoryless", "oracle"))
            shown = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in settings.items()) or "defaults"
            summary = task.summary if index == 0 else ""
            rows.append(f"| {f'`{task_id}`' if index == 0 else ''} | {shown} | {figures} | {summary} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    page = table()
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
    else:
        print(page, end="")
