"""Trains agents on tasks with several seeds, evaluates each on held-out episodes, and prints medians and ranges.

    python benchmarks/learning.py memory-game-3 tmaze-10 --seeds 101 102 103 --jobs 2

Every run is `merlin train` followed by `merlin evaluate --checkpoint last`, in a process of its own; the commands are
printed. A run whose result is there is not run again. Results: OUT/results.csv, a row for each run.
"""

import argparse
import csv
import json
import platform
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AGENTS = ("merlin", "rl-mem", "rl-lstm")
GAME, MAZE = "merlin/MemoryGame-v0", "merlin/TMaze-v0"
SUITES: dict[str, list[str]] = {
    "memory-game-3": [GAME, "--env-kwargs", '{"pairs": 3}'],
    "memory-game-4": [GAME, "--env-kwargs", '{"pairs": 4}'],
    "memory-game-8": [GAME, "--env-kwargs", '{"pairs": 8}'],
    "memory-game-3-picture": [GAME, "--env-kwargs", '{"pairs": 3, "view": "picture"}'],
    "tmaze-10": [MAZE, "--env-kwargs", '{"length": 10}'],
    "tmaze-50": [MAZE, "--env-kwargs", '{"length": 50}'],
    "tmaze-200": [MAZE, "--env-kwargs", '{"length": 200}'],
}
COLUMNS = ("suite", "agent", "seed", "env_steps", "wall_seconds", "episode_return_mean", "success_rate", "episodes")


def run(suite: str, agent: str, seed: int, options: argparse.Namespace) -> dict:
    """Train and evaluate once, unless that was done before, and return the row of the table."""
    directory = options.out / f"{suite}_{agent}_seed{seed}"
    result_path = directory / "result.json"
    if not result_path.exists():
        merlin = [sys.executable, "-m", "merlin"]
        train = [*merlin, "train", *SUITES[suite], "--agent", agent, "--seed", str(seed), "--wandb", "disabled"]
        train += ["--resume", str(directory)] if directory.exists() else ["--run-dir", str(directory)]
        if directory.exists():
            train = [*merlin, "train", "--resume", str(directory), "--wandb", "disabled"]
        for option in ("steps", "max_seconds"):
            if getattr(options, option):
                train += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
        train += ["--device", "cpu"] if not directory.exists() else []
        train += ["--set", *options.set] if options.set and not directory.exists() else []
        print(shlex.join(train), flush=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{directory}.log", "a", encoding="utf-8") as log:
            subprocess.run(train, stderr=log, stdout=log, check=True)
        evaluate = [*merlin, "evaluate", str(directory), "--checkpoint", "last", "--json"]
        evaluate += ["--episodes", str(options.episodes)]
        result_path.write_text(subprocess.run(evaluate, check=True, capture_output=True, text=True).stdout)
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    row = {"suite": suite, "agent": agent, "seed": seed, **json.loads(result_path.read_text())}
    row |= {name: last[name] for name in ("env_steps", "wall_seconds")}
    return {name: row.get(name) for name in COLUMNS}


def middle(values: list[float]) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=SUITES)
    parser.add_argument("--agents", nargs="+", default=AGENTS, choices=AGENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each takes one core")
    parser.add_argument("--steps", type=float, help="environment steps of each run; the preset's unless given")
    parser.add_argument("--max-seconds", type=float, help="end each run after this long")
    parser.add_argument("--episodes", type=int, default=512, help="held-out episodes of each evaluation")
    parser.add_argument("--set", nargs="+", default=[], help="settings, as of merlin train")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    options = parser.parse_args()
    jobs = [(suite, agent, seed) for suite in options.suites for agent in options.agents for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda job: run(*job, options), jobs))
    with open(options.out / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for suite in options.suites:
        for agent in options.agents:
            mine = [row for row in rows if (row["suite"], row["agent"]) == (suite, agent)]
            line = f"{suite:22} {agent:8} {mine[0]['env_steps']:>12,} steps  return "
            line += middle([row["episode_return_mean"] for row in mine])
            if mine[0]["success_rate"] is not None:
                line += f"  success {middle([row['success_rate'] for row in mine])}"
            print(line + f"  {middle([row['wall_seconds'] for row in mine])} s")


if __name__ == "__main__":
    main()
