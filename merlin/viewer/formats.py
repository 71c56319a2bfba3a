"""Episodes as files: .gif, .mp4, .html to step through, .png of the most telling step."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from merlin.errors import MerlinError, obstacle
from merlin.viewer.canvas import Canvas
from merlin.viewer.episodes import Episode
from merlin.viewer.frames import draw_step, height_of_step
from merlin.viewer.microscope import write_page

VIDEO_FPS = 10
PALETTE_FRAMES = 4  # from which the colours of all are chosen

Writer = Callable[[list[Episode], Path, str], None]


def save_episodes(episodes: list[Episode], path: Path, heading: str = "") -> None:
    """Write episodes in the format that the file's ending names.

    Raises:
        MerlinError: No such format, an `.mp4` without the extra `video`, or a file that cannot be written.
    """
    write = find_writer(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(episodes, path, heading)
    except OSError as error:
        raise MerlinError(f"{path} must be writable, but {obstacle(error)}: choose another file.") from error


def find_writer(path: Path) -> Writer:
    """Return what writes files of this ending."""
    writers = {".gif": _write_gif, ".mp4": _write_mp4, ".html": write_page, ".png": _write_png}
    ending = path.suffix.lower()
    if ending not in writers:
        raise MerlinError(
            f"An episode is written as {', '.join(writers)}, but the file is {path.name}: give it one of these endings."
        )
    if ending == ".mp4" and not all(map(importlib.util.find_spec, ("imageio", "imageio_ffmpeg"))):
        raise MerlinError("Writing .mp4 needs the extra 'video': pip install 'merlin-agents[video]', or choose .gif.")
    return writers[ending]


def telling_step(episode: Episode) -> int:
    """Return the step that shows most: the last of those that earned most, when there is most to remember."""
    return max(range(len(episode.steps)), key=lambda index: (episode.steps[index].reward, index))


def _draw(episodes: list[Episode], heading: str, chosen: set[int] | None = None) -> Iterator[Canvas]:
    """Yield the pictures of all steps of all episodes, or of the chosen ones, all of one size."""
    height = max(height_of_step(episode, step) for episode in episodes for step in range(len(episode.steps)))
    index = 0
    for number, episode in enumerate(episodes, start=1):
        which = f", episode {number} of {len(episodes)}" if len(episodes) > 1 else ""
        for step in range(len(episode.steps)):
            if chosen is None or index in chosen:
                yield draw_step(episode, step, heading + which, height)
            index += 1


def _palette(episodes: list[Episode], heading: str) -> Image.Image:
    """Return an image whose palette serves all frames.

    What stays the same from frame to frame then has the same colour, and takes no space; and choosing colours takes ten
    times as long as using them.
    """
    num_frames = sum(len(episode.steps) for episode in episodes)
    chosen = set(np.linspace(0, num_frames - 1, PALETTE_FRAMES).astype(int).tolist())
    frames = [np.asarray(canvas.small())[::2] for canvas in _draw(episodes, heading, chosen)]
    palette = Image.fromarray(np.concatenate(frames)).quantize(256)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Choosing by the median greys the white of the page; and Pillow, which looks colours up in steps of 4, finds the
    # wrong neighbour of white unless it has none.
    colours[(colours > 244).all(1)] = 255
    palette.putpalette(colours.flatten().tolist())
    return palette


def _milliseconds(episodes: list[Episode]) -> list[int]:
    """Return how long each frame stays: a second in a short episode, less in a long one, longer at its end."""
    each = min(1000, max(80, 30_000 // max(len(episode.steps) for episode in episodes)))
    return [each if step < len(e.steps) - 1 else each + 1500 for e in episodes for step in range(len(e.steps))]


def _write_gif(episodes: list[Episode], path: Path, heading: str) -> None:
    palette = _palette(episodes, heading)
    frames = (canvas.small().quantize(palette=palette, dither=Image.Dither.NONE) for canvas in _draw(episodes, heading))
    durations = _milliseconds(episodes)
    next(frames).save(path, save_all=True, append_images=frames, duration=durations, loop=0, optimize=False)


def _write_mp4(episodes: list[Episode], path: Path, heading: str) -> None:
    import imageio

    with imageio.get_writer(path, fps=VIDEO_FPS, codec="libx264", macro_block_size=2, quality=8) as writer:
        for canvas, milliseconds in zip(_draw(episodes, heading), _milliseconds(episodes), strict=True):
            frame = np.asarray(canvas.small())
            frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), constant_values=255)
            for _ in range(max(1, round(milliseconds * VIDEO_FPS / 1000))):
                writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]  # imageio's stubs lack it


def _write_png(episodes: list[Episode], path: Path, heading: str) -> None:
    best = max(episodes, key=lambda episode: episode.steps[telling_step(episode)].reward)
    draw_step(best, telling_step(best), heading).save(path)
