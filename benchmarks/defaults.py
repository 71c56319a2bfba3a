"""Trains agents with their default settings on many environments, and tells what held-out episodes then earn.

    pip install . popgym mazelib cython box2d
    python benchmarks/defaults.py run --out runs/defaults.jsonl [--only control cue:20 ...] [--agents merlin rl-lstm]
        [--seeds 1 2 3] [--jobs 2] [--cpu-seconds 900] [--steps 1e6] [--preset NAME]
    python benchmarks/defaults.py table runs/defaults.jsonl [MORE.jsonl ...]

Each run has a process of its own on one thread of the CPU. It ends at its task's steps or CPU seconds, whichever comes
first, and leaves its directory beside the file of rows. Then 100 held-out episodes are played with the last weights and
with the best, actions sampled and most probable. A run adds one row to the file, so that the same command goes on after
an interruption. Of each environment there is a row of uniformly random actions too. The exit status is 1 if a run
failed.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
EPISODES = 100
"""Held-out episodes of an evaluation; and of training, those that a return has to be of to count as reached."""
POINTS = 20
"""Of a learning curve."""
FOREVER = 100_000_000
"""Steps of a run that ends by its CPU seconds."""


class Task(NamedTuple):
    """An environment, when training in it ends, and returns of training whose first step is told."""

    task: str
    thresholds: tuple[float, ...]
    steps: int = FOREVER
    cpu_seconds: float = math.inf
    env_kwargs: dict[str, Any] = {}  # noqa: RUF012


@cache
def groups() -> dict[str, dict[str, Task]]:
    """Return all tasks by group and name; none of POPGym where it is not installed."""
    hidden, cue = "tests.environments.hidden", "tests.environments.delayed_cue:DelayedCue-v0"
    game, memory, grid = "merlin/MemoryGame-v0", "merlin/Memory-v0", (0.5, 0.8, 0.9)
    return {
        "control": {
            "PoCartPole": Task(f"{hidden}:PoCartPole-v0", (195, 400, 475), 100_000),
            "PoAcrobot": Task(f"{hidden}:PoAcrobot-v0", (-200, -120, -100), 300_000),
            "PoMountainCar": Task(f"{hidden}:PoMountainCar-v0", (-190, -150, -130), 300_000),
            "PoPendulum": Task(f"{hidden}:PoPendulum-v0", (-800, -400, -250), 300_000),
            "LunarLander": Task("LunarLander-v3", (0, 100, 200), 300_000),
            "PoLunarLander": Task(f"{hidden}:PoLunarLander-v0", (0, 100, 200), 300_000),
        },
        "cue": {
            "20": Task(cue, (0.5, 0.9), 60_000, env_kwargs={"steps": 20}),
            "100": Task(cue, (0.5, 0.9), 300_000, env_kwargs={"steps": 100}),
        },
        "popgym": {
            re.sub(r"popgym-|Easy-v0", "", name): Task(f"popgym:{name}", (0.0, 0.5, 0.9), cpu_seconds=900)
            for name in popgym_ids()
        },
        # As docs/results.md trains and compares them, of whose seconds these are CPU seconds.
        "own": {
            "MemoryGame-3": Task(game, (2.5, 2.85), 1_000_000, env_kwargs={"pairs": 3}),
            "MemoryGame-4": Task(game, (3.0, 3.8), 2_000_000, env_kwargs={"pairs": 4}),
            "TMaze-50": Task("merlin/TMaze-v0", (0.6, 0.9), 700_000, env_kwargs={"length": 50}),
            "Memory-S7": Task(memory, (0.6, 0.9), cpu_seconds=300, env_kwargs={"size": 7, "agent_view_size": 3}),
            "Memory-S13Random": Task(
                memory,
                (0.6, 0.9),
                cpu_seconds=480,
                env_kwargs={"size": 13, "random_length": True, "agent_view_size": 3},
            ),
            "GoalMaze": Task("merlin/GoalMaze-v0", (5.0, 8.0, 10.0), cpu_seconds=420),
            "RepeatPrevious": Task("merlin/RepeatPrevious-v0", (10.0, 20.0, 27.0), cpu_seconds=400),
        },
        "minigrid": {
            name: Task(f"MiniGrid-{name}-v0", grid, cpu_seconds=900)
            for name in ("Empty-8x8", "DoorKey-6x6", "MemoryS7", "FourRooms")
        },
    }


def popgym_ids() -> list[str]:
    """Return POPGym's easy tasks, in its order."""
    try:
        import gymnasium
        import popgym  # noqa: F401 (registers them)
    except ImportError as error:
        print(f"popgym cannot be imported, and its tasks are left out: {error}", file=sys.stderr)
        return []
    return [name for name in gymnasium.registry if re.fullmatch(r"popgym-.*Easy-v0", name)]


