"""The runs of a comparison in the process of the tests: the same commands, without seconds of imports for each."""

from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from merlin.cli import main
from merlin.experiments import launcher


class Called:
    """What `subprocess.Popen` returns, of a command that has ended."""

    def __init__(self, command, *, stdout, stderr, start_new_session, pass_fds):
        python, *module = command[:3]
        assert python and module == ["-m", "merlin"] and start_new_session and pass_fds
        with redirect_stdout(stdout), redirect_stderr(stderr):
            self.returncode = main(command[3:])

    def poll(self):
        return self.returncode


def call_runs_in_process(monkeypatch) -> None:
    """Let comparisons call their runs here, one after another."""
    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(Popen=Called))
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.0)
