"""What a run tells while it trains: `metrics.jsonl` for programs; a progress bar or lines for people."""

import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from PIL.Image import Image
from tqdm import tqdm

from merlin.errors import MerlinError, obstacle, resuming
from merlin.runs.metrics import NAME, keep_rows
from merlin.runs.notebook import NotebookProgress

SILENCE_SECONDS = 60.0
"""After which a run says where it stands, though no report is due."""


def is_notebook() -> bool:
    """Return whether a notebook shows what is printed: it is no terminal, but outputs can be replaced there."""
    return type(sys.stdout).__module__.startswith(("ipykernel", "google.colab"))


class Reporter:
    """Writes each report as one line of `metrics.jsonl` and shows it on the terminal.

    A terminal gets a progress bar, a notebook one with a picture (`NotebookProgress`), a pipe or a file one line per
    report:

        env_steps    120,000   25,310/s  return  1.42 ± 0.61  kl  7.1 nats  00:05 left 00:31
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        first_step: int = 0,
        stream: io.TextIOBase | TextIO | None = None,
        reported_step: int | None = None,
        picture: Callable[[], Image] | None = None,
    ):
        """Open the run's metrics.

        Args:
            first_step: Environment steps of the checkpoint that the run resumes from.
            stream: Where people read; standard error unless told, in a notebook standard output, as that is not red.
            reported_step: Environment steps of that checkpoint's last report, `first_step` unless told. Rows beyond it
                are dropped: the run earns them again, and the curve would double back.
            picture: Draws the run from its metrics, for a notebook.
        """
        self._path = Path(run_dir) / NAME
        self._bar = self._notebook = None
        self._run_dir = run_dir
        notebook = is_notebook()
        self._stream = (sys.stdout if notebook else sys.stderr) if stream is None else stream
        self._total_steps = total_steps
        self._warned: set[str] = set()
        self._told_at, self._closed = time.monotonic(), threading.Event()
        self._watch: threading.Thread | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                step = first_step if reported_step is None else reported_step
                keep_rows(run_dir, step, first_step == 0, self.note)
            self._file = open(self._path, "a+", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        if notebook and stream is None:
            self._notebook = NotebookProgress(total_steps, picture)
        elif self._stream.isatty():
            # Scores last: where the terminal is too narrow for them all the same, they are what is cut.
            shape = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt} left {remaining}{postfix}"
            self._bar = tqdm(
                total=total_steps, initial=first_step, file=self._stream, dynamic_ncols=True, unit=" steps",
                unit_scale=True, bar_format=shape,
            )  # fmt: skip

    def report(self, metrics: Mapping[str, int | float]) -> None:
        """Write and show one report; `env_steps` and `wall_seconds` must be among the metrics."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error
        if self._notebook is not None:
            self._notebook.show(round(metrics["env_steps"]), _line(metrics, self._total_steps))
            self._told_at = time.monotonic()
        elif self._bar is None:
            self.note(_line(metrics, self._total_steps))
        else:
            # The last window may go beyond the end, where tqdm would forget that there is one.
            self._bar.update(min(metrics["env_steps"], self._total_steps) - self._bar.n)
            _set_postfix(self._bar, metrics)
            self._bar.refresh()
            self._told_at = time.monotonic()

    def break_silence(self, standing: Callable[[], str]) -> None:
        """From now on, whenever nothing was told for a minute, tell where the run stands: its task may be slow."""

        def keep_watch() -> None:
            while not self._closed.wait(max(0.01, self._told_at + SILENCE_SECONDS - time.monotonic())):
                if time.monotonic() - self._told_at >= SILENCE_SECONDS:
                    self.note(standing())

        self._watch = threading.Thread(target=keep_watch, daemon=True)
        self._watch.start()

    def copy_rows(self, run_dir: Path) -> None:
        """Write all rows into another directory, also where this one's name is gone."""
        self._file.seek(0)
        (run_dir / NAME).write_text(self._file.read(), encoding="utf-8")

    def note(self, message: str) -> None:
        """Print one line without breaking the bar; any thread may call this."""
        # Whoever read the pipe may have left, as `head` does: the run has its files and goes on.
        self._told_at = time.monotonic()
        with suppress(BrokenPipeError):
            tqdm.write(message, file=self._stream)
            self._stream.flush()

    def warn_once(self, key: str, message: str) -> None:
        """Print a warning, only the first time for each key."""
        if key not in self._warned:
            self._warned.add(key)
            self.note(f"warning: {message}")

    def close(self) -> None:
        """Close the file and leave the bar as it stands."""
        self._closed.set()
        if self._watch is not None:
            self._watch.join(5.0)  # a thread that wakes while Python ends would abort the process
        if self._bar is not None:
            self._bar.close()
        if self._notebook is not None:
            self._notebook.close()
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _failure(self, error: OSError) -> MerlinError:
        return MerlinError(
            f"could not write {self._path} ({obstacle(error)}): mend that and run {resuming(self._run_dir)}"
        )


def _line(metrics: Mapping[str, int | float], total_steps: int) -> str:
    env_steps, rate = metrics["env_steps"], metrics.get("env_steps_per_second", 0.0)
    left = _clock((total_steps - env_steps) / rate) if rate > 0 else "--:--"
    width = len(f"{total_steps:,}")  # so that columns stay where they are
    head = [f"env_steps {env_steps:>{width},}", f"{rate:>8,.0f}/s"]
    return "  ".join([*head, *_scores(metrics), f"{_clock(metrics['wall_seconds'])} left {left}"])


def _scores(metrics: Mapping[str, int | float]) -> list[str]:
    """Return what a person watches, of what there is."""
    shown = []
    if "episode_return_mean" in metrics:
        mean, std = metrics["episode_return_mean"], metrics.get("episode_return_std", math.nan)
        spread = f" ± {std:.2f}" if math.isfinite(std) else ""
        shown.append(f"return {mean:5.2f}{spread}" if math.isfinite(mean) else "return     -       ")
    if "curriculum_stage" in metrics:
        shown.append(f"stage {metrics['curriculum_stage']}")
    if "rating_best" in metrics:  # of a population
        shown.append(f"ratings {metrics['rating_worst']:4.0f} to {metrics['rating_best']:4.0f}")
        shown.append(f"games {metrics['games']:,}  evolutions {metrics['evolutions']}")
    if math.isfinite(success := metrics.get("success_rate", math.nan)):
        shown.append(f"success {success:4.0%}")
    if math.isfinite(kl := metrics.get("kl_nats", math.nan)):
        shown.append(f"kl {kl:4.1f} nats")
    if math.isfinite(explained := metrics.get("observation_explained", math.nan)):
        shown.append(f"explained {max(0.0, explained):4.0%}")  # of which the KL says nothing
    return shown


def _set_postfix(bar: tqdm, metrics: Mapping[str, int | float]) -> None:
    """Show the scores behind a bar: where the terminal is narrow without the KL, or without the spread either."""
    for left_out in ((), ("kl_nats",), ("kl_nats", "episode_return_std")):
        shown = {name: value for name, value in metrics.items() if name not in left_out}
        bar.set_postfix_str(", ".join(_scores(shown)), refresh=False)
        width = bar.format_dict["ncols"]
        if width is None or len(tqdm.format_meter(**{**bar.format_dict, "ncols": None})) <= width:  # with a bar of 10
            return


def _clock(seconds: int | float) -> str:
    """Return "05:31", or "2:05:31" from an hour on."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
