"""Weights as safetensors files that hold their own checksum.

The metadata's `sha256` is the checksum of the file with 64 zeros in its place. It is checked whenever weights are read;
files of version 0.2.0 have none.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from merlin.errors import MerlinError
from merlin.training.storage import Damaged, changed, unreadable

_NO_SUM = "0" * 64
_LATER = re.compile(r"marginal\.\w+$")
"""Buffers that older files lack, and that may begin anew: metrics alone depend on them."""


def load_weights(
    agent: nn.Module, path: Path, instead: str = "take the file of a run with the same settings"
) -> dict[str, str]:
    """Load a safetensors file into `agent` and return the file's metadata. See `read_weights`."""
    weights, metadata = read_weights(agent, path, instead)
    agent.load_state_dict(weights)
    return metadata


def read_weights(
    agent: nn.Module, path: Path, instead: str = "take the file of a run with the same settings"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights for `agent` in a safetensors file, on the CPU, and the file's metadata.

    Args:
        instead: What to do where they are another agent's; ends the message.

    Raises:
        Damaged: The file cannot be read, is not what was written, or holds parameters that are not finite.
        MerlinError: Its names and shapes are not the agent's.
    """
    metadata = read_metadata(path, check=True)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors and PyTorch report a foreign file by half a dozen types
        raise Damaged(unreadable(path, "the agent's weights")) from error
    own = agent.state_dict()
    weights = {name: x for name, x in own.items() if _LATER.search(name)} | weights
    difference = _first_difference(weights, own)
    if difference:
        raise MerlinError(f"{path} is of another agent or other settings, {difference}: {instead}")
    for name, _ in agent.named_parameters():  # a buffer may be infinite until it has seen something
        if weights[name].is_floating_point() and not weights[name].isfinite().all():
            raise Damaged(f"{path} holds weights that are not finite, such as {name!r}")
    return weights, metadata


def write_weights(file: BinaryIO, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights with their checksum: that of the file with zeros in the checksum's place."""
    data = memoryview(safetensors.torch.save(_compact(weights), {**metadata, "sha256": _NO_SUM}))
    header = bytes(data[: _header_length(data)])
    digest = hashlib.sha256(data).hexdigest()
    file.write(header.replace(_seal(_NO_SUM), _seal(digest), 1))
    file.write(data[len(header) :])


def read_metadata(path: Path, check: bool = False) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Args:
        check: Hold the file to its checksum, for which all of it is read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
        # Version 0.2.0 knew step and score alone.
        if check and not metadata.keys() <= {"step", "score"}:
            expected = metadata.get("sha256", "")
            with open(path, "rb") as file:
                length = _header_length(file.read(8))
                file.seek(0)
                found = hashlib.sha256(file.read(length).replace(_seal(expected), _seal(_NO_SUM), 1))
                while chunk := file.read(2**20):
                    found.update(chunk)
            if found.hexdigest() != expected:
                raise Damaged(changed(path))
    except Damaged:
        raise
    except Exception as error:  # see `load_weights`
        raise Damaged(unreadable(path, "the agent's weights")) from error
    return metadata


def _header_length(data: bytes | memoryview) -> int:
    """Return how many bytes of a safetensors file come before its tensors."""
    return 8 + int.from_bytes(data[:8], "little")


def _seal(digest: str) -> bytes:
    """Return a checksum as it stands in the header, in which quotes within texts are escaped."""
    return f'"sha256":"{digest}"'.encode()


def _first_difference(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    for name, tensor in wanted.items():
        if name not in weights:
            return f"it lacks {name!r}"
        if weights[name].shape != tensor.shape:
            return f"{name!r} must have shape {list(tensor.shape)} and has {list(weights[name].shape)}"
    unknown = [name for name in weights if name not in wanted]
    return f"it holds {unknown[0]!r}, which the agent lacks" if unknown else None


def _compact(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Each its own contiguous copy: safetensors refuses tensors that share storage, as tied weights do.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }
