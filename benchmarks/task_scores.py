"""Writes docs/tasks.md: every task, with what random, memoryless and perfect play earn.

python benchmarks/task_scores.py [docs/tasks.md]
"""

import json
import sys
from pathlib import Path

from merlin import tasks

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
    "merlin/RewardValuation-v0": [{}, {"size": 6, "kinds": 2, "objects": 6, "bad_reward": -0.5}],
    "merlin/DoorKey-v0": [{"size": 5}, {"size": 8}],
    "merlin/CaptureTheFlag-v0": [{"num_envs": 2, "opponents": name} for name in ("random", "mixed")],
}
"""Which settings of a task are shown; its defaults alone unless told."""

EXACT, AVERAGE = "{:.3f}", "{:.2f}"
FORMATS: dict[str, tuple[str, str, str]] = dict.fromkeys(tasks.TASKS, (AVERAGE, "≥ " + AVERAGE, "≤ " + AVERAGE))
for name in ("MemoryGame", "TMaze", "RepeatPrevious", "Playback", "TransientInstruction", "LatentLearning"):
    FORMATS[f"merlin/{name}-v0"] = (EXACT, EXACT, EXACT)
FORMATS |= {
    "merlin/Memory-v0": (AVERAGE, EXACT, "≤ " + EXACT),
    "merlin/VisuomotorMapping-v0": (EXACT, "≥ " + EXACT, EXACT),
    "merlin/RewardValuation-v0": (EXACT, EXACT, AVERAGE),
    "merlin/KeyToDoor-v0": (AVERAGE, "≥ " + AVERAGE, EXACT),
    "merlin/ActiveVisualMatch-v0": (AVERAGE, "≥ " + AVERAGE, EXACT),
    "merlin/KeyCorridor-v0": (AVERAGE, "≥ " + AVERAGE, AVERAGE),
    "merlin/ObstructedMaze-v0": (AVERAGE, "≥ " + AVERAGE, AVERAGE),
    "merlin/CaptureTheFlag-v0": (AVERAGE, "≥ " + AVERAGE, "≥ " + AVERAGE),
}
"""Of the figures of random, memoryless and perfect play; `HEAD` explains them."""
OTHER_FORMATS = {("merlin/RewardValuation-v0", "bad_reward"): (AVERAGE, "≥ " + AVERAGE, AVERAGE)}
"""Of a task where a setting has another value than its default."""

CUES = {
    "merlin/MemoryGame-v0": "each card, for the step after its flip",
    "merlin/TMaze-v0": "in the start cell",
    "merlin/Memory-v0": "while the object beside the start is in view",
    "merlin/RepeatPrevious-v0": "each symbol, for one step",
    "merlin/Playback-v0": "in the first half",
    "merlin/VisuomotorMapping-v0": "the reward of each response",
    "merlin/RewardValuation-v0": "the reward of a colour's first ball",
    "merlin/TransientInstruction-v0": "in the first observation",
    "merlin/GoalMaze-v0": "while the goal is in view",
    "merlin/WaterMaze-v0": "on a platform that was just found",
    "merlin/LatentLearning-v0": "while exploring, an arm's end in view",
    "merlin/ActiveVisualMatch-v0": "while exploring, the box in view",
    "merlin/RedBlueDoors-v0": "while the red door is in view",
}
"""When what must be remembered is shown. In the others there is no cue: where one has been helps."""

HEAD = """# Tasks

What random, memoryless and perfect play earn in an episode. Figures of three decimals are exact; those of two are
averages over 100 to 1,000 episodes from seed 0.

- ≥ is of a player that is not proven the best of its kind: the best one earns at least this.
- ≤ is of a player that knows what no agent sees at once, such as the whole grid: no agent earns more.

What "memoryless" means in each task says its module; `merlin.tasks.scores(id, **settings)` gives the figures
of other settings. A cue is what must be remembered; "-" means that there is none: it helps to know where one has been.

Written by `python benchmarks/task_scores.py docs/tasks.md`; a test writes it again and compares.

![Every task from above, and some as an agent sees them](tasks.png)

| id | settings | random | memoryless | oracle | what is asked | when the cue shows |
|---|---|---|---|---|---|---|
"""


def table() -> str:
    """Return the page."""
    rows = []
    for task_id, task in tasks.TASKS.items():
        for index, settings in enumerate(SETTINGS.get(task_id, [{}])):
            scores = tasks.scores(task_id, **settings)
            figures = [scores[name] for name in ("random", "memoryless", "oracle")]
            other = [OTHER_FORMATS[task_id, name] for name in settings if (task_id, name) in OTHER_FORMATS]
            forms = other[0] if other else FORMATS[task_id]
            written = [form.format(x) for form, x in zip(forms, figures, strict=True)]
            chosen = {name: value for name, value in settings.items() if name != "num_envs"}
            shown = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in chosen.items()) or "defaults"
            words = (f"`{task_id}`", task.summary, CUES.get(task_id, "-")) if index == 0 else ("", "", "")
            rows.append(f"| {' | '.join([words[0], shown, *written, *words[1:]])} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    page = table()
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
    else:
        print(page, end="")
