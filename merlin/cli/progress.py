"""How far an evaluation is, for people: a bar on a terminal, a line at least every minute elsewhere."""

import sys
import time
from io import TextIOBase
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from merlin.training.evaluation import Evaluation

SECONDS = 20.0


class Progress:
    """Shows how many episodes have ended, on standard error unless told."""

    def __init__(self, stream: TextIOBase | TextIO | None = None) -> None:
        self.stream: TextIOBase | TextIO = sys.stderr if stream is None else stream
        self.begun = self.told = time.monotonic()
        self.is_bar = self.stream.isatty()

    def __call__(self, evaluation: "Evaluation") -> None:
        """Look at an evaluation after a step, and show where it is if it is time."""
        now = time.monotonic()
        if now - self.told < (0.2 if self.is_bar else SECONDS) and not (self.is_bar and evaluation.is_done):
            return
        self.told = now
        ended, asked = len(evaluation.returns), evaluation.episodes
        line = f"{ended:,} of {asked:,} episodes, {evaluation.env_steps:,} steps, {now - self.begun:.0f} s"
        if self.is_bar:
            filled = 30 * ended // asked
            end = "\r\x1b[K" if evaluation.is_done else ""
            print(f"\r\x1b[K|{'#' * filled:<30}| {line}", end=end, file=self.stream, flush=True)
        else:
            print(f"evaluating: {line}", file=self.stream, flush=True)
