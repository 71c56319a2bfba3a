"""Checkpoints that survive a kill at any moment: written under another name, flushed, then renamed.

    RUN_DIR/checkpoints/step-000000001234/agent.safetensors   weights
                                          trainer.pt          everything else; loads with weights_only=True
    RUN_DIR/checkpoints/best.safetensors                      weights of the best evaluation; step, score as metadata

A name that starts with "." is unfinished or on its way out: never read, removed by the next save.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from merlin.errors import MerlinError

_STEP = re.compile(r"step-(\d{12,})")
_WEIGHTS, _REST = "agent.safetensors", "trainer.pt"


class Best(NamedTuple):
    """When the best weights were saved, and how they scored."""

    step: int
    score: float


def save(run_dir: Path, step: int, agent: nn.Module, rest: Mapping[str, Any], keep: int = 3) -> Path:
    """Write a checkpoint, drop all but the last `keep`, and return its directory.

    A step that is already there is left as it is: the same run at the same step has the same state.

    Args:
        rest: Any tree that `to_plain` takes; `load_latest` returns it plain, and `from_plain` restores NamedTuples.
    """
    directory = _prepare(run_dir)
    final = directory / f"step-{step:012d}"
    if not final.exists():
        temporary = directory / f".{final.name}"
        weights, plain = safetensors.torch.save(_weights(agent)), to_plain(rest)
        with _explain_failure(run_dir, final, temporary):
            temporary.mkdir()
            _write(temporary / _WEIGHTS, lambda file: file.write(weights))
            _write(temporary / _REST, lambda file: torch.save(plain, file))
            _flush_directory(temporary)
            os.rename(temporary, final)
            _flush_directory(directory)
    for old in steps(run_dir)[:-keep]:
        # Removing a directory takes many system calls; renamed first, it is never seen half removed.
        shutil.rmtree(old.rename(directory / f".{old.name}"), ignore_errors=True)
    return final


def save_best(run_dir: Path, step: int, score: int | float, agent: nn.Module) -> Path:
    """Replace `best.safetensors` by the agent's weights, and return its path."""
    directory = _prepare(run_dir)
    final, temporary = directory / "best.safetensors", directory / ".best.safetensors"
    weights = safetensors.torch.save(_weights(agent), {"step": str(step), "score": repr(float(score))})
    with _explain_failure(run_dir, final, temporary):
        _write(temporary, lambda file: file.write(weights))
        os.replace(temporary, final)
        _flush_directory(directory)
    return final


def steps(run_dir: Path) -> list[Path]:
    """Return the directories of all finished checkpoints, oldest first."""
    found = (Path(run_dir) / "checkpoints").glob("step-*")
    return sorted((path for path in found if _STEP.fullmatch(path.name)), key=_step)


def last_step(run_dir: Path) -> int | None:
    """Return the environment steps of the last checkpoint; None where there is none."""
    found = steps(run_dir)
    return _step(found[-1]) if found else None


def load_latest(run_dir: Path, agent: nn.Module) -> tuple[int, dict[str, Any]]:
    """Load the last checkpoint's weights into `agent`; return its step and the rest, its tensors on the CPU."""
    found = steps(run_dir)
    if not found:
        raise MerlinError(f"{run_dir} has no checkpoint to resume from: start a new run in another directory")
    last = found[-1]
    before = found[-2].name if len(found) > 1 else None
    instead = f"delete {last} to resume from {before}" if before else f"delete {run_dir} and start again"
    load_weights(agent, last / _WEIGHTS, instead)
    return _step(last), _load_rest(last, instead)


def read_wall_seconds(run_dir: Path) -> float:
    """Return the training time at the last checkpoint; 0 where there is none."""
    found = steps(run_dir)
    return _load_rest(found[-1], f"delete {found[-1]}")["wall_seconds"] if found else 0.0


