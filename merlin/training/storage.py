"""Files that a kill, a full disk, a flipped bit or a stranger cannot turn into something else."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from merlin.errors import MerlinError

MAX_JSON_BYTES = 2**26
"""A configuration or a row of metrics that is longer is none of ours: 64 MiB."""


class Damaged(MerlinError):
    """A file is not what was written; the message says which file and what is wrong with it."""


class HashingFile:
    """A file that is written from the beginning to the end, and the SHA-256 of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, or what has them."""
        self._sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand on what was written."""
        self._file.flush()

    def hexdigest(self) -> str:
        """Return the checksum of all that was written."""
        return self._sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hidden(path: Path) -> Path:
    """Return a name beside `path` that nobody else takes and no reader looks at."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def write_flushed(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file, which is on the disk when this returns."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file of which every reader sees the old content or the new one, wherever this is cut short."""
    temporary = hidden(path)
    try:
        write_flushed(temporary, write)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except Exception:
        remove(temporary)
        raise


def flush_directory(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    if os.name != "nt":  # Windows cannot open a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def parse_json(data: bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is none, is too long, or is nested too deeply.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is longer than {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file says. Raises: see `parse_json`; and OSError."""
    with open(path, "rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1))


def unreadable(path: Path, what: str) -> str:
    return f"{path} must hold {what}, but it is missing, truncated or of another kind"


def changed(path: Path) -> str:
    return f"{path} does not match its checksum"
