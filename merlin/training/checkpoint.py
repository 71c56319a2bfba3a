"""Checkpoints that survive a kill at any moment: written under another name, flushed, then renamed.

    RUN_DIR/checkpoints/step-000000001234/agent.safetensors   weights
                                          trainer.pt          everything else; loads with weights_only=True
    RUN_DIR/checkpoints/best.safetensors                      the best weights; their `Best` as metadata
    RUN_DIR/checkpoints/best-in-training.safetensors          those that a comparison at the end replaced as the best
    FOLDER/model.safetensors                                  the weights of an agent that was exported, and alone there
    RUN_DIR/checkpoints/damaged-step-000000001234/            what a resume found damaged, and did not read

Weights hold their own checksum (`merlin.training.weights`), and that of the trainer.pt beside them, `trainer_sha256`.
Both are checked whenever a file is read; files of version 0.2.0 have none.

A name that starts with "." is unfinished or on its way out: never read, removed when the run is next trained.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from merlin.errors import MerlinError, resuming, tell
from merlin.training.plain import to_plain
from merlin.training.storage import (
    Damaged,
    HashingFile,
    changed,
    flush_directory,
    hidden,
    remove,
    replace_file,
    sha256_of,
    unreadable,
    write_flushed,
)
from merlin.training.weights import load_weights, read_metadata, read_weights, write_weights

Found = TypeVar("Found")
Note = Callable[[str], object]

_STEP = re.compile(r"step-(\d{12,})")
_WEIGHTS, _REST = "agent.safetensors", "trainer.pt"
REPLAY = "replay"
"""Directory of a run, beside its checkpoints, for what is too much to be written again with each."""
_BEST, _BEST_IN_TRAINING = "best.safetensors", "best-in-training.safetensors"
MODEL = "model.safetensors"
"""Weights of an exported agent: in its folder, in place of checkpoints."""


AT_END = ("comparison", "recent")
"""How the best weights are chosen at a run's end; one that goes on does so as if they had not been."""


class Best(NamedTuple):
    """Which weights are the best, and how they were chosen; files of version 0.2.0 tell step and score alone."""

    step: int
    """Environment steps that the weights had learnt from."""
    score: float
    """Mean return of the episodes that chose them."""
    chosen_by: str | None = None
    """training: the episodes of training begun with them; evaluation: held-out ones while training; comparison:
    held-out ones at the end, the same for all that were compared; recent: the last episodes of training, where such a
    comparison came to nothing."""
    episodes: int | None = None
    chosen_at: int | None = None
    """Environment steps of the run when they were chosen."""


