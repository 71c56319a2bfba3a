"""What `attack.py` does to run directories: kills, flipped bits, double resumes, truncations, full disks."""

import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from forked import Command

NOBODY = 65534
ALWAYS = ["--device", "cpu", "--wandb", "disabled"]
SMALL = ["--num-envs", "4", *ALWAYS, "--set", "training.unroll_length=8", "training.minibatches=1"]
SMALL += ["training.report_steps=160", "training.evaluation_steps=480", "training.evaluation_episodes=4"]
TMAZE = ["merlin/TMaze-v0", "--env-kwargs", '{"length": 3}']


class Setup(NamedTuple):
    """A run that is attacked."""

    agent: str
    seed: int
    steps: int
    writes: bool = False
    """Whether it writes a checkpoint after every window."""
    workers: bool = False

    def arguments(self, run_dir: Path) -> list[str]:
        task = ["CartPole-v1", "--vectorization", "async"] if self.workers else TMAZE
        who = ["--agent", self.agent, "--seed", str(self.seed), "--steps", str(self.steps)]
        often = [f"training.checkpoint_seconds={0.001 if self.writes else 0.2}"]
        return ["train", *task, *who, "--run-dir", str(run_dir), *SMALL, *often]


class Attack:
    """What all sections share: the directory, the choices, the verdicts, runs that nobody disturbed."""

    def __init__(self, directory: Path, seed: int, fraction: float):
        self.directory, self.seed, self.fraction = directory, seed, fraction
        self.failures: dict[str, list[str]] = {}
        self.tried: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.section, self.number = "", 0
        self.random = random.Random(seed)
        self.references: dict[Setup, Path] = {}

    def begin(self, section: str) -> None:
        self.section, self.random = section, random.Random(f"{self.seed}{section}")
        self.failures[section], self.tried[section] = [], 0

    def count(self, number: int) -> int:
        return max(1, round(number * self.fraction))

    def fresh(self, name: str = "run") -> Path:
        """Return a path that is not taken yet."""
        self.number += 1
        return self.directory / f"{self.section}-{self.number:03}-{name}"

    def start(self, arguments: list, run_dir: Path, before: Callable[[], object] = lambda: None) -> Command:
        return Command(arguments, run_dir.parent / f"{run_dir.name}.log", before)

    def verdict(self, what: str, complaints: list[str], tried: int = 1) -> None:
        """Count one attack and show it."""
        self.tried[self.section] += tried
        wrong = [complaint for complaint in complaints if complaint]
        if wrong:
            self.failures[self.section].append(f"{what}: {'; '.join(wrong)}")
        held = self.tried[self.section] - len(self.failures[self.section])
        print(f"{self.section:12} {held:4}/{self.tried[self.section]:<4} {what}{'  FAILED: ' if wrong else ''}"
              f"{'; '.join(wrong)[:220]}")  # fmt: skip

    def reference(self, setup: Setup) -> Path:
        """Return a run that nobody disturbed."""
        setup = setup._replace(writes=False)
        if setup not in self.references:
            run_dir = self.fresh(f"undisturbed-{setup.agent}")
            if complaint := self.start(setup.arguments(run_dir), run_dir).complaint((0,)):
                raise SystemExit(f"a run that nobody disturbed failed: {complaint}")
            self.references[setup] = run_dir
        return self.references[setup]

    def resume(self, run_dir: Path, *more: Callable[[], object]) -> Command:
        return self.start(["train", "--resume", run_dir, "--wandb", "disabled"], run_dir, *more)

    def killed(self, setup: Setup) -> Path:
        """Return a run that was killed half way, with a checkpoint."""
        run_dir = self.fresh("killed")
        command = self.start(setup.arguments(run_dir), run_dir)
        await_reports(command, 3)
        while command.poll() is None and not list(run_dir.glob("checkpoints/step-*")):
            time.sleep(0.01)
        command.kill()
        return run_dir


def await_reports(command: Command, number: int) -> None:
    """Wait until a run has shown so many reports."""
    while command.poll() is None and command.text.count("\nenv_steps ") < number:
        time.sleep(0.01)


