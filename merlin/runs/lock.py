"""One process at a time writes to a run directory: a lock that the system releases however the process ends."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from merlin.errors import MerlinError, obstacle

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[int] = set()


@contextmanager
def alone_in(run_dir: Path, note: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Keep other processes from writing to a run directory, which exists; yield what tells whether this one still may.

    The lock is `RUN_DIR/.lock`, which names the process. Where the file system, or Windows, has none, `note` is told.

    Raises:
        MerlinError: Another process has the lock, or the directory cannot be written.
    """
    path = run_dir / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise MerlinError(
            f"The run directory {run_dir} must be writable, but {obstacle(error)}: choose another, or mend that."
        ) from error
    _held.add(descriptor)
    try:
        _lock(descriptor, run_dir, note)
        name = f"process {os.getpid()} on {socket.gethostname()}".encode()
        with suppress(OSError):  # on a full disk the lock holds as well
            os.truncate(path, 0)
            os.write(descriptor, name)

        def is_ours() -> bool:
            try:
                return path.read_bytes() in (name, b"")
            except OSError:
                return not path.exists()  # whoever removes it means no harm

        yield is_ours
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path, note: Callable[[str], object]) -> None:
    if fcntl is None:
        note(f"files are not locked here: see to it that no other process trains in {run_dir}")
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        raise MerlinError(
            f"One process at a time trains in a run directory, and {who} does in {run_dir}: "
            f"wait until it has ended, or end it."
        ) from error
    except OSError as error:
        note(f"the file system has no locks ({obstacle(error)}): see to it that no other process trains in {run_dir}")


def _let_go() -> None:
    """Close the locks that a forked process has inherited, which would outlive this one in it."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
