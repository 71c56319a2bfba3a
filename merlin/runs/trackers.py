"""Trackers besides Weights & Biases: TensorBoard's files in RUN_DIR/tensorboard; and several trackers as one."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from merlin.errors import MerlinError, option


@runtime_checkable
class Tracks(Protocol):
    """What a run tells a tracker."""

    @property
    def is_on(self) -> bool:
        """Whether anything is logged at all."""
        ...

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Log metrics at this many environment steps."""

    def log_media(self, path: Path, key: str) -> None:
        """Log a picture, a video or a page."""

    def close(self, exit_code: int = 0) -> None:
        """Finish."""


class Trackers:
    """Several trackers, each of which is told everything."""

    def __init__(self, trackers: Sequence[Tracks]) -> None:
        self.trackers = trackers

    @property
    def is_on(self) -> bool:
        """Whether any of them logs."""
        return any(tracker.is_on for tracker in self.trackers)

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Log metrics at this many environment steps."""
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def log_media(self, path: Path, key: str) -> None:
        """Log a picture, a video or a page."""
        for tracker in self.trackers:
            tracker.log_media(path, key)

    def close(self, exit_code: int = 0) -> None:
        """Finish all of them."""
        for tracker in self.trackers:
            tracker.close(exit_code)


def summary_writer() -> Callable[..., Any]:
    """Return the class that writes TensorBoard's files.

    Raises:
        MerlinError: TensorBoard is not installed.
    """
    try:
        return import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise MerlinError(
            "TensorBoard needs the package tensorboard, which is not installed: pip install "
            f"'merlin-agents[tensorboard]', or leave out {option('tensorboard')}."
        ) from error


class TensorBoard:
    """Writes a run's reports and its learning curve for TensorBoard.

    Args:
        reported_step: Environment steps of the last report that a resumed run goes on from; later ones are replaced.

    Raises:
        MerlinError: TensorBoard is not installed.
    """

    is_on = False  # a film is made for who shows it

    def __init__(self, run_dir: Path, config: Mapping[str, Any], reported_step: int) -> None:
        self._writer = summary_writer()(
            str(run_dir / "tensorboard"), purge_step=reported_step + 1 if reported_step else None
        )
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", reported_step)

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Log metrics at this many environment steps; what is not finite is left out."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_media(self, path: Path, key: str) -> None:
        """Log a picture; other media are left out."""
        if path.suffix == ".png":
            self._writer.add_image(key, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")

    def close(self, exit_code: int = 0) -> None:
        """Finish the file."""
        self._writer.close()
