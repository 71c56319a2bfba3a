"""The page of `merlin watch`: an episode to step through, and a memory to look into. One file, no network.

The page itself, `microscope.html` beside this module, draws what is given to it here as JSON. What is large is bytes:
read weights as round(255 · √w), which keeps small ones apart, words as round(127 · x / largest |x|), both compressed.
Pictures are stored once, however often they are seen. Those that an agent decodes, of which a step may have ten, are
near what they were, at a fraction of the size.
"""

import base64
import gzip
import hashlib
import io
import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from merlin.networks.spaces import kind
from merlin.viewer.episodes import Episode, Step
from merlin.viewer.frames import choices, needs_row
from merlin.viewer.memory_maps import read_rows
from merlin.viewer.observations import as_picture, is_picture, label

Array = np.ndarray
LARGEST = 320  # pixels along a side of a picture; larger ones are reduced, unless they have a row of their own


def write_page(episodes: list[Episode], path: Path, heading: str) -> None:
    """Write episodes as a page to step through.

    Raises:
        OSError: The file cannot be written.
    """
    pictures = _Pictures()
    data = {"heading": heading, "episodes": [_episode(episode, pictures) for episode in episodes]}
    data["pictures"] = pictures.stored
    page = resources.files("merlin.viewer").joinpath("microscope.html").read_text(encoding="utf-8")
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    path.write_text(page.replace("@@HEADING@@", escape(heading)).replace("@@DATA@@", text), encoding="utf-8")


class _Pictures:
    """Pictures as data URIs, each stored once."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self._index: dict[bytes, int] = {}

    def index(self, pixels: Array, is_exact: bool = True) -> int:
        """Return the number of a picture, uint8 [Y, X, 3].

        Args:
            is_exact: Keep every shade of it.
        """
        key = hashlib.blake2b(repr((pixels.shape, is_exact)).encode() + pixels.tobytes()).digest()
        if key not in self._index:
            image, file = Image.fromarray(pixels), io.BytesIO()
            if needs_row(pixels):
                image = image.quantize(256, dither=Image.Dither.NONE)
            else:
                image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
            few, form = image.getcolors(256), "png" if is_exact or not features.check("webp") else "webp"
            (image.quantize(len(few)) if few and form == "png" else image).save(file, form, quality=90)
            self._index[key] = len(self.stored)
            self.stored.append(f"data:image/{form};base64," + base64.b64encode(file.getvalue()).decode())
        return self._index[key]


def _episode(episode: Episode, pictures: _Pictures) -> dict[str, Any]:
    steps = episode.steps
    views = {"seen": [step.observation for step in steps]}
    if steps[0].expected is not None:
        views["expected"] = [step.expected for step in steps if step.expected is not None]
    if steps[0].reconstruction is not None:
        views["inferred"] = [step.reconstruction for step in steps if step.reconstruction is not None]
    data: dict[str, Any] = {
        "length": len(steps),
        "complete": episode.is_complete,
        "outcome": episode.outcome,
        "has_row": steps[0].picture is not None and needs_row(steps[0].picture),
        "task": [pictures.index(step.picture) for step in steps if step.picture is not None] or None,
        "entries": [_entry(name, space, views, steps, pictures) for name, space in episode.spaces.items()],
        "value": [_number(step.value) for step in steps],
        "reward": [_number(step.reward) for step in steps],
        "action": [episode.action_name(index) for index in range(len(steps))],
        "policy": _policy(episode),
    }
    if steps[0].slot is not None:
        data["memory"] = _memory(episode)
    return data


def _entry(name: str, space: Any, views: dict[str, list], steps: list[Step], pictures: _Pictures) -> dict[str, Any]:
    shows = is_picture(space)

    def draw(value: Array, is_exact: bool) -> int | str:
        return pictures.index(as_picture(space, value), is_exact) if shows else _words(space, value)

    is_grid = kind(space) == "symbols"
    drawn = {view: [draw(row[name], is_grid or view == "seen") for row in rows] for view, rows in views.items()}
    # what differs from what was seen is marked, but for numbers, which always differ a little
    off = {
        view: [bool((seen[name] != row[name]).any()) for seen, row in zip(views["seen"], rows, strict=True)]
        for view, rows in views.items()
        if view != "seen" and not shows and kind(space) != "vector"
    }
    found = {"name": label(name), "picture": shows, **drawn, "off": off}
    if steps[0].imagined is not None:
        found["imagined"] = [[draw(row[name], is_grid) for row in step.imagined or ()] for step in steps]
    return found


def _words(space: Any, value: Array) -> str:
    """Return in words what is no picture."""
    if kind(space) == "text":
        tokens = value.tolist()
        words = [space.vocabulary[token] for token in tokens[: tokens.index(0) if 0 in tokens else None]]
        return ("" if all(len(word) == 1 for word in words) else " ").join(words) or "(empty)"
    flat = np.asarray(value).reshape(-1)
    shown = [f"{x:.2f}".replace("-", "−") if kind(space) == "vector" else str(int(x)) for x in flat[:12]]
    return " ".join(shown) + (" …" if len(flat) > 12 else "")


def _policy(episode: Episode) -> dict[str, Any]:
    steps = episode.steps
    if not episode.has_choices:
        return {"box": [[[_number(x) for x in row] for row in step.policy] for step in steps]}
    chosen = [choices(episode, index) for index in range(len(steps))]
    return {
        "names": chosen[0][0],
        "taken": [sorted(taken) for _, taken in chosen],
        "probabilities": [[_number(p) for p in step.policy] for step in steps],
    }


def _memory(episode: Episode) -> dict[str, Any]:
    rows = [read_rows(step) for step in episode.steps]
    weights = np.stack([np.stack([row for _, _, row in of_step]) for of_step in rows])  # [T, K, N]
    words = np.nan_to_num(np.stack([step.word for step in episode.steps if step.word is not None]))
    largest = max(float(np.abs(words).max()), 1e-9)
    weights = np.nan_to_num(weights)
    return {
        "slots": weights.shape[2],
        "width": words.shape[1],
        "keys": [{"name": name, "colour": colour} for name, colour, _ in rows[0]],
        "written": [step.slot for step in episode.steps],
        "before": [-1 if step.slot_before_reads is None else step.slot_before_reads for step in episode.steps],
        "weights": _packed(np.round(255 * np.sqrt(weights.clip(0, 1))).astype(np.uint8)),
        "words": _packed(np.round(127 * words / largest).astype(np.int8)),
    }


def _number(x: float | np.floating) -> float:
    """Return a number as JSON holds it; 0 for one that is not finite, as an agent that broke gives."""
    return round(float(x), 4) if np.isfinite(x) else 0.0


def _packed(x: Array) -> str:
    return base64.b64encode(gzip.compress(x.tobytes(), 6, mtime=0)).decode()