def selected(only: Sequence[str]) -> dict[str, Task]:
    """Return the tasks of these groups, or group:name, by group:name; all if there are none."""
    found = {f"{group}:{name}": task for group, named in groups().items() for name, task in named.items()}
    if unknown := [x for x in only if x not in found and x not in groups()]:
        raise SystemExit(f"--only takes {', '.join([*groups(), *found])}, but {unknown[0]} came: choose of these.")
    return {name: task for name, task in found.items() if not only or {name, name.partition(":")[0]} & set(only)}


def curve(reports: list[dict]) -> list[list[float]]:
    """Return some `POINTS` points of steps and mean return, each of the episodes that ended since the one before."""
    points, end = [], reports[-1]["env_steps"] if reports else 0
    for point in range(1, POINTS + 1):
        low, high = (point - 1) * end / POINTS, point * end / POINTS
        part = [x for x in reports if low < x["env_steps"] <= high and x["episodes"]]
        if part:
            points.append([part[-1]["env_steps"], round(_mean(part), 4)])
    return points


def first_reached(reports: list[dict], threshold: float) -> int | None:
    """Return the steps after which the mean of the last reports, of `EPISODES` together, was at least `threshold`."""
    ended = [x for x in reports if x["episodes"]]
    for last in range(len(ended)):
        first, count = last, ended[last]["episodes"]
        while count < EPISODES and first > 0:
            first -= 1
            count += ended[first]["episodes"]
        if count >= EPISODES and _mean(ended[first : last + 1]) >= threshold:
            return ended[last]["env_steps"]
    return None


def _mean(reports: list[dict]) -> float:
    count = sum(x["episodes"] for x in reports)
    return sum(x["episodes"] * x["episode_return_mean"] for x in reports) / count


def score(returns_mean: float, returns_std: float, episodes: int) -> dict[str, float | int | None]:
    """Return a mean and its standard error, of a standard deviation that divides by `episodes`."""
    if not episodes:
        return {"mean": None, "standard_error": None, "episodes": 0}
    error = returns_std / math.sqrt(max(1, episodes - 1))
    return {"mean": round(returns_mean, 4), "standard_error": round(error, 4), "episodes": episodes}


