"""Environments in worker processes, none of which is waited for without end, and none of which stays behind."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker

from merlin.errors import EnvironmentFailure, MerlinError, describe_with_place

LOOK_SECONDS = 0.25
"""Between looks at whether the run is to end, while a worker is waited for."""
INTERRUPTED_SECONDS = 2.0
"""That a worker has left to answer when the run is to end."""
CLOSE_SECONDS = 10.0
"""That environments have to close themselves, as those do that write a film at last."""
DYING_SECONDS = 2.0
"""That a process has to end when it is told to, before it is killed."""


class WorkerFailure(Exception):
    """What ended a worker, in a line; its cause has the worker's traceback."""


class Workers(AsyncVectorEnv):
    """A batch of environments, each in a process of its own, which begins the next episode in the same step.

    Attributes:
        is_interrupted: Whether the run is to end, so that workers which do not answer are given up within seconds.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int, step_seconds: float | None):
        """
        Args:
            step_seconds: How long one answer may take.

        Raises:
            WorkerFailure: A worker ended or did not answer while it built its environment.
        """
        self.is_interrupted: Callable[[], bool] = lambda: False
        self._failures: SimpleQueue = multiprocessing.SimpleQueue()
        self._step_seconds = step_seconds
        self._pollers: list[Callable[[float], Any]] = []
        # The kernel ends a worker with the thread that started it: only of the main thread is that what is wanted.
        ends_with = threading.current_thread() is threading.main_thread() and _forks()
        parent = os.getpid() if ends_with else None
        try:
            super().__init__(
                [make] * num_envs,
                copy=False,  # `Environment` copies, once
                autoreset_mode=AutoresetMode.SAME_STEP,
                worker=partial(run_worker, self._failures, parent),
            )
        except BaseException as error:
            failure = self.failure(error)
            self.closed = True
            end(getattr(self, "processes", []))
            raise failure from failure.__cause__

    def failure(self, error: BaseException) -> BaseException:
        """Return what `error` is about: what ended a worker, if one ended, otherwise `error` itself."""
        if not self._failures.empty():
            index, reason, is_sentence, trace = self._failures.get()
            where = f" (environment {index})"
            told = EnvironmentFailure(f"{reason[:-1]}{where}.") if is_sentence else WorkerFailure(reason + where)
            told.__cause__ = RuntimeError(f"in the worker of environment {index}:\n{trace}")
            return told
        if not isinstance(error, EOFError | OSError):
            return error
        processes = getattr(self, "processes", [])
        closed = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=2)
        for index, process in enumerate(processes):
            if process.sentinel in closed:
                process.join(2)  # a dying process closes its files a moment before it has an exit code
                code = process.exitcode or 0
                how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                failure = WorkerFailure(f"the worker process of environment {index} {how}")
                failure.__cause__ = error
                return failure
        return error

    def _check_spaces(self) -> None:
        self._pollers = [_poller(pipe) for pipe in self.parent_pipes]
        spaces = (self.observation_mode, self.single_observation_space, self.single_action_space)
        for pipe in self.parent_pipes:
            pipe.send(("_check_spaces", spaces))
        self._poll_pipe_envs()
        for index, pipe in enumerate(self.parent_pipes):
            answer, _ = pipe.recv()
            if not all(answer):
                raise MerlinError(
                    f"All environments of a task must have the same spaces, but those of environment {index} differ: "
                    "correct its constructor."
                )

    def _poll_pipe_envs(self, timeout: float | None = None) -> bool:
        """Return once every worker has answered or ended; what asks for an answer calls this first."""
        self._assert_is_running()
        begin, interrupted_at = time.monotonic(), None
        for index, poll in enumerate(self._pollers):
            while not poll(LOOK_SECONDS if timeout is None else min(timeout, LOOK_SECONDS)):
                now = time.monotonic()
                if timeout is not None and now - begin >= timeout:
                    return False
                if self._step_seconds is not None and now - begin >= self._step_seconds:
                    raise WorkerFailure(
                        f"environment {index} did not answer for {self._step_seconds:g} seconds, which "
                        "environment.step_seconds allows"
                    )
                if self.is_interrupted():
                    interrupted_at = interrupted_at or now
                    if now - interrupted_at >= INTERRUPTED_SECONDS:
                        raise WorkerFailure(f"environment {index} did not answer when the run was to end")
        return True

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the workers within seconds: those that wait close their environments first."""
        if not terminate:
            for pipe in self.parent_pipes:
                with suppress(OSError, EOFError):  # its worker is dead
                    pipe.send(("close", None))
            _wait(self.processes, CLOSE_SECONDS)
        end(self.processes)
        for pipe in self.parent_pipes:
            pipe.close()


