"""Trains on other people's environments: 40 updates on each, and what came of them.

    pip install . popgym mazelib cython memory-gym ale-py box2d opencv-python-headless
    python benchmarks/foreign.py [--agents merlin rl-lstm rl-mem] [--only TEXT ...] [--jobs 1] [--again]

The environments: all of POPGym, memory-gym and BabyAI, Atari's Pong, gymnasium's own, some of them in wrappers, and two
that fail when an action is taken that their mask forbids. Each has a process of its own with limits of time and memory,
in which the command line trains on 4 environments by windows of 8 steps. MERLIN trains on all, the baselines on a
sample, or on all with --all.

A run is done if it ended well and reported its last step. Rows are kept in `runs/foreign`, so that the same command
goes on after an interruption; --again repeats what failed, --fresh everything. At the end the table is written to
`benchmarks/foreign.txt`. The exit status is 1 if a run failed. A package that is not installed is told, and fails.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from pathlib import Path

from forked import ROOT, Command, prepare

NUM_ENVS, UNROLL_LENGTH = 4, 8
GYMNASIUM = """
CartPole-v1 Acrobot-v1 MountainCar-v0 MountainCarContinuous-v0 Pendulum-v1 LunarLander-v3 LunarLanderContinuous-v3
BipedalWalker-v3 CarRacing-v3 Blackjack-v1 CliffWalking-v1 FrozenLake-v1 FrozenLake8x8-v1 Taxi-v4
"""
WRAPPED = "MaskedTaxi MaskedCards StackedCartPole StackedFrozenLake StackedBlackjack StackedPong"
SAMPLE = """
popgym-AutoencodeEasy-v0 popgym-BattleshipEasy-v0 popgym-CountRecallHard-v0 popgym-LabyrinthEscapeEasy-v0
popgym-NoisyPositionOnlyPendulumEasy-v0 MortarMayhem-v0 MortarMayhemB-Grid-v0 BabyAI-BossLevel-v0 BabyAI-GoToRedBall-v0
ALE/Pong-v5 Pendulum-v1 BipedalWalker-v3 Blackjack-v1 Taxi-v4 MaskedTaxi-v0 MaskedCards-v0 StackedPong-v0
"""
"""What the baselines train on."""


def tasks() -> dict[str, str]:
    """Return the suite of each task, by its name on the command line."""
    import gymnasium

    found = dict.fromkeys(GYMNASIUM.split(), "gymnasium")
    found |= {f"tests.environments.wrapped:test/{name}-v0": "wrapped" for name in WRAPPED.split()}
    for suite, module, its_own in (
        ("BabyAI", "minigrid", "BabyAI-"),
        ("POPGym", "popgym", "popgym-"),
        ("memory-gym", "memory_gym", r"(Endless-)?(MortarMayhem|MysteryPath|SearingSpotlights)"),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{module} cannot be imported: {error}", file=sys.stderr)
            found[f"{module}:"] = suite
        ids = sorted(task_id for task_id in gymnasium.registry if re.match(its_own, task_id))
        found |= {task_id if suite == "BabyAI" else f"{module}:{task_id}": suite for task_id in ids}
    return found | {"ale_py:ALE/Pong-v5": "Atari"}


def train(task: str, agent: str, steps: int, directory: Path, seconds: float, gigabytes: float) -> dict:
    """Return what came of one run."""
    name = f"{agent}-{re.sub(r'[^A-Za-z0-9-]+', '-', task)}"
    run_dir, limit = directory / name, int(gigabytes * 2**30)
    shutil.rmtree(run_dir, ignore_errors=True)
    arguments = ["train", task, "--agent", agent, "--num-envs", NUM_ENVS, "--steps", steps, "--run-dir", run_dir]
    arguments += ["--device", "cpu", "--wandb", "disabled", "--set", f"training.unroll_length={UNROLL_LENGTH}"]
    arguments += ["training.minibatches=1", "training.num_threads=1", f"training.report_steps={max(1, steps // 4)}"]
    command = Command(
        arguments, directory / f"{name}.log", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    )
    try:
        complaint = command.complaint((0,), seconds)
    finally:
        command.kill()
    taken = round(time.monotonic() - command.begin, 1)
    command.left_behind(1)
    rows = []
    with contextlib.suppress(OSError, ValueError):
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir, ignore_errors=True)
    # Of episodes, and of what is measured on those that ended, there may be none; a loss or a norm is always a number.
    absent = [key for key, x in (rows[-1] if rows else {}).items() if x is None and not key.startswith("episode_")]
    if not complaint and (not rows or rows[-1]["env_steps"] != steps):
        complaint = f"not all of {steps:,} steps were reported"
    return {
        "agent": agent,
        "task": task,
        "status": "failed" if complaint else "done",
        "seconds": taken,
        "steps_per_second": round(rows[-1]["env_steps_per_second"]) if rows else None,
        "megabytes": command.megabytes,
        "said": notes(command.text),
        "message": complaint or (f"no number: {', '.join(absent)}" if absent else ""),
    }


def notes(text: str) -> list[str]:
    """Return what a run said of its environments: what comes before its first report."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("  ", "merlin: ", "done "))]
    begin = next((index + 1 for index, line in enumerate(lines) if line.startswith("training ")), 0)
    end = next((index for index, line in enumerate(lines) if line.startswith("env_steps ")), len(lines))
    # BabyAI tells of each layout that it drops, Atari of itself.
    return [line for line in lines[begin:end] if not re.match(r"Sampling rejected|A\.L\.E|\[Powered by", line)]


