"""Commands of the package, each in a process forked from one that has imported it, and what they leave behind.

Importing takes seconds, more than most commands that `attack.py` and `foreign.py` run. Linux only, for it reads /proc.
"""

import contextlib
import ctypes
import importlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.util import _exit_function
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 180.0
"""Seconds after which a command is given up."""
SLOW_TO_IMPORT = "torch._dynamo matplotlib.pyplot merlin.runs.learning_curve merlin.runs.run merlin.training.play"


def prepare() -> None:
    """Import what commands import, from this tree, and go to its root.

    Not minigrid, though it is slow: its pygame turns segmentation faults into aborts, for all who are forked from here.
    """
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    sys.stdout.reconfigure(line_buffering=True)
    for name in [*SLOW_TO_IMPORT.split(), "merlin.agents.memory_ablation", "merlin.cli"]:
        importlib.import_module(name)


class Command:
    """A command in a process and a session of its own, whose output goes to a file.

    Attributes:
        code: Its exit status, minus a signal's number, None while it runs.
        megabytes: The most memory it held, known at its end.
    """

    def __init__(self, arguments: list, log: Path, before: Callable[[], object] = lambda: None):
        self.log, self.begin = log, time.monotonic()
        self.code: int | None = None
        self.megabytes = 0
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _become([str(argument) for argument in arguments], log, before)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def last_line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip() and not line.startswith("  ")]
        return lines[-1][:300] if lines else "nothing was said"

    def poll(self) -> int | None:
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.megabytes = os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024
        return self.code

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Return the exit status; None if it goes on."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()

    def left_behind(self, seconds: float = 8.0) -> str:
        """Return which processes of its session outlive it for so long, after ending them; nothing if none does."""
        until = time.monotonic() + seconds
        while (alive := _of_session(self.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"{len(alive)} processes left" if alive else ""

    def complaint(self, statuses: tuple[int, ...] = (0, 1, 130), seconds: float = PATIENCE) -> str:
        """Wait, and return how it ended that it should not have; nothing if all is well."""
        if self.wait(seconds) is None:
            self.kill()
            return f"did not end within {seconds:.0f} s"
        sentences = re.findall(r"^merlin(?: \w+)?: (.*)", self.text, re.MULTILINE)
        for bad in ("Traceback (most recent call last)", "unexpected "):
            if bad in self.text:
                return f"{bad!r} in: {self.last_line}"
        if self.code not in statuses:
            return f"status {self.code}: {self.last_line}"
        if self.code in (1, 2) and len(sentences) != 1:
            return f"{len(sentences)} sentences and status {self.code}: {self.last_line}"
        return ""


def _become(arguments: list[str], log: Path, before: Callable[[], object]) -> None:
    """Be the process of a command; never returns."""
    status = 70
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it goes with who started it
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        before()
        from merlin.cli import main

        status = main(arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        _exit_function()  # as an interpreter does at its end: daemons are ended, other children waited for
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z" and int(of) == session:
                found.append(int(path.parent.name))
    return found
