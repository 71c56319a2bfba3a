"""Trains with products in float32 and in bfloat16, from the same seeds, and prints the training return on the way.

    python benchmarks/precision.py [--agents merlin rl-mem rl-lstm] [--steps 400000] [--seeds 21 22 23] [--jobs 1]
                                   [--ways float32 bfloat16] [--set path=value ...]

bfloat16 is training.matmul_precision=medium. Runs differ soon, but not in how they learn.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

WAYS = ("float32", "bfloat16")
REPORTS = 4


def learn(name: str, way: str, seed: int, steps: int, settings: list[str]) -> dict[str, list[float]]:
    """Return the mean training return of each part of a run, and its steps per second."""
    import torch

    from merlin.runs.presets import preset
    from merlin.runs.run import build_agent, build_environment
    from merlin.runs.settings import override
    from merlin.training.trainer import Trainer

    config = override(preset(name), settings)
    training = replace(config.training, matmul_precision="medium" if way == "bfloat16" else "highest")
    config = replace(config, seed=seed, device="cpu", steps=steps, training=training)
    config.training.set_torch()
    torch.manual_seed(seed)
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, training, total_steps=steps, seed=seed)
        returns, begin = [], time.perf_counter()
        for part in range(REPORTS):
            earned = []
            while trainer.env_steps < steps * (part + 1) / REPORTS:
                earned.append(trainer.update()[1].returns)
            returns.append(float(torch.cat(earned).mean()))
        return {"returns": returns, "rate": trainer.env_steps / (time.perf_counter() - begin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", nargs="+", default=["merlin", "rl-mem", "rl-lstm"])
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each takes one core")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", nargs="+", default=[], metavar="path=value", help="settings, as of merlin train")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, way, seed = options.one
        print(json.dumps(learn(name, way, int(seed), options.steps, options.set)))
        return

    def run(job: tuple[str, str, int]) -> dict[str, list[float]]:
        command = [sys.executable, __file__, "--one", *map(str, job), "--steps", str(options.steps)]
        command += ["--set", *options.set] if options.set else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    jobs = [(name, way, seed) for name in options.agents for seed in options.seeds for way in options.ways]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(jobs, pool.map(run, jobs), strict=True))
    ends = [f"{options.steps * (part + 1) // REPORTS // 1000} k" for part in range(REPORTS)]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, 1 thread")
    print(f"memory game, 3 pairs, seeds {options.seeds}: mean return of the training episodes of each part, until")
    print(f"{'':20}" + "".join(f"{end:>22}" for end in ends))
    for name in options.agents:
        for way in options.ways:
            rows = [found[name, way, seed] for seed in options.seeds]
            line = f"{name:9} {way:10}"
            for part in zip(*(row["returns"] for row in rows), strict=True):
                line += f"{statistics.median(part):8.2f} ({min(part):.2f} to {max(part):.2f})"
            print(line + f"   {statistics.median(row['rate'] for row in rows):,.0f} steps/s")


if __name__ == "__main__":
    main()