def table(rows: list[dict], order: dict[str, str], updates: int, gigabytes: float, seconds: float) -> str:
    """Return the page: totals by suite and agent, failures, then every run."""
    import gymnasium
    import torch

    suites = list(dict.fromkeys(order.values()))
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    lines = [
        f"{updates} training updates on each task: {NUM_ENVS} environments, windows of {UNROLL_LENGTH} steps,",
        f"a process each, at most {seconds:.0f} s and {gigabytes:g} GB of data. On one thread of a CPU,",
        f"torch {torch.__version__}, gymnasium {gymnasium.__version__}, Python {platform.python_version()}.",
        "",
        f"{'suite':12}" + "".join(f"{agent:>14}" for agent in agents) + "   done of all",
    ]
    for suite in suites:
        cells = []
        for agent in agents:
            of_both = [row for row in rows if row["agent"] == agent and order.get(row["task"]) == suite]
            cells.append(f"{sum(row['status'] == 'done' for row in of_both)} of {len(of_both)}" if of_both else "-")
        lines.append(f"{suite:12}" + "".join(f"{cell:>14}" for cell in cells))
    failures = [row for row in rows if row["status"] != "done"]
    lines += ["", f"{len(failures)} of {len(rows)} runs failed" + (":" if failures else ".")]
    lines += [f"  {row['agent']:8} {row['task']}: {row['message'][:400]}" for row in failures]
    width = max(len(row["task"]) for row in rows)
    lines += ["", f"{'agent':8} {'task':{width}} {'status':7} {'s':>6} {'steps/s':>8} {'MB':>6}  what it said"]
    place = {task: index for index, task in enumerate(order)}
    for row in sorted(rows, key=lambda row: (agents.index(row["agent"]), place.get(row["task"], -1))):
        speed = "-" if row["steps_per_second"] is None else f"{row['steps_per_second']:,}"
        words = "; ".join([*row["said"], *filter(None, [row["message"]])])
        head = f"{row['agent']:8} {row['task']:{width}} {row['status']:7} {row['seconds']:6.1f} {speed:>8}"
        lines.append(f"{head} {row['megabytes']:6,}  {words[:400]}".rstrip())
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict[tuple[str, str], dict]:
    """Return the newest row of each agent and task."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["agent"], row["task"]): row for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=["merlin", "rl-lstm", "rl-mem"])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--all", action="store_true", help="the baselines too train on all")
    parser.add_argument("--only", nargs="+", default=[""], help="tasks that contain one of these texts")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at a time")
    parser.add_argument("--again", action="store_true", help="repeat what failed before")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "foreign")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "foreign.txt")
    options = parser.parse_args()
    prepare()
    steps = NUM_ENVS * UNROLL_LENGTH * options.updates
    order = tasks()
    options.directory.mkdir(parents=True, exist_ok=True)
    path = options.directory / "rows.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    done = read(path)
    sample = {task for task in order if task.rpartition(":")[2].removeprefix("test/") in SAMPLE.split()}
    todo = [
        (agent, task)
        for agent in options.agents
        for task in order
        if (options.all or agent == "merlin" or task in sample) and any(text in task for text in options.only)
    ]
    left = [pair for pair in todo if pair not in done or (options.again and done[pair]["status"] != "done")]
    begin = time.monotonic()
    loops = []
    for job in range(options.jobs):
        loops.append(os.fork())
        if not loops[-1]:
            for index, (agent, task) in list(enumerate(left, 1))[job :: options.jobs]:
                row = train(task, agent, steps, options.directory, options.seconds, options.gigabytes)
                with open(path, "a") as file:
                    file.write(json.dumps(row) + "\n")
                words = f"{row['status']:7} {row['seconds']:5.1f} s  {row['message'][:150]}".rstrip()
                print(f"{index:3}/{len(left)} {time.monotonic() - begin:5.0f} s  {agent:8} {task:45} {words}")
            os._exit(0)
    for loop in loops:
        os.waitpid(loop, 0)
    done = read(path)
    rows = [done[pair] for pair in todo if pair in done]
    page = table(rows, order, options.updates, options.gigabytes, options.seconds)
    if options.only == [""]:
        options.out.write_text(page)
    print(page[: page.index("\nagent ")])
    return int(any(done.get(pair, {}).get("status") != "done" for pair in todo))


if __name__ == "__main__":
    sys.exit(main())
