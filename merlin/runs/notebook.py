"""What a notebook shows of a run while it trains: how far it is, and its learning curve, drawn over in place."""

import html
import time
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from typing import Any

from PIL.Image import Image

from merlin.errors import MerlinError

DRAWING_FRACTION = 0.05  # of a run's time, at most


class NotebookProgress:
    """Two outputs of the cell that is running: a bar, and below what else the cell prints a picture.

    Args:
        total_steps: At which the bar is full.
        picture: Draws the run as it stands; none shows the bar alone.
    """

    def __init__(self, total_steps: int, picture: Callable[[], Image] | None = None) -> None:
        self._display: Callable[..., Any] = import_module("IPython.display").display  # which every notebook has
        self._total_steps, self._picture = total_steps, picture
        self._bar = self._drawn = None
        self._draw_at, self._is_stale = 0.0, False

    def show(self, env_steps: int, line: str) -> None:
        """Show where the run is, and draw it unless that took too much of its time lately."""
        done = min(env_steps, self._total_steps) / self._total_steps
        mark = f'<progress value="{done:.3f}" max="1"></progress> <code>{html.escape(line)}</code>'
        self._bar = self._put(self._bar, {"text/plain": f"{done:4.0%} {line}", "text/html": mark})
        self._is_stale = True
        if time.monotonic() >= self._draw_at or done == 1:
            self._draw()

    def close(self) -> None:
        """Draw what was reported last."""
        if self._is_stale:
            self._draw()

    def _draw(self) -> None:
        if self._picture is None:
            return
        begin, file = time.monotonic(), BytesIO()
        try:
            self._picture().save(file, "PNG", optimize=True)
        except (MerlinError, OSError):  # the run's directory is gone, which saving tells of
            return
        self._drawn = self._put(self._drawn, {"image/png": file.getvalue(), "text/plain": "learning curve"})
        now = time.monotonic()
        self._draw_at, self._is_stale = now + (now - begin) / DRAWING_FRACTION, False

    def _put(self, handle: Any, data: dict[str, Any]) -> Any:
        """Show data in place of what the handle shows, or anew, and return the handle."""
        if handle is None:
            return self._display(data, raw=True, display_id=True)
        handle.update(data, raw=True)
        return handle