def rows_of(run_dir: Path) -> list[dict]:
    """Return the reports of a run, without what clocks say."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def weights_of(path: Path) -> tuple[dict, bytes]:
    """Return what a safetensors file holds: names, types, places; step and score of the best weights; the numbers."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", {})
    return header | {key: metadata.get(key) for key in ("step", "score")}, data[begin:]


def compare(run_dir: Path, wanted: Path, apart_from: str = "") -> list[str]:
    """Return in what a finished run differs from one that nobody disturbed, apart from a file that cannot come back."""
    differences = []
    try:
        if apart_from != "metrics.jsonl" and (rows := rows_of(run_dir)) != (others := rows_of(wanted)):
            first = next((i for i, (a, b) in enumerate(zip(rows, others, strict=False)) if a != b), None)
            if first is None:
                differences.append(f"{len(rows)} reports, not {len(others)}")
            else:
                keys = [key for key in others[first] | rows[first] if rows[first].get(key) != others[first].get(key)]
                differences.append(f"report {first + 1} of {len(others)} differs in {', '.join(keys[:4])}")
        last = sorted(wanted.glob("checkpoints/step-*"))[-1].name
        for name in (f"{last}/agent.safetensors", "best.safetensors"):
            here, there = (path / "checkpoints" / name for path in (run_dir, wanted))
            if name != apart_from and there.exists() and weights_of(here) != weights_of(there):
                differences.append(f"{name} differs")
    except (OSError, ValueError) as error:
        differences.append(f"cannot be compared: {error}")
    return differences


def unfinished(run_dir: Path) -> bool:
    """Return whether a checkpoint or the best weights are being written, or were when the run was killed."""
    try:
        return any(name.startswith(".") for name in os.listdir(run_dir / "checkpoints"))
    except OSError:
        return False


