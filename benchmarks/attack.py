"""Attacks runs from outside: kills, flipped bits, double resumes, truncations, full disks, bad inputs, environments.

    python benchmarks/attack.py [SECTION ...] [--seed 1] [--fraction 1.0] [--out benchmarks/attack.txt] [--keep DIR]

    kills         50 SIGKILLs, half inside the write of a checkpoint, a third with worker processes; after resuming,
                  reports and weights must equal those of a run that nobody disturbed (but for the clock), and no worker
                  may be left. (An environment that cannot save its state must only come to its end.)
    bits          60 flipped bits of weights, optimiser file, best weights and configuration: each must be told, and a
                  resumed run must end with the weights of an undamaged one
    resumes       20 times two processes resume one run at once: one goes on, the other says a sentence, nothing is lost
    truncations   every file of a run cut at every tenth of its length, then evaluated and resumed
    disk          full disks, limits of file sizes, directories without permission: a sentence, and resumable after
    inputs        `benchmarks/bad_inputs.py`
    environments  `MISDEEDS` of tests/environments/misbehaving.py, in this process and in workers: each ends in time
                  with a sentence or is handled, and leaves no process behind

Only the command line and the files that the documentation describes are used. A command runs in a process forked from
this one (`forked.py`). The exit status is 1 on any failure.
Linux only. Full disks need the right to mount a tmpfs, missing permissions that to become another user; else they are
skipped, which the table says.
"""

import argparse
import contextlib
import importlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attack_storage import ALWAYS, Attack, bits, disk, kills, resumes, truncations
from forked import ROOT, prepare


def inputs(attack: Attack) -> None:
    path = ROOT / "benchmarks" / "bad_inputs.py"
    if not path.exists():
        attack.skipped["inputs"] = f"skipped: there is no {path.name}"
        return
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, capture_output=True, text=True)
    *faults, total = done.stdout.splitlines() or [""]
    if not (count := re.match(r"(\d+) bad inputs", total)):
        attack.verdict(path.name, [f"status {done.returncode}: {done.stderr[-500:]}"])
        return
    for fault in faults:
        attack.verdict("input", [fault])
    attack.verdict(total, [], int(count[1]) - len(faults))


def environments(attack: Attack) -> None:
    module = "tests.environments.misbehaving"
    try:
        misdeeds = importlib.import_module(module).MISDEEDS
    except ImportError:
        attack.skipped["environments"] = f"skipped: there is no {module}"
        return
    ways = [(name, way) for name, misdeed in misdeeds.items() for way in ("sync", "async")[1 - misdeed.in_process :]]
    for name, way in attack.random.sample(ways, attack.count(len(ways))):
        run_dir, told = attack.fresh(), misdeeds[name].told
        arguments = ["train", f"{module}:test/Misbehaving-v0", "--agent", "rl-lstm", "--num-envs", "2"]
        arguments += ["--steps", "160", "--env-kwargs", json.dumps({"misdeed": name}), "--vectorization", way]
        arguments += ["--run-dir", run_dir, *ALWAYS, "--set", "training.unroll_length=8", "training.minibatches=1"]
        command = attack.start([*arguments, "environment.step_seconds=5"], run_dir)
        complaints = [command.complaint((0, 1, 130), 60), command.left_behind()]
        if told is None and command.code:
            complaints.append(f"ended, where it should go on: {command.last_line}")
        if told is not None and not (command.code and re.search(told, command.text.replace(f"{module}:", ""))):
            complaints.append(f"did not tell {told!r}: {command.last_line}")
        attack.verdict(f"{way:5} {name}: {command.last_line[:90] if told else 'goes on'}", complaints)
        shutil.rmtree(run_dir, ignore_errors=True)
    attack.notes["environments"] = f"{len(misdeeds)} misdeeds"


SECTIONS = (kills, bits, resumes, truncations, disk, inputs, environments)


def table(attack: Attack) -> str:
    """Return what was tried and what held, and every failure."""
    import gymnasium
    import torch

    lines = [f"seed {attack.seed}, torch {torch.__version__}, gymnasium {gymnasium.__version__}, "
             f"Python {platform.python_version()}, {platform.system()}", ""]  # fmt: skip
    lines.append(f"{'section':12} {'tried':>5} {'held':>5} {'failed':>6} {'s':>5}")
    for section, tried in attack.tried.items():
        failed = len(attack.failures[section])
        words = [
            attack.notes.get(section),
            f"skipped: {attack.skipped[section]}" if section in attack.skipped else None,
        ]
        words = "; ".join(filter(None, words))
        seconds = attack.seconds[section]
        lines.append(f"{section:12} {tried:5} {tried - failed:5} {failed:6} {seconds:5.0f}  {words}".rstrip())
    for section, failures in attack.failures.items():
        lines += ["", f"{section}:", *(f"  {failure}" for failure in failures)] if failures else []
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(names)}; all unless told")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0, help="of all attacks")
    parser.add_argument("--out", type=Path, help="where the table goes besides")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave the logs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(names):
        parser.error(f"no section is called {', '.join(unknown)}: choose of {', '.join(names)}")
    prepare()
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            directory = tempfile.mkdtemp(prefix="attack-", dir=options.keep)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="attack-"))
        attack = Attack(Path(directory), options.seed, options.fraction)
        for section in SECTIONS:
            if not options.sections or section.__name__ in options.sections:
                begin = time.monotonic()
                attack.begin(section.__name__)
                section(attack)
                attack.seconds[section.__name__] = time.monotonic() - begin
        page = table(attack)
    print(page)
    if options.out:
        options.out.write_text(page)
    return int(any(attack.failures.values()))


if __name__ == "__main__":
    sys.exit(main())