def learning(reports: list[dict], thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the columns of a row that tell of training."""
    return {
        "curve": curve(reports),
        "reached": {f"{threshold:g}": first_reached(reports, threshold) for threshold in thresholds},
    }


def random_play(job: dict) -> dict[str, Any]:
    """Return what uniformly random actions earn."""
    from merlin.environments.make import find_spec, make_env
    from merlin.training.evaluation import HELD_OUT_SEED

    task = limited_task(job)
    env = make_env(find_spec(task.task), task.env_kwargs, None)
    env.action_space.seed(0)
    returns, steps = [], 0
    for episode in range(EPISODES):
        env.reset(seed=HELD_OUT_SEED + episode)
        total, is_over = 0.0, False
        while not is_over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, is_over, steps = total + float(reward), terminated or truncated, steps + 1
        returns.append(total)
    return {
        "steps": steps,
        "held_out": {"last": score(statistics.fmean(returns), statistics.pstdev(returns), EPISODES)},
    }


def train(job: dict) -> dict[str, Any]:
    """Train an agent, and return what came of it."""
    from dataclasses import replace

    from merlin.runs import run
    from merlin.runs.metrics import read_rows
    from merlin.runs.presets import preset
    from merlin.training import checkpoint
    from merlin.training.evaluation import HELD_OUT_SEED, evaluate

    task, run_dir = limited_task(job), Path(job["directory"])
    config = preset(job["agent"], task.task, task.env_kwargs, name=job["preset"])
    config = replace(config, seed=job["seed"], steps=task.steps, device="cpu")
    is_late, begin = [], time.process_time()

    def stop(*_: object) -> None:
        is_late.append(True)
        signal.raise_signal(signal.SIGINT)

    if math.isfinite(task.cpu_seconds):
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, task.cpu_seconds)
    summary = run.train(config, run_dir)
    signal.setitimer(signal.ITIMER_PROF, 0)
    cpu_seconds = time.process_time() - begin
    if summary.interrupted and not is_late:
        sys.exit(130)  # by a person, and no row tells of it
    best = checkpoint.read_best(run_dir)
    held_out = {}
    with run.build_environment(config, min(config.num_envs, EPISODES)) as environment:
        for which in ("last", "best") if best is not None else ("last",):
            agent = run.load_agent(run_dir, environment, config, which)
            for greedy in (False, True):
                found = evaluate(agent, environment, episodes=EPISODES, seed=config.seed + HELD_OUT_SEED, greedy=greedy)
                of = score(found["episode_return_mean"], found["episode_return_std"], found["episodes"])
                told = ("success_rate", "unfinished_episodes")
                held_out[f"{which}{' greedy' * greedy}"] = of | {name: found[name] for name in told if name in found}
        scores = environment.scores
    return {
        "steps": summary.env_steps,
        "cpu_seconds": round(cpu_seconds, 1),
        "wall_seconds": round(summary.wall_seconds, 1),
        "best_steps": None if best is None else best.step,
        **learning(read_rows(run_dir), task.thresholds),
        "held_out": held_out,
        "scores": scores,
        "preset_name": config.preset,
        "num_envs": config.num_envs,
    }


def write_row(job: dict, work: Callable[[], dict[str, Any]]) -> None:
    """Do a run in this process, in an empty directory, and add its row to the file, with the warnings it printed."""
    shutil.rmtree(job["directory"], ignore_errors=True)
    Path(job["directory"]).mkdir()
    task, commit = limited_task(job), version()  # before the tree may change
    row = _identity(job) | {"task": task.task, "env_kwargs": task.env_kwargs} | work() | commit
    sys.stderr.flush()
    said = Path(job["log"]).read_text(errors="replace")
    found = re.findall(r"^.*\b(?:warning|\w*Warning): .*$", said, re.MULTILINE)
    row["warnings"] = [line[:300] for line in dict.fromkeys(found)]
    with open(job["out"], "a", encoding="utf-8") as file:  # in one write, as several processes add rows
        file.write(json.dumps(row) + "\n")


def version() -> dict[str, str]:
    """Return version and commit of the package."""
    import merlin

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {"version": merlin.__version__, "commit": commit}


def job_of(name: str, agent: str, seed: int, preset: str | None = None) -> dict[str, Any]:
    """Return what is to be done: a task by group:name, an agent and a seed."""
    group, name = name.split(":")
    return {"group": group, "name": name, "agent": agent, "seed": seed, "preset": preset}


def limited_task(job: dict) -> Task:
    """Return a job's task, with the limits of the command where it has any."""
    limits = {name: value for name, value in job["limits"].items() if value is not None}
    return groups()[job["group"]][job["name"]]._replace(**limits)


def _identity(job: dict) -> dict[str, Any]:
    return {name: job[name] for name in ("group", "name", "agent", "seed", "preset")}


def read(paths: Sequence[Path]) -> dict[tuple, dict]:
    """Return the newest row of each run."""
    lines = [line for path in paths if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]
    return {tuple(_identity(row).values()): row for row in map(json.loads, lines)}


def launch(script: str, jobs: list[dict], options: argparse.Namespace) -> int:
    """Do what the file of rows lacks, each in a process of its own, and return the exit status."""
    out = options.out.absolute()
    directory = out.parent / f"{out.stem}-runs"
    directory.mkdir(parents=True, exist_ok=True)
    done = read([out])
    left = [job for job in jobs if tuple(_identity(job).values()) not in done]
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs are in {out}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SDL_VIDEODRIVER": "dummy"}

    def do(index: int, job: dict) -> bool:
        name = "-".join(str(value) for value in _identity(job).values() if value is not None)
        job |= {"directory": str(directory / name), "log": str(directory / f"{name}.log"), "out": str(out)}
        job["limits"] = {"steps": options.steps, "cpu_seconds": options.cpu_seconds}
        begin = time.monotonic()
        with open(job["log"], "w") as log:
            code = subprocess.run(
                [sys.executable, script, "one", json.dumps(job)], stdout=log, stderr=log, cwd=ROOT, env=environment
            ).returncode
        how = "done" if code == 0 else f"failed with status {code}, see {job['log']}"
        print(f"{index}/{len(left)} {name}: {how}, {time.monotonic() - begin:.0f} s", flush=True)
        return code == 0

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            return int(not all([*pool.map(do, range(1, len(left) + 1), left)]))
        except KeyboardInterrupt:  # the processes have got it too
            pool.shutdown(cancel_futures=True)
            return 130


def middle(values: Sequence[float | None]) -> str:
    """Return the median of values, and their range if there are several; a dash without any."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.4g} to {max(known):.4g})" if len(known) > 1 else ""
    return f"{statistics.median(known):.4g}{spread}"


def _steps(values: Sequence[int | None]) -> str:
    """Return the median of steps, and of how many seeds, where not of all."""
    known = [value for value in values if value is not None]
    some = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.median(known) / 1000:,.0f} k{some}" if known else "never"


def table(rows: list[dict]) -> str:
    """Return two tables in Markdown: agents side by side, and all that is known of each."""
    by_task: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        label = row["agent"] + (f", {row['preset']}" if row["preset"] else "")
        by_task.setdefault(f"{row['group']}:{row['name']}", {}).setdefault(label, []).append(row)
    agents = [label for label in dict.fromkeys(x for of in by_task.values() for x in of) if label != "random"]

    def held_out(runs: list[dict], which: str) -> str:
        return middle([run["held_out"].get(which, {}).get("mean") for run in runs])

    lines = [
        "Mean return of 100 held-out episodes with the last weights, actions sampled: median (range) over seeds.",
        "",
        f"| task | random | {' | '.join(agents)} |",
        "|---" * (len(agents) + 2) + "|",
    ]
    for task, of in by_task.items():
        cells = [held_out(of.get(label, []), "last") for label in ("random", *agents)]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    kinds = ("last", "best", "last greedy", "best greedy")
    lines += [
        "",
        "Medians over seeds; the range of the held-out returns too. Reached: the first step at which the last 100 or "
        "more episodes of training had this mean return.",
        "",
        f"| task | agent | seeds | steps | CPU s | {' | '.join(kinds)} | standard error of last | reached | commit |",
        "|---" * (len(kinds) + 8) + "|",
    ]
    for task, of in by_task.items():
        for label, runs in of.items():
            errors = [run["held_out"]["last"]["standard_error"] for run in runs]
            thresholds = runs[0].get("reached", {})
            reached = [f"{x}: {_steps([run['reached'].get(x) for run in runs])}" for x in thresholds]
            seconds = [run["cpu_seconds"] for run in runs if "cpu_seconds" in run]
            cells = [task, label, ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"]))]
            cells += [_steps([run["steps"] for run in runs]), f"{statistics.median(seconds):.0f}" if seconds else "-"]
            cells += [held_out(runs, kind) for kind in kinds]
            cells += [f"{max(e for e in errors if e is not None):.3g}" if any(errors) else "-", "; ".join(reached)]
            lines.append(f"| {' | '.join([*cells, ', '.join(dict.fromkeys(run['commit'] for run in runs))])} |")
    told = [
        f"- {row['group']}:{row['name']}, {row['agent']}, seed {row['seed']}: {sentence}"
        for row in rows
        for sentence in row["warnings"]
    ]
    return "\n".join(lines + (["", "Warnings:", "", *told] if told else [])) + "\n"


def add_options(add: Callable) -> None:
    """Add the options of a launch to a parser, by its `add_argument`."""
    add("--out", type=Path, required=True, help="file of rows, JSON lines")
    add("--only", nargs="+", default=[], metavar="GROUP[:NAME]")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--jobs", type=int, default=1, help="so many runs at a time")
    add("--steps", type=lambda text: int(float(text)), help="of each run, instead of its task's")
    add("--cpu-seconds", type=float, help="of each run, instead of its task's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    add_options(run.add_argument)
    run.add_argument("--agents", nargs="+", default=["merlin", "rl-lstm", "rl-mem"])
    run.add_argument("--preset", help="for all, rather than that of each task's family")
    commands.add_parser("table").add_argument("files", nargs="+", type=Path)
    commands.add_parser("one").add_argument("job", type=json.loads)
    options = parser.parse_args()
    if options.command == "table":
        print(table([*read(options.files).values()]), end="")
        return 0
    if options.command == "one":
        work = random_play if options.job["agent"] == "random" else train
        write_row(options.job, lambda: work(options.job))
        return 0
    jobs = []
    for name in selected(options.only):
        jobs.append(job_of(name, "random", 0))
        jobs += [job_of(name, agent, seed, options.preset) for seed in options.seeds for agent in options.agents]
    return launch(__file__, jobs, options)


if __name__ == "__main__":
    sys.exit(main())