def kills(attack: Attack) -> None:
    total = attack.count(50)
    inside, with_workers, interval = 0, 0, 0.3
    for index in range(total):
        wants_inside, workers = index % 2 == 1, index % 3 == 2
        setup = Setup(("merlin", "rl-lstm")[index // 2 % 2], 1 + index // 4 % 2, 960, wants_inside, workers)
        run_dir = attack.fresh()
        command = attack.start(setup.arguments(run_dir), run_dir)
        reports = attack.random.randint(1, 5) if wants_inside else attack.random.randint(0, 6)
        await_reports(command, reports)
        if reports:
            interval = (time.monotonic() - command.begin) / reports
        command.wait(attack.random.uniform(0, interval))
        if wants_inside:
            while command.poll() is None and not unfinished(run_dir):
                pass  # as fast as it can: the write takes milliseconds
        command.kill()
        complaints = [command.left_behind()]
        was_inside, begun = unfinished(run_dir), list(run_dir.glob("checkpoints/step-*"))
        inside, with_workers = inside + was_inside, with_workers + workers
        if (run_dir / "config.json").exists():
            again = attack.resume(run_dir)
        else:  # killed before it was a run
            again = attack.start(setup.arguments(run_dir), run_dir)
        complaints.append(again.complaint((0,)))
        if again.code == 0 and not workers:
            complaints += compare(run_dir, attack.reference(setup))
        complaints.append(again.left_behind())
        words = [setup.agent, f"{reports} reports", "workers" * workers, "inside a write" * was_inside]
        words.append("before a checkpoint" * (not begun))
        attack.verdict(f"kill {', '.join(filter(None, words))}", complaints)
        shutil.rmtree(run_dir, ignore_errors=True)
    attack.notes["kills"] = f"{inside} inside a write, {with_workers} with workers"


def said(text: str) -> set[str]:
    """Return what a command said besides progress, without paths and numbers."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("  ")]
    return {re.sub(r"\S*/\S*|[\d.,]+|nan", "#", line) for line in lines if not re.match(r"env_steps|training ", line)}


def read(attack: Attack, run_dir: Path, which: str) -> Command:
    command = ["evaluate", run_dir, "--episodes", "4", "--seed", "1", "--checkpoint", which]
    return attack.start(command, run_dir)


def bits(attack: Attack) -> None:
    total, silent, harmless = attack.count(60), 0, 0
    names = ("agent.safetensors", "trainer.pt", "best.safetensors", "config.json")
    usual: dict[tuple, set[str]] = {}
    for index in range(total):
        name, setup = names[index % 4], Setup(("merlin", "rl-lstm")[index // 4 % 2], 1, 960)
        wanted = attack.reference(setup)
        run_dir = attack.fresh()
        shutil.copytree(wanted, run_dir)
        readers = {
            "agent.safetensors": ("last", "resume"),
            "trainer.pt": ("resume",),
            "best.safetensors": ("best",),
            "config.json": ("last", "resume"),
        }[name]

        def use(reader: str, run_dir: Path = run_dir) -> Command:
            if reader == "resume":
                return attack.resume(run_dir)
            return read(attack, run_dir, reader)

        for reader in readers:
            if (setup, reader) not in usual:
                command = use(reader)
                if complaint := command.complaint((0,)):
                    raise SystemExit(f"an undamaged run could not be used: {complaint}")
                usual[setup, reader] = said(command.text)
        path = sorted(run_dir.glob(f"**/{name}"))[-1]
        data = bytearray(path.read_bytes())
        before = bytes(data)
        place = attack.random.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        complaints = []
        if name == "config.json":
            with contextlib.suppress(ValueError):
                if json.loads(data) == json.loads(before):
                    harmless += 1
                    attack.verdict(f"bit {place} of {name}: the same meaning", [])
                    continue
        for reader in readers:
            command = use(reader)
            complaints.append(command.complaint())
            if not said(command.text) - usual[setup, reader]:
                silent += 1
                complaints.append(f"{reader} took it without a word")
            if reader == "resume" and command.code == 0 and name != "config.json":
                complaints += compare(run_dir, wanted)
        attack.verdict(f"bit {place} of {name} ({setup.agent})", complaints)
        shutil.rmtree(run_dir)
    attack.notes["bits"] = f"{silent} times taken without a word, {harmless} mean the same"


def resumes(attack: Attack) -> None:
    bases: dict[Setup, Path] = {}
    for index in range(attack.count(20)):
        setup = Setup(("merlin", "rl-lstm")[index % 2], 1, 960)
        wanted = attack.reference(setup)
        bases[setup] = base = bases.get(setup) or attack.killed(setup)
        run_dir = attack.fresh()
        shutil.copytree(base, run_dir)
        pair = []
        for who in ("first", "second"):
            log = run_dir.with_name(f"{run_dir.name}-{who}.log")
            pair.append(Command(["train", "--resume", run_dir, "--wandb", "disabled"], log))
            time.sleep(attack.random.choice([0, attack.random.uniform(0, 0.4)]))
        complaints = [command.complaint((0, 1)) for command in pair]
        codes = sorted(str(command.code) for command in pair)
        complaints += [f"they ended with {' and '.join(codes)}, not with 0 and 1" if codes != ["0", "1"] else ""]
        attack.verdict(f"two processes resume {setup.agent}", complaints + compare(run_dir, wanted))
        shutil.rmtree(run_dir)


def truncations(attack: Attack) -> None:
    setup = Setup("merlin", 1, 960)
    wanted = attack.reference(setup)
    last = sorted(wanted.glob("checkpoints/step-*"))[-1]
    paths = [path.relative_to(wanted) for path in sorted(wanted.rglob("*")) if path.is_file()]
    paths = [path for path in paths if path.parent.name in ("", "checkpoints", last.name) and path.name[0] != "."]
    cuts = [(path, tenth) for path in paths for tenth in range(10)]
    if attack.fraction < 1:
        cuts = attack.random.sample(cuts, attack.count(len(cuts)))
    for path, tenth in cuts:
        run_dir = attack.fresh()
        shutil.copytree(wanted, run_dir)
        size = (run_dir / path).stat().st_size
        os.truncate(run_dir / path, size * tenth // 10)
        remaining = (run_dir / path).read_bytes()
        complaints = [read(attack, run_dir, which).complaint() for which in ("last", "best")]
        command = attack.resume(run_dir)
        complaints.append(command.complaint())
        if path.name != "config.json" and size and command.code:
            complaints.append(f"it cannot be resumed: {command.last_line}")
        if command.code == 0:
            complaints += compare(run_dir, wanted, apart_from=path.name)
        if path.name == "metrics.jsonl":
            whole = [line for line in remaining.splitlines(keepends=True) if line.endswith(b"\n")]
            kept = (run_dir / path).read_bytes().splitlines(keepends=True)
            complaints += [f"{len(set(whole) - set(kept))} good rows were lost" if set(whole) - set(kept) else ""]
        attack.verdict(f"{path} cut at {tenth} tenths", complaints)
        shutil.rmtree(run_dir)


@contextlib.contextmanager
def small_disk(directory: Path, kilobytes: int) -> Iterator[Path | None]:
    """Make `directory` a disk of this size; None where that is not allowed."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0777", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def disk(attack: Attack) -> None:
    setup = Setup("rl-lstm", 1, 960)
    wanted = attack.reference(setup)
    used = sum(path.stat().st_size for path in wanted.rglob("*") if path.is_file())

    def after(what: str, run_dir: Path, command: Command, must_fail: bool = True) -> None:
        """Judge a command that could not write, then that the run goes on."""
        complaints = [command.complaint((0, 1))]
        if must_fail and command.code == 0:
            complaints.append("ended well though it could not write")
        if (run_dir / "config.json").exists():
            again = attack.resume(run_dir)
        else:
            again = attack.start(setup.arguments(run_dir), run_dir)
        complaints.append(again.complaint((0,)))
        attack.verdict(what, complaints + (compare(run_dir, wanted) if again.code == 0 else []))

    for fraction in (0, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        kilobytes = max(4, round(fraction * used / 1024))
        with small_disk(attack.fresh("disk"), kilobytes) as mounted:
            if mounted is None:
                attack.skipped["disk"] = "full disks skipped: no right to mount one"
                break
            run_dir, log = mounted / "run", attack.fresh("log")
            command = Command(setup.arguments(run_dir), log)
            command.wait()
            larger = ["mount", "-o", f"remount,size={kilobytes + 64 * 1024}k", str(mounted)]
            subprocess.run(larger, check=True)
            after(f"disk of {kilobytes} kB is full", run_dir, command, fraction < 0.9)
    files = sorted((path.stat().st_size for path in wanted.rglob("*") if path.is_file()), reverse=True)
    for limit in (
        0,
        64,
        files[-1] + 256,
        files[len(files) // 2],
        files[0] // 2,
        files[0] - 4096,
    ):  # sizes differ by a clock's digits
        run_dir = attack.fresh()

        def limited(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does when it starts
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        log = attack.fresh("log")
        reader, writer = os.pipe()  # its words must not be limited

        def piped(writer: int = writer, limited: Callable = limited) -> None:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            limited()

        fcntl.fcntl(writer, 1031, 1 << 20)  # F_SETPIPE_SZ: nobody reads before it has ended
        command = Command(setup.arguments(run_dir), log, piped)
        command.wait()
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            log.write_bytes(pipe.read())
        after(f"files of at most {limit:,} bytes", run_dir, command)
    if os.geteuid():
        attack.skipped["disk"] = "permissions skipped: no right to become another user"
        return
    os.chmod(attack.directory, 0o777)
    for closed in (".", "checkpoints", "metrics.jsonl", "config.json"):
        run_dir = attack.killed(setup)
        for path in (run_dir, *run_dir.rglob("*"), run_dir.with_name(f"{run_dir.name}.log")):
            os.chown(path, NOBODY, NOBODY)
        mode = (run_dir / closed).stat().st_mode
        os.chmod(run_dir / closed, 0o555 if (run_dir / closed).is_dir() else 0o444)
        command = attack.resume(run_dir, lambda: os.setuid(NOBODY))
        command.wait()
        os.chmod(run_dir / closed, mode)
        after(f"no permission to write {closed}", run_dir, command, closed not in ("metrics.jsonl", "config.json"))
    parent = attack.fresh("closed")
    parent.mkdir(mode=0o555)
    command = attack.start(setup.arguments(parent / "run"), parent, lambda: os.setuid(NOBODY))
    command.wait()
    os.chmod(parent, 0o777)
    after("no permission to make a run directory", parent / "run", command)
