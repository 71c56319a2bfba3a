"""Draws docs/tasks.png: every task from above, and some as an agent sees them in first person.

python benchmarks/gallery.py [docs/tasks.png]
"""

import re
import sys

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from merlin import tasks

SETTINGS = {
    "merlin/TMaze-v0": {"length": 6},
    "merlin/GoalMaze-v0": {"size": 13, "rooms_per_side": 3},
    "merlin/RepeatPrevious-v0": {"length": 8},
    "merlin/Playback-v0": {"length": 5},
}
SEEN = ("Memory", "GoalMaze", "WaterMaze", "DoorKey", "TransientInstruction", "RewardValuation", "LavaGap")
FIRST_PERSON = [f"merlin/{name}-v0" for name in SEEN]
SIZE, CAPTION, COLUMNS, GAP = 148, 18, 6, 8


def card_name(task_id: str) -> str:
    """Return the name of the files of a task's card: `tmaze` of "merlin/TMaze-v0"."""
    name = task_id.removeprefix("merlin/").removesuffix("-v0")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def picture(task_id: str, seed: int = 3, **settings) -> np.ndarray:
    """Return a task some steps into an episode."""
    env = gymnasium.make(task_id, render_mode="rgb_array", **SETTINGS.get(task_id, {}), **settings).unwrapped
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(2):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation, _ = env.reset()
    shown = observation["image"] if "view" in settings else trimmed(env.render())
    env.close()
    return shown


def trimmed(pixels: np.ndarray, tile: int = 16) -> np.ndarray:
    """Return the part of a grid that holds anything, with a cell around it; other pictures as they are."""
    height, width = (side // tile for side in pixels.shape[:2])
    if pixels.shape[:2] != (height * tile, width * tile):
        return pixels
    cells = pixels.reshape(height, tile, width, tile, 3).swapaxes(1, 2)
    is_empty = (cells == cells[0, 0]).all((2, 3, 4))
    rows, columns = ((~is_empty).any(axis).nonzero()[0] for axis in (1, 0))
    top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    return pixels[top * tile : (rows[-1] + 2) * tile, left * tile : (columns[-1] + 2) * tile]


def richest(task_id: str) -> np.ndarray:
    """Return the view of most colours among those of some episodes: many begin before a wall."""
    pictures = (picture(task_id, seed, view="first_person") for seed in range(20))
    return max(pictures, key=lambda view: len(np.unique(view.reshape(-1, 3), axis=0)))


def main(path: str = "docs/tasks.png") -> None:
    tiles = [(task_id.removeprefix("merlin/").removesuffix("-v0"), picture(task_id)) for task_id in tasks.TASKS]
    for task_id in FIRST_PERSON:
        name = task_id.removeprefix("merlin/").removesuffix("-v0")
        tiles.append((f"{name}, seen", richest(task_id)))
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIZE + GAP) + GAP, rows * (SIZE + CAPTION + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (name, pixels) in enumerate(tiles):
        left = GAP + index % COLUMNS * (SIZE + GAP)
        top = GAP + index // COLUMNS * (SIZE + CAPTION + GAP)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        scale = SIZE / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (SIZE - size[0]) // 2, top + CAPTION + (SIZE - size[1]) // 2))
        draw.text((left + SIZE / 2, top + CAPTION / 2), name, "black", font, anchor="mm")
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