def save(
    run_dir: Path,
    step: int,
    agent: nn.Module,
    rest: Mapping[str, Any],
    keep: int = 3,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint, drop all but the last `keep`, and return its directory.

    A step that is already there is left as it is: the same run at the same step has the same state.

    Args:
        rest: Any tree that `to_plain` takes; `load_latest` returns it plain, and `from_plain` restores NamedTuples.
        about: Metadata of the file of weights.
    """
    directory = _prepare(run_dir)
    final = directory / f"step-{step:012d}"
    if not final.exists():
        temporary = hidden(final)
        plain = to_plain(rest)
        with _explain_failure(run_dir, final, temporary):
            temporary.mkdir()
            digest = _write_rest(temporary / _REST, plain)
            metadata = {**(about or {}), "trainer_sha256": digest}
            write_flushed(temporary / _WEIGHTS, lambda file: write_weights(file, agent.state_dict(), metadata))
            flush_directory(temporary)
            try:
                os.rename(temporary, final)
            except OSError:  # another process was quicker; on Windows the rename fails so too
                if not final.exists():
                    raise
                remove(temporary)
            flush_directory(directory)
    for old in steps(run_dir)[:-keep]:
        # Removing a directory takes many system calls; renamed first, it is never seen half removed.
        with suppress(FileNotFoundError):  # another process was quicker
            remove(old.rename(hidden(old)))
    return final


def save_best(
    run_dir: Path,
    best: Best,
    weights: Mapping[str, Tensor],
    about: Mapping[str, str] | None = None,
) -> Path:
    """Replace `best.safetensors` by these weights, and return its path.

    What a run's end replaces is kept beside it until training finds better: a run that goes on, goes on from that.
    """
    final = _prepare(run_dir) / _BEST
    kept = final.with_name(_BEST_IN_TRAINING)
    metadata = {**(about or {}), **{name: str(x) for name, x in best._asdict().items() if x is not None}}
    with _explain_failure(run_dir, final):
        at_end = best.chosen_by in AT_END
        if at_end and _best_path(run_dir, compared=False) == final and final.exists():
            replace_file(kept, lambda file: file.write(final.read_bytes()))
        replace_file(final, lambda file: write_weights(file, weights, metadata))
        if not at_end:
            kept.unlink(missing_ok=True)
    return final


def tidy(run_dir: Path) -> None:
    """Remove what interrupted saves left behind. Only for the process that alone writes to the run."""
    for pattern in ("checkpoints/.*", f"{REPLAY}/.*", ".config.json*", ".metrics.jsonl*"):
        for leftover in Path(run_dir).glob(pattern):
            remove(leftover)


def steps(run_dir: Path) -> list[Path]:
    """Return the directories of all finished checkpoints, oldest first."""
    found = (Path(run_dir) / "checkpoints").glob("step-*")
    return sorted((path for path in found if _STEP.fullmatch(path.name)), key=_step)


def last_step(run_dir: Path) -> int | None:
    """Return the environment steps of the last checkpoint; None where there is none."""
    found = steps(run_dir)
    return _step(found[-1]) if found else None


def load_latest(run_dir: Path, agent: nn.Module, note: Note = tell) -> tuple[int, dict[str, Any]]:
    """Load the last intact checkpoint's weights into `agent`; return its step and the rest, its tensors on the CPU.

    Args:
        note: Is told of each damaged checkpoint that was passed over.

    Raises:
        MerlinError: There is none, or it is of another agent.
    """

    def load(directory: Path) -> tuple[int, dict[str, Any]]:
        rest = _load_rest(directory)
        load_weights(agent, directory / _WEIGHTS)
        return _step(directory), rest

    return _newest_intact(run_dir, load, note)


def set_aside(run_dir: Path, beyond: int) -> None:
    """Rename the checkpoints of later steps, which were damaged, so that a run that goes on may save those steps."""
    for directory in steps(run_dir):
        if _step(directory) > beyond:
            with _explain_failure(run_dir, directory):
                directory.rename(_free(directory.with_name(f"damaged-{directory.name}")))


def load_last_weights(run_dir: Path, agent: nn.Module, note: Note = tell) -> int:
    """Load the last intact weights into `agent`, and return their step. See `load_latest`."""

    def load(directory: Path) -> int:
        load_weights(agent, directory / _WEIGHTS)
        return _step(directory)

    return _newest_intact(run_dir, load, note)


def read_wall_seconds(run_dir: Path) -> float:
    """Return the training time at the last intact checkpoint; 0 where there is none."""
    return float(_newest_intact(run_dir, _load_rest, tell).get("wall_seconds", 0.0)) if steps(run_dir) else 0.0


def read_about(run_dir: Path) -> dict[str, str]:
    """Return the metadata that the last checkpoint's weights were saved with, without checks; nothing if they cannot
    be read."""
    for directory in reversed(steps(run_dir)):
        with suppress(Damaged):
            return read_metadata(directory / _WEIGHTS)
    return {}


def read_best(run_dir: Path, note: Note = tell, compared: bool = True) -> Best | None:
    """Return which weights are the best and how they were chosen, without loading them; None where there are none.

    Damaged ones are none, and `note` is told.

    Args:
        compared: Those count that a comparison at the run's end chose. Without them, the best are as if it had not
            been made.
    """
    return _best(_best_path(run_dir, compared), lambda path: read_metadata(path, check=True), note)


def read_best_in_training(run_dir: Path, agent: nn.Module, note: Note = tell) -> tuple[Best, dict[str, Tensor]] | None:
    """Return the best that `compared=False` gives in `read_best`, and their weights, on the CPU."""
    weights: dict[str, Tensor] = {}

    def load(path: Path) -> dict[str, str]:
        found, metadata = read_weights(agent, path)
        weights.update(found)
        return metadata

    best = _best(_best_path(run_dir, compared=False), load, note)
    return None if best is None else (best, weights)


def load_best(run_dir: Path, agent: nn.Module, note: Note = tell) -> Best | None:
    """Load the best weights into `agent`; return which they are, or None where there are none. See `read_best`.

    Raises:
        MerlinError: They are of another agent.
    """
    return _best(_best_path(run_dir, compared=True), lambda path: load_weights(agent, path), note)


def _newest_intact(run_dir: Path, load: Callable[[Path], Found], note: Note) -> Found:
    """Return what `load` makes of the last checkpoint that is not damaged."""
    found = steps(run_dir)[::-1]
    if not found and (model := Path(run_dir) / MODEL).exists():
        raise MerlinError(
            f"{run_dir} is an exported agent, whose {model.name} must be whole, and is all there is: "
            "take its best weights, or export it again."
        )
    if not found:
        raise MerlinError(f"{run_dir} has no checkpoint yet: {resuming(run_dir)} trains it from the beginning")
    for directory, before in zip(found, [*found[1:], None], strict=True):
        try:
            return load(directory)
        except Damaged as error:
            if before is None:
                raise MerlinError(
                    f"{error}, and no earlier checkpoint is intact: restore it, or delete {directory.parent} and "
                    f"resume, which trains from the beginning"
                ) from error
            note(f"{error}: the checkpoint before it is taken, {before.name}")
    raise AssertionError("the last one was returned or told of")


def _best_path(run_dir: Path, compared: bool) -> Path:
    """Return the file of the best weights, or of the best but for comparisons, whether or not it is there."""
    if (model := Path(run_dir) / MODEL).exists():
        return model
    best = Path(run_dir) / "checkpoints" / _BEST
    kept = best.with_name(_BEST_IN_TRAINING)
    with suppress(Damaged):
        if compared or not kept.exists() or read_metadata(best).get("chosen_by") not in AT_END:
            return best
    return kept


def _best(path: Path, load: Callable[[Path], dict[str, str]], note: Note) -> Best | None:
    if not path.exists():
        return None
    try:
        metadata = load(path)
        counts = (int(metadata[name]) if name in metadata else None for name in ("episodes", "chosen_at"))
        return Best(int(metadata["step"]), float(metadata["score"]), metadata.get("chosen_by"), *counts)
    except (KeyError, ValueError):
        note(f"{unreadable(path, 'weights with their step and score')}: the last checkpoint is taken")
    except Damaged as error:
        note(f"{error}: the last checkpoint is taken")
    return None


def _load_rest(directory: Path) -> dict[str, Any]:
    path, expected = directory / _REST, read_metadata(directory / _WEIGHTS).get("trainer_sha256")
    try:
        if expected is not None and sha256_of(path) != expected:
            raise Damaged(changed(path))
        # What torch.save writes is not compressed: a file that holds more than its size is made to fill the memory.
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise Damaged(f"{path} holds more than its size, which no checkpoint does")
        rest = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except Exception as error:  # torch.load reports a damaged file by half a dozen types
        raise Damaged(unreadable(path, "the training state")) from error
    if not isinstance(rest, dict):
        raise Damaged(unreadable(path, "the training state"))
    return rest


def _write_rest(path: Path, plain: Any) -> str:
    """Write the training state, and return its checksum."""
    digest = ""

    def write(file: BinaryIO) -> None:
        nonlocal digest
        hashing = HashingFile(file)
        torch.save(plain, cast(BinaryIO, hashing))
        digest = hashing.hexdigest()

    write_flushed(path, write)
    return digest


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _free(path: Path) -> Path:
    """Return the path, or one like it that nothing has yet."""
    while path.exists():
        path = path.with_name(f"{path.name}-again")
    return path


def _prepare(run_dir: Path) -> Path:
    """Return the directory of checkpoints."""
    directory = Path(run_dir) / "checkpoints"
    with _explain_failure(run_dir, directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _explain_failure(run_dir: Path, final: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn a full disk and its like into one sentence, and remove what was half written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        if temporary is not None:
            remove(temporary)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]
        last = steps(run_dir)[-1:]
        intact = f"{last[0].name} is intact, resume" if last else "start again"
        raise MerlinError(
            f"could not write {final} ({reason}): mend that; {intact} with {resuming(run_dir)}"
        ) from error