def _load_rest(directory: Path, instead: str) -> dict[str, Any]:
    try:
        rest = torch.load(directory / _REST, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load reports a damaged file by half a dozen types
        raise MerlinError(_unreadable(directory / _REST, "the training state", instead)) from error
    if not isinstance(rest, dict):
        raise MerlinError(_unreadable(directory / _REST, "the training state", instead))
    return rest


def read_best(run_dir: Path) -> Best | None:
    """Return when the best weights were saved and how they scored, without loading them; None where there are none."""
    path = Path(run_dir) / "checkpoints" / "best.safetensors"
    if not path.exists():
        return None
    instead = f"delete {path} to go on without it"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
        return Best(int(metadata["step"]), float(metadata["score"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MerlinError(_unreadable(path, "weights with their step and score", instead)) from error


def load_best(run_dir: Path, agent: nn.Module) -> Best | None:
    """Load the best weights into `agent`; return their step and score, or None where there are none."""
    path = Path(run_dir) / "checkpoints" / "best.safetensors"
    if not path.exists():
        return None
    instead = f"delete {path} to use the last checkpoint"
    metadata = load_weights(agent, path, instead)
    if not {"step", "score"} <= metadata.keys():
        raise MerlinError(_unreadable(path, "weights with their step and score", instead))
    return Best(int(metadata["step"]), float(metadata["score"]))


def load_weights(
    agent: nn.Module, path: Path, instead: str = "take the file of a run with the same settings"
) -> dict[str, str]:
    """Load a safetensors file into `agent` and return the file's metadata.

    Args:
        instead: What to do where that fails; ends the message.

    Raises:
        MerlinError: The file cannot be read, or its names and shapes are not the agent's.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise MerlinError(_unreadable(path, "the agent's weights", instead)) from error
    difference = _first_difference(weights, agent.state_dict())
    if difference:
        raise MerlinError(f"{path} is of another agent or other settings, {difference}: {instead}")
    agent.load_state_dict(weights)
    return metadata


@runtime_checkable
class _Named(Protocol):
    """A NamedTuple."""

    _fields: tuple[str, ...]

    def _asdict(self) -> dict[str, Any]: ...


def to_plain(tree: Any) -> Any:
    """Return the tree with NamedTuples as dicts and tensors detached and compact: what `weights_only=True` loads."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()  # a view would be stored with all of its storage
    if isinstance(tree, _Named):
        return {name: to_plain(value) for name, value in tree._asdict().items()}
    if isinstance(tree, Mapping):
        return {name: to_plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_plain(value) for value in tree)
    if isinstance(tree, float):
        return float(tree)  # NumPy's float64 is a float that weights_only refuses
    assert tree is None or type(tree) in (bool, int, str, bytes), f"a checkpoint cannot hold a {type(tree).__name__}"
    return tree


def from_plain(plain: Any, template: Any, path: str = "state") -> Any:
    """Return `plain` in the shape of `template`: the inverse of `to_plain`, tensors on the template's devices.

    Raises:
        MerlinError: A name is missing or a tensor has another shape, as when the number of environments was changed.
    """
    if isinstance(template, Tensor):
        if not isinstance(plain, Tensor) or plain.shape != template.shape:
            came = list(plain.shape) if isinstance(plain, Tensor) else type(plain).__name__
            raise _foreign(path, f"have shape {list(template.shape)} and has {came}")
        return plain.to(template.device, template.dtype)
    if isinstance(template, _Named):
        return type(template)(**_each(plain, template._asdict(), path))
    if isinstance(template, Mapping):
        return _each(plain, template, path)
    if isinstance(template, list | tuple):
        return type(template)(_each(dict(enumerate(plain)), dict(enumerate(template)), path).values())
    return plain


def _each(plain: Any, template: Mapping, path: str) -> dict:
    if not isinstance(plain, Mapping) or plain.keys() != template.keys():
        came = ", ".join(map(str, plain)) if isinstance(plain, Mapping) else type(plain).__name__
        raise _foreign(path, f"hold {', '.join(map(str, template))} and holds {came}")
    return {name: from_plain(plain[name], value, f"{path}.{name}") for name, value in template.items()}


def _foreign(path: str, what: str) -> MerlinError:
    return MerlinError(f"the checkpoint's {path} must {what}: resume with the settings that the run began with")


def _first_difference(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    for name, tensor in wanted.items():
        if name not in weights:
            return f"it lacks {name!r}"
        if weights[name].shape != tensor.shape:
            return f"{name!r} must have shape {list(tensor.shape)} and has {list(weights[name].shape)}"
    unknown = [name for name in weights if name not in wanted]
    return f"it holds {unknown[0]!r}, which the agent lacks" if unknown else None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _weights(agent: nn.Module) -> dict[str, Tensor]:
    # Each its own contiguous copy: safetensors refuses tensors that share storage, as tied weights do.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in agent.state_dict().items()
    }


def _prepare(run_dir: Path) -> Path:
    """Return the directory of checkpoints, free of what an interrupted save left behind."""
    directory = Path(run_dir) / "checkpoints"
    with _explain_failure(run_dir, directory):
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".*"):
            _remove(leftover)
    return directory


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(directory: Path) -> None:
    if os.name != "nt":  # Windows cannot open a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _explain_failure(run_dir: Path, final: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn a full disk and its like into one sentence, and remove what was half written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        if temporary is not None:
            _remove(temporary)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]
        last = steps(run_dir)[-1:]
        again = f"{last[0].name} is intact, resume with `merlin train --resume {run_dir}`" if last else "start again"
        raise MerlinError(f"could not write {final} ({reason}): mend that; {again}") from error


def _unreadable(path: Path, what: str, instead: str) -> str:
    return f"{path} must hold {what}, but it is missing, truncated or of another kind: {instead}"
