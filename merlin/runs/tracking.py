"""Weights & Biases, kept where it can do no harm: in a process of its own.

The run hands its messages to a thread, through a queue that drops rather than waits; the thread writes them to the
process; the process alone imports wandb. It has no terminal, so nothing can ask a question; an unreachable server, a
failing wandb, its exit handlers and its output stay in there. What the user should know comes back as single lines.
That wandb failed is told once, however it did: in its own words, or by how its process ended.

Run as a script this file is that process, so it imports nothing of the package.
"""

import contextlib
import io
import json
import netrc
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_QUEUE_SIZE = 1_000
_FAILURE = "!"  # begins a line that tells of a failure


class Tracker:
    """One run of wandb. No method waits, raises or asks, except that `close` may wait `close_seconds`."""

    def __init__(
        self,
        mode: str,
        run_dir: Path,
        config: Mapping[str, Any],
        name: str | None = None,
        group: str | None = None,
        *,
        note: Callable[[str], None],
        close_seconds: float = 10.0,
    ):
        """Start wandb, unless `mode` says otherwise.

        Args:
            mode: auto, online, offline or disabled. `auto` takes the environment's WANDB_MODE or, without it, is
                online where the user has logged in and disabled where not.
            note: Receives each line that the user should read, from any thread.
        """
        self._note, self._close_seconds = note, close_seconds
        self._process: subprocess.Popen | None = None
        self._dropped, self._has_failed = 0, False
        polite = mode == "auto"  # nobody asked for wandb, so its absence is no failure
        if polite:
            mode = os.environ.get("WANDB_MODE", "online" if may_be_logged_in() else "")
            if not mode:
                note(_invitation())
        if mode not in ("online", "offline"):
            return
        try:
            run_id = _run_id(Path(run_dir))
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],  # -P: the modules beside this one must not hide others of their name
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the trainer; and no terminal means no prompt
                env={**os.environ, "WANDB_MODE": mode, "WANDB_SILENT": "true"},
            )
        except (OSError, ValueError) as error:  # ValueError: what is in the file of the run's name is no text
            note(f"wandb is off for this run: {error}")
            return
        self._queue: queue.Queue[dict | None] = queue.Queue(_QUEUE_SIZE)
        self._send({
            "argv": sys.argv, "directory": str(run_dir), "id": run_id, "mode": mode, "name": name, "group": group,
            "config": dict(config), "invitation": _invitation() if polite else None,
        })  # fmt: skip
        self._threads = [
            threading.Thread(target=self._write, args=[self._process.stdin], daemon=True),
            threading.Thread(target=self._read, args=[self._process.stdout, self._process], daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_on(self) -> bool:
        """Whether anything is logged at all."""
        return self._process is not None and self._process.poll() is None

    def log(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Log metrics at this many environment steps."""
        self._send({"metrics": {**metrics, "env_steps": step}})

    def log_media(self, path: Path, key: str) -> None:
        """Log a picture, a video or a page; its kind goes by the file's ending."""
        self._send({"media": str(path), "key": key})

    def close(self, exit_code: int = 0) -> None:
        """Finish the run, and give up on what could not be sent in time.

        Args:
            exit_code: 0 marks the run as finished, anything else as failed.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        deadline = time.monotonic() + self._close_seconds
        try:
            for message in ({"exit_code": exit_code}, None):
                self._queue.put(message, timeout=max(0.0, deadline - time.monotonic()))
            process.wait(max(0.0, deadline - time.monotonic()))
        except (queue.Full, subprocess.TimeoutExpired):
            self._has_failed, has_failed = True, self._has_failed  # how the process ends is told here
            process.kill()  # wandb's own helper process ends with it
            process.wait()
            if not has_failed:
                self._note(
                    f"wandb had not finished after {self._close_seconds:g} s and was stopped; the run is complete"
                )
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=1.0)
        for thread in self._threads:
            thread.join(1.0)
        if self._dropped:
            self._note(f"wandb was too slow for {self._dropped} reports; metrics.jsonl has them")

    def _send(self, message: dict) -> None:
        if self._process is not None:
            try:
                self._queue.put_nowait(message)
            except queue.Full:
                self._dropped += 1

    def _write(self, stream: io.TextIOBase) -> None:
        """Pass messages on until the end, or until the process is no longer there to read them."""
        message: dict | None = {}
        with contextlib.suppress(OSError), stream:
            while (message := self._queue.get()) is not None:
                stream.write(json.dumps(message, default=str) + "\n")
                stream.flush()
        while message is not None:  # `_read` tells how the process ended
            message = self._queue.get()

    def _read(self, stream: io.TextIOBase, process: subprocess.Popen) -> None:
        """Pass on what the process tells, until it ends, and then how it did, if that is all there is to tell."""
        with stream:
            for line in stream:
                self._tell(line.strip())
        code = process.wait()
        if code or self._process is not None:  # nobody asked it to end
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self._tell(
                f"{_FAILURE}wandb {how} and is off from here on; the run goes on, and metrics.jsonl has its reports"
            )

    def _tell(self, line: str) -> None:
        if line.startswith(_FAILURE):
            if self._has_failed:
                return
            self._has_failed = True
        self._note(line.removeprefix(_FAILURE))


def may_be_logged_in() -> bool:
    """Whether this user may have wandb credentials, told from the places that wandb looks in, without importing it.

    True is a guess that wandb itself then decides; where this is False, starting it would be a waste.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        # RuntimeError: no home directory. ValueError: the file is no text.
        with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError, ValueError):
            if any(account[2] for account in netrc.netrc(path.expanduser()).hosts.values()):
                return True
    config_dir = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb"))
    for path in (config_dir / "settings", Path("wandb/settings")):
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            if "api_key" in path.expanduser().read_text():
                return True
    return False


def _run_id(run_dir: Path) -> str:
    """Return the run's name on the server, the same whenever the run is resumed."""
    path = run_dir / "wandb_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _invitation() -> str:
    from merlin.errors import option  # which wandb's process does not import

    offline = option("wandb", "offline")
    return f"wandb is off: `wandb login` turns it on, and `{offline}` keeps its files in the run directory"


def _serve(messages: io.TextIOBase, tell: Callable[[str], None]) -> None:
    """Do what the messages say; the first describes the run."""
    start = json.loads(messages.readline())
    sys.argv = start["argv"]  # wandb records the command
    try:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "merlin-agents"),
            id=start["id"],
            resume="allow",
            name=start["name"],
            group=start["group"],
            config=start["config"],
            dir=start["directory"],
            mode=start["mode"],
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
    except Exception as error:
        # The class by name: where it is defined differs between versions of wandb.
        invitation = start["invitation"] if type(error).__name__ == "UsageError" else None
        tell(_FAILURE + (invitation or f"wandb is off for this run: {_one_line(error)}"))
        return
    # Our own axis: a resumed run reports some steps again, which wandb's own step counter would refuse.
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    tell(f"wandb: {run.url}" if run.url else f"wandb: offline, files in {start['directory']}/wandb")
    exit_code = None
    for line in messages:
        message = json.loads(line)
        try:
            if "metrics" in message:
                run.log(message["metrics"])
            elif "media" in message:
                run.log({message["key"]: _media(wandb, message["media"])})
            else:
                exit_code = message["exit_code"]
        except Exception as error:
            tell(f"{_FAILURE}wandb failed to log, and may again: {_one_line(error)}")
    if exit_code is None:  # the trainer was killed; nobody waits for this process any more
        _exit_after(60.0)
    try:
        run.finish(1 if exit_code is None else exit_code)
    except Exception as error:
        tell(f"{_FAILURE}wandb did not finish the run: {_one_line(error)}")


def _media(wandb: Any, path: str) -> Any:
    ending = Path(path).suffix.lower()
    if ending in (".gif", ".mp4", ".webm"):
        return wandb.Video(path, format=ending[1:])
    return wandb.Html(Path(path).read_text()) if ending == ".html" else wandb.Image(path)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def _main() -> None:
    # The one pipe that the trainer reads; whatever wandb or its children print goes nowhere.
    notes = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    messages = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):
            notes.write(line + "\n")

    _serve(messages, tell)


if __name__ == "__main__":
    _main()
