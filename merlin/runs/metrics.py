"""The rows of `metrics.jsonl`: read past damage, and kept up to the report that a run goes on from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merlin.errors import MerlinError, counted, obstacle, tell
from merlin.training.storage import parse_json, replace_file

NAME, DAMAGED_NAME, LOST_NAME = "metrics.jsonl", "metrics.damaged.jsonl", "metrics.lost.jsonl"


class Means:
    """Means of metrics by name, each over the windows that told of it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.windows: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in those of a window."""
        for name, x in metrics.items():
            x = torch.as_tensor(x).detach()  # of anybody's agent: its graph would be kept until the next report
            self.sums[name] = self.sums[name] + x if name in self.sums else x
            self.windows[name] = self.windows.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return them."""
        return {name: (x / self.windows[name]).item() for name, x in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what they go on from."""
        return {"sums": dict(self.sums), "windows": dict(self.windows)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state_dict`."""
        self.sums, windows = {name: x.to(device) for name, x in state["sums"].items()}, state["windows"]
        # a number is of version 0.3.0 or before, which counted windows for all of them together
        self.windows = dict.fromkeys(self.sums, windows) if isinstance(windows, int) else dict(windows)


class Rows(NamedTuple):
    """The lines of a file of metrics."""

    rows: list[dict[str, Any]]
    """Reports, by environment steps."""
    lines: list[bytes]
    """The line of each."""
    damaged: list[bytes]
    """Lines that are no report, each with its line break but for the last."""
    torn: bytes
    """What follows the last line break and is no report: a row that is being written, or that a kill cut short."""


def read_rows(run_dir: Path, note: Callable[[str], object] = tell) -> list[dict[str, Any]]:
    """Return a run's reports, by environment steps, if there are any. Damaged rows are left out, and told of."""
    found = read_lines(Path(run_dir) / NAME)
    if found.damaged:
        note(f"{Path(run_dir) / NAME} has {_count(found.damaged)}, left out here")
    return found.rows


def keep_rows(run_dir: Path, step: int, begins_anew: bool, note: Callable[[str], object] = tell) -> None:
    """Drop a run's reports beyond `step`, which it earns again, and move damaged rows into a file of their own.

    Args:
        begins_anew: Move all reports into another file, as the run's checkpoints were lost.
    """
    path = Path(run_dir) / NAME
    found = read_lines(path)
    if found.damaged or found.torn:
        with open(path.with_name(DAMAGED_NAME), "ab") as file:
            file.write(b"".join(line.removesuffix(b"\n") + b"\n" for line in (*found.damaged, found.torn) if line))
    if found.damaged:
        note(f"{path} had {_count(found.damaged)}, moved into {DAMAGED_NAME}")
    if begins_anew and found.rows:
        with open(path.with_name(LOST_NAME), "ab") as file:
            file.write(b"".join(found.lines))
        reports = counted(len(found.rows), "report")
        note(f"{path} had {reports}, up to step {found.rows[-1]['env_steps']:,}, moved into {LOST_NAME}")
    kept = b"".join(line for row, line in zip(found.rows, found.lines, strict=True) if row["env_steps"] <= step)
    if not path.exists() or path.read_bytes() != kept:
        replace_file(path, lambda file: file.write(kept))


def read_lines(path: Path) -> Rows:
    """Return what a file of metrics holds; nothing where there is none.

    Raises:
        MerlinError: It cannot be read.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        lines, last = [], b""
    except OSError as error:
        raise MerlinError(f"{path} must be a file of metrics, but {obstacle(error)}: mend that") from error
    pairs = [(_report(line), line + b"\n") for line in [*lines, last]]
    good = sorted(((row, line) for row, line in pairs if row is not None), key=lambda pair: pair[0]["env_steps"])
    damaged = [line for row, line in pairs[:-1] if row is None and line.strip()]
    return Rows([row for row, _ in good], [line for _, line in good], damaged, b"" if pairs[-1][0] else last)


def _report(line: bytes) -> dict[str, Any] | None:
    """Return the report that a line holds; None where it holds none."""
    try:
        row = parse_json(line)
        if isinstance(row, dict) and type(row.get("env_steps")) is int and row["env_steps"] >= 0:
            if all(value is None or abs(float(value)) >= 0 for value in row.values()):
                return row
    except (ValueError, TypeError, OverflowError):
        pass
    return None


def _count(lines: list[bytes]) -> str:
    return "a damaged row" if len(lines) == 1 else f"{len(lines)} damaged rows"