def end(processes: Sequence[BaseProcess]) -> None:
    """End processes, and what they have started, within seconds, whatever they are doing."""
    started = {process.pid: process for process in processes if process.pid}
    for process in started.values():
        process.terminate()
    _wait(processes, DYING_SECONDS)
    for pid, process in started.items():
        with suppress(OSError, AttributeError):  # its group is gone, or this is Windows
            os.killpg(pid, signal.SIGKILL)
        process.kill()
        process.join()


def run_worker(
    failures: SimpleQueue,
    parent: int | None,
    index: int,
    env_fn: Any,
    pipe: Any,
    parent_pipe: Any,
    memory: Any,
    _: Any,
    *rest: Any,
) -> None:
    """Run one environment in a process of its own, as `AsyncVectorEnv` does.

    A failure goes to `failures` as (index, one line, whether it is a sentence, traceback), and the worker ends:
    whatever ends a worker, the other side sees its pipe close. (gymnasium's own worker waits for ever with an exception
    that cannot be pickled.)

    Args:
        parent: The process that this one ends with, where the kernel can see to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which closes the workers in its own time
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler inherited from the trainer would keep the worker alive
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # what the environment starts, as a game's server, is ended with it
    _end_with(parent)
    torch.set_num_threads(1)  # the workers share the cores
    random.seed(index)  # environments that draw from global generators would all draw the same
    np.random.seed(index)
    try:
        # of the queue that gymnasium's annotation asks for, it uses only `put`
        _async_worker(index, env_fn, pipe, parent_pipe, memory, _RaisedAgain(), *rest)  # pyright: ignore[reportArgumentType]
    except BaseException as error:  # sys.exit() too
        is_sentence = isinstance(error, MerlinError)
        reason = str(error) if is_sentence else describe_with_place(error)
        with suppress(OSError):  # the environment has closed files that it did not open
            failures.put((index, reason, is_sentence, traceback.format_exc()[-8000:]))


class _RaisedAgain:
    """Stands in for the queue in which gymnasium's worker puts the exception that it is handling."""

    def put(self, failure: tuple) -> None:
        raise


def _forks() -> bool:
    return multiprocessing.get_start_method() == "fork"


def _end_with(parent: int | None) -> None:
    """Let Linux kill this process when its parent ends, however that ends and whatever this one is doing.

    Elsewhere a worker sees its pipe close, unless it hangs.
    """
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def _poller(pipe: Any) -> Callable[[float], Any]:
    """Return what waits for some seconds, and returns something true once there is an answer in the pipe."""
    if not hasattr(select, "poll"):  # Windows
        return pipe.poll
    poll = select.poll()  # a tenth of the cost of `pipe.poll`
    poll.register(pipe, select.POLLIN)
    return lambda seconds: poll.poll(1000 * seconds)


def _wait(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Return when all processes have ended, or after some seconds."""
    left, until = {process.sentinel for process in processes if process.pid}, time.monotonic() + seconds
    while left and (remaining := until - time.monotonic()) > 0:
        left -= {*multiprocessing.connection.wait(list(left), remaining)}  # pyright: ignore[reportArgumentType]
