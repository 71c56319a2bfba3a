"""The runs of a comparison as processes, some at a time: started, watched, ended without loss."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from merlin.errors import MerlinError, counted, obstacle
from merlin.experiments.spec import RESULT, Comparison, Run, last_metrics
from merlin.runs.run import interrupts, resolve_device
from merlin.training import checkpoint

POLL_SECONDS = 0.2


def compare(
    runs: Sequence[Run],
    comparison: Comparison,
    *,
    jobs: int | None = None,
    wandb: str = "disabled",
    import_from: Path | None = None,
    device: str = "auto",
    stream: TextIOBase | TextIO | None = None,
) -> list[str]:
    """Train and evaluate what was not yet, and return the failures, a sentence for each run that failed.

    Run again after an interruption or a failure, it goes on where it was. Each run directory is that of a usual run,
    with `evaluation.json` besides.

    Args:
        runs: Those of `plan`.
        jobs: Runs at a time; as many as there are cores unless given.
        wandb: auto, online, offline or disabled.
        import_from: Where the modules of tasks and agents lie that are not installed.
        device: Where the agents run: auto, cpu or cuda.
        stream: Where progress is shown; standard error unless told.

    Raises:
        KeyboardInterrupt: All runs that were training have written checkpoints.
    """
    shown: TextIOBase | TextIO = sys.stderr if stream is None else stream
    most = jobs or _default_jobs(runs, device)
    with _alone_in(runs[0].run_dir.parent) as lock:
        return _compare(
            runs,
            comparison.memory,
            lambda run: RunProcess(run, comparison.memory, wandb, import_from, device, lock),
            most,
            shown,
        )


def _compare(
    runs: Sequence[Run],
    memory: Sequence[str],
    start: Callable[[Run], "RunProcess"],
    jobs: int,
    stream: TextIOBase | TextIO,
) -> list[str]:
    waiting = [run for run in runs if run.missing(memory)]
    total = sum(run.config().steps for run in waiting)
    running: list[RunProcess] = []
    failures: list[str] = []
    with (
        tqdm(total=total, unit=" steps", unit_scale=True, file=stream, disable=not stream.isatty()) as bar,
        interrupts() as interrupted,
    ):

        def note(text: str) -> None:
            tqdm.write(text, file=stream)

        done = len(runs) - len(waiting)
        note(f"{counted(len(runs), 'run')}, {done} of them done; {min(jobs, len(waiting))} at a time")
        over = 0
        try:
            while (waiting or running) and not interrupted:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    try:
                        running.append(start(run))
                    except MerlinError as error:
                        failures.append(f"{run.name}: {error}")
                        note(f"[{len(runs) - len(waiting) - len(running)}/{len(runs)}] {failures[-1]}")
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if not job.goes_on()]:
                    running.remove(job)
                    over += job.run.config().steps
                    if job.failure is not None:
                        failures.append(f"{job.run.name}: {job.failure}")
                    number = len(runs) - len(waiting) - len(running)
                    note(f"[{number}/{len(runs)}] {job.run.name}: {job.failure or job.outcome()}")
                bar.n = over + sum(job.env_steps() for job in running)
                bar.refresh()
        finally:
            if running:
                note(f"waiting for {counted(len(running), 'run')} to save: the same command goes on from there")
            _end(running)
        if interrupted:
            raise KeyboardInterrupt
    return failures


@contextmanager
def _alone_in(directory: Path) -> Iterator[int]:
    """Keep a second comparison out of a directory, for as long as the descriptor is open here or in a run."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "w", encoding="utf-8")
    except OSError as error:
        raise MerlinError(
            f"{directory} must be a directory to write into, but {obstacle(error)}: choose another --out."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MerlinError(
                f"Another comparison, or runs that it left behind, is at work in {directory}: "
                f"wait for it, or choose another --out."
            ) from error
        yield file.fileno()


def _end(jobs: Sequence["RunProcess"]) -> None:
    """Let runs write their checkpoints and end, all at once; whoever interrupts that kills them."""
    try:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.process.wait()
    finally:
        for job in jobs:
            job.process.kill()
            job.process.wait()
            job.output.unlink(missing_ok=True)


class RunProcess:
    """The processes of one run, one after the other: training, then its evaluations."""

    def __init__(
        self, run: Run, memory: Sequence[str], wandb: str, import_from: Path | None, device: str, lock: int
    ) -> None:
        self.run, self.lock, self.failure = run, lock, None
        self.common = ["--device", device, *([] if import_from is None else ["--import-from", str(import_from)])]
        self.waiting = run.missing(memory)
        self.log = run.run_dir.with_name(f"{run.run_dir.name}.log")
        self.output = run.run_dir.with_name(f".{run.run_dir.name}.out")
        self.evaluating: str | None = None
        self.left_out: list[str] = []  # ablations that are not for this memory
        if self.waiting[0] != "own":  # what was evaluated is trained, whatever is left of its checkpoints
            self._evaluate(self.waiting.pop(0))
            return
        begin = ["--resume", str(run.run_dir)]
        if not checkpoint.steps(run.run_dir):
            # Whatever ended before its first checkpoint begins anew.
            shutil.rmtree(run.run_dir, ignore_errors=True)
            begin = [*run.arguments(), "--run-dir", str(run.run_dir)]
        if run.conditions["max_seconds"] is not None:
            # A run whose time is over, but for its evaluation, ends at once.
            left = run.conditions["max_seconds"] - checkpoint.read_wall_seconds(run.run_dir)
            begin += ["--max-seconds", str(max(left, 1e-3))]
        self._start("train", *begin, "--wandb", wandb)

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "merlin", *arguments, *self.common]
        with open(self.log, "a", encoding="utf-8") as log, open(self.output, "w", encoding="utf-8") as output:
            log.write(f"{shlex.join(command)}\n")
            log.flush()
            # A session of its own: Ctrl-C is for this process, which asks each run once to end.
            self.process = subprocess.Popen(
                command, stdout=output, stderr=log, start_new_session=True, pass_fds=[self.lock]
            )

    def goes_on(self) -> bool:
        """Look after the run and return whether it is still on its way."""
        status = self.process.poll()
        if status is None:
            return True
        printed = self.output.read_text(encoding="utf-8")
        self.output.unlink()
        if status:
            lines = self.log.read_text(encoding="utf-8").strip().splitlines()
            self.failure = f"failed with status {status}, see {self.log}: {lines[-1]}"
            return False
        if self.evaluating is None:
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(printed)
        else:
            try:
                found = json.loads(printed.strip().splitlines()[-1])  # tasks may have printed before
            except (ValueError, IndexError):
                self.failure = f"was evaluated, but printed no result: {printed[-200:]!r}"
                return False
            step = {"checkpoint_step": checkpoint.last_step(self.run.run_dir)}
            result = self.run.result() or found | self.run.conditions | step  # own comes first
            if found["episode_return_mean"] is None:
                most = found["max_steps"]
                self.failure = f"was evaluated, but none of its episodes ended within {most:,} steps: it has no score"
                return False
            if self.evaluating == "own":
                self.waiting, asked = [x for x in self.waiting if x in found["ablations"]], self.waiting
                self.left_out = [x for x in asked if x not in self.waiting and found["ablations"]]
            else:
                result[self.evaluating] = found["episode_return_mean"]
                unfinished = result.get("unfinished_episodes", 0) + found.get("unfinished_episodes", 0)
                result |= {"unfinished_episodes": unfinished} if unfinished else {}
            temporary = self.run.run_dir / f".{RESULT}"
            temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
            os.replace(temporary, self.run.run_dir / RESULT)
        if not self.waiting:
            return False
        self._evaluate(self.waiting.pop(0))
        return True

    def _evaluate(self, memory: str) -> None:
        self.evaluating = memory
        conditions, directory = self.run.conditions, str(self.run.run_dir)
        episodes, which = str(conditions["episodes"]), conditions["checkpoint"]
        self._start("evaluate", directory, "--checkpoint", which, "--episodes", episodes, "--memory", memory, "--json")

    def env_steps(self) -> int:
        """Return how far the run got."""
        return int(self._last("env_steps"))

    def outcome(self) -> str:
        """Return how well the run ended, in a line."""
        result = self.run.result() or {}
        success = f", success {result['success_rate']:.0%}" if "success_rate" in result else ""
        if unfinished := result.get("unfinished_episodes"):
            success += f", {counted(unfinished, 'episode')} given up unfinished"
        if self.left_out:
            success += f", its memory cannot be {' or '.join(self.left_out)}"
        return (
            f"return {result['episode_return_mean']:.2f}{success} after {self.env_steps():,} steps, "
            f"{self._last('wall_seconds'):,.0f} s"
        )

    def _last(self, name: str) -> float:
        return float(last_metrics(self.run.run_dir).get(name, 0.0))


def _default_jobs(runs: Sequence[Run], device: str) -> int:
    """Return how many runs the cores bear; one where they would share a GPU."""
    if resolve_device(device).type == "cuda":
        return 1
    configs = [run.config() for run in runs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(config.training.num_threads for config in configs))
