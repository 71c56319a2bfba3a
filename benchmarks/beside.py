"""Compares the cost of training with that of other code, such as a worktree of an earlier commit, update by update.

    git worktree add ../before 57bf19b
    python benchmarks/beside.py ../before [--rounds 20] [--only TEXT ...] [--step]
    python benchmarks/beside.py --libraries [...]        this code with products by MKL, and by oneDNN

Two processes live side by side, one for each code, and take turns: one update of the one, one of the other. Counted are
CPU seconds of one thread, so that both meet the same machine. Printed: the median over rounds of the ratio, and its
quartiles; above 1 this code is the faster. `--step` compares one step of acting at batch 1 instead, in milliseconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = [
    *(f"{agent} preset, {task}" for task in ("game", "MiniGrid") for agent in ("rl-lstm", "rl-mem", "merlin")),
    *(
        f"{agent} {size}, {task}"
        for task in ("game", "maze")
        for size in ("small", "medium", "paper")
        for agent in ("rl-lstm", "rl-mem", "merlin")
    ),
    *(f"rl-lstm 256 x 1, game, {count} envs" for count in ("16", "64", "1,024")),
]


def serve(name: str, is_step: bool) -> None:
    """Do one piece of work for each line that comes, and print what it cost."""
    import torch

    try:
        import tasks  # noqa: F401 (code from before registers its ids so)
    except ImportError:
        pass
    from merlin import Trainer, build_agent, build_environment

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from speed import SETUPS, configure

    setup = next(setup for key, setup in SETUPS.items() if key.startswith(name))
    config = configure(setup._replace(num_envs=1) if is_step else setup, 1)
    torch.set_num_threads(1)
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        if is_step:
            work = steps(agent, environment)
        else:
            trainer = Trainer(agent, environment, config.training, total_steps=10**12, seed=1)
            work = trainer.update
        for _ in range(2):
            work()
        print("ready", flush=True)
        for _ in sys.stdin:
            begin = time.process_time()
            work()
            print(time.process_time() - begin, flush=True)


def steps(agent, environment, count: int = 200):
    """Return a function that takes `count` steps of acting with one environment's observation."""
    import torch

    timestep, never = environment.reset(1), torch.zeros(1, dtype=torch.bool)

    def work() -> None:
        state = agent.initial_state(1)
        for _ in range(count):
            _, state = agent.step(timestep.observation, state, never, timestep.reward)

    return work


def start(root: Path, name: str, is_step: bool, more: dict[str, str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, str(ROOT / "benchmarks" / "beside.py"), "--serve", name, *["--step"] * is_step]
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n", f"{root} cannot run {name}"
    return process


def ask(process: subprocess.Popen) -> float:
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--libraries", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.step)
        return
    for name in NAMES:
        if not any(text in name for text in options.only):
            continue
        codes = [(options.other, {}), (ROOT, {})]
        if options.libraries:
            codes = [(ROOT, {"MERLIN_ONEDNN": chosen}) for chosen in "01"]
        processes = [start(root.resolve(), name, options.step, more) for root, more in codes]
        pairs = []
        for index in range(options.rounds):
            order = processes if index % 2 else processes[::-1]
            cost = {process.pid: ask(process) for process in order}
            pairs.append([cost[process.pid] for process in processes])
        for process in processes:
            process.stdin.close()
            process.wait()
        low, middle, high = statistics.quantiles((before / now for before, now in pairs), n=4)
        unit = 1e3 / (200 if options.step else 1)
        before, now = (unit * statistics.median(costs) for costs in zip(*pairs, strict=True))
        what = "a step" if options.step else "an update"
        print(f"{name:28} {middle:5.2f} ({low:.2f} to {high:.2f})   {before:8.2f} -> {now:8.2f} ms {what}", flush=True)


if __name__ == "__main__":
    main()
