"""`merlin watch`: plays an episode with a trained agent and writes what it saw, recalled, expected and did."""

import base64
import dataclasses
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from merlin.analysis.canvas import Canvas
from merlin.analysis.episodes import Episode, record_episode
from merlin.analysis.frames import draw_step
from merlin.analysis.memory_maps import save_picture
from merlin.errors import MerlinError
from merlin.run import build_environment, load_agent, load_config
from merlin.training.evaluation import HELD_OUT_SEED

MAX_FRAMES = 500
SHARP_FRAMES = 60  # up to so many, a page holds them at two pixels a point
VIDEO_FPS = 10


def watch(
    run_dir: Path,
    out: Path | None = None,
    *,
    episodes: int = 1,
    seed: int = 0,
    which: str = "best",
    greedy: bool = False,
    note: Callable[[str], object] = lambda sentence: print(sentence, file=sys.stderr),
) -> Path:
    """Play episodes that training never began with, write them as a picture of each step, and return the file.

    Args:
        out: Its ending chooses the format: .gif, .mp4, .html (a page to step through), or .png (the most telling step).
            RUN_DIR/episode.gif unless told.
        seed: Of the environment, the latents and the actions; another seed shows another episode.
        which: The run's best weights or its last.
        greedy: Take the most probable actions rather than samples.
        note: Is told when not everything is shown.

    Raises:
        MerlinError: No such format, an `.mp4` without the extra `video`, not a run, or a file that cannot be written.
    """
    run_dir = Path(run_dir)
    out = Path(out) if out is not None else run_dir / "episode.gif"
    write = _writer(out)
    if episodes < 1:
        raise MerlinError(f"The number of episodes must be at least 1, but is {episodes}.")
    # One environment is too small for a GPU, and what was trained on one is to be watched anywhere.
    config = dataclasses.replace(load_config(run_dir), device="cpu", vectorization="sync")
    seed += config.seed + HELD_OUT_SEED
    generator = torch.Generator().manual_seed(seed)
    played: list[Episode] = []
    with build_environment(config, num_envs=1, render_mode="rgb_array") as environment:
        agent = load_agent(run_dir, environment, config, which)
        left = MAX_FRAMES
        while left and len(played) < episodes:
            played.append(
                record_episode(agent, environment, seed + len(played), generator, greedy=greedy, max_steps=left)
            )
            left -= len(played[-1].steps)
    if len(played) < episodes or not played[-1].is_complete:
        note(f"Only the first {MAX_FRAMES} steps are shown.")
    heading = f"{config.agent} on {config.task}"
    save_episodes(played, out, heading)
    return out


def save_episodes(played: list[Episode], path: Path, heading: str = "") -> None:
    """Write episodes in the format that the file's ending names: see `watch`."""
    write = _writer(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(played, path, heading)
    except OSError as error:
        raise MerlinError(f"{path} must be writable, but {error}: choose another file with --out.") from error


def telling_step(episode: Episode) -> int:
    """Return the step that shows most: one that earned the highest reward, with the sharpest read."""

    def key(index: int) -> tuple[float, float, int]:
        step = episode.steps[index]
        weights = step.policy_read_weights if step.policy_read_weights is not None else step.read_weights
        return step.reward, 0.0 if weights is None or index < 2 else float(weights.max()), index

    return max(range(len(episode.steps)), key=key)


def _writer(path: Path) -> Callable[[list[Episode], Path, str], None]:
    writers = {".gif": _write_gif, ".mp4": _write_mp4, ".html": _write_html, ".png": _write_png}
    if path.suffix.lower() not in writers:
        raise MerlinError(
            f"An episode is written as {', '.join(writers)}, but the file to write is {path.name}: "
            "give it one of these endings."
        )
    if path.suffix.lower() == ".mp4" and not all(map(importlib.util.find_spec, ("imageio", "imageio_ffmpeg"))):
        raise MerlinError("Writing .mp4 needs the extra 'video': pip install 'merlin-agents[video]', or choose .gif.")
    return writers[path.suffix.lower()]
