"""Measures how the cost of training grows: with the sizes of window and memory, and over processes.

    python benchmarks/scaling.py [--rounds 3] [--seconds 4] [--out docs/scaling.png]

Every figure is a process of its own on one thread, sizes in turn, medians. Growth: microseconds of training per
environment step by MERLIN on the memory game (`merlin profile`), one size changed at a time; the exponent is fitted to
the larger half. Of N slots the game writes few, and only those are looked at; "all read" is with
model.mask_unwritten=false, where those never written are read too, as in an episode that fills the memory. Processes:
environment steps per second of `merlin train`, one process and two under torchrun, with as many environments in all.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BASE = {"num_envs": 64, "T": 16, "N": 128, "all": None, "K": 3}
SIZES = {
    "num_envs": (16, 32, 64, 128, 256, 512),
    "T": (4, 8, 16, 32, 64),
    "N": (16, 64, 256, 1024, 4096),
    "all": (16, 64, 256, 1024, 4096),
    "K": (1, 2, 4, 8, 16),
}
NAMES = {"T": "training.unroll_length", "N": "model.memory_size", "K": "model.num_read_keys"}
LABELS = {"num_envs": "environments B", "T": "steps of a window T", "N": "slots N", "K": "read keys K"}
LABELS["all"] = "slots N, all read"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def cost(sizes: dict[str, int | None], seconds: float) -> float:
    """Return the microseconds of training per environment step."""
    command = [sys.executable, "-m", "merlin", "profile", "merlin/MemoryGame-v0", "--json", "--seconds", str(seconds)]
    command += ["--num-envs", str(sizes["num_envs"]), "--device", "cpu"]
    settings = [f"{NAMES[name]}={sizes[name]}" for name in NAMES]
    if sizes["all"]:
        settings += [f"model.memory_size={sizes['all']}", "model.mask_unwritten=false"]
    command += ["--set", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return 1e6 / json.loads(done.stdout)["steps_per_second"]


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Return the slope of log cost over log size, of the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(costs[half:]), 1)[0])


def speed(processes: int, num_envs: int, seconds: float) -> float:
    """Return the environment steps per second of training by so many processes."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "merlin"]
        command += ["train", "merlin/MemoryGame-v0", "--num-envs", str(num_envs), "--device", "cpu"]
        command += ["--run-dir", str(run_dir), "--steps", "1000000000", "--max-seconds", str(seconds)]
        command += ["--wandb", "disabled", "--set", f"training.report_steps={16 * num_envs}"]
        subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["env_steps_per_second"] for row in rows[len(rows) // 4 :])


def draw(costs: dict[str, list[float]], out: Path) -> None:
    """Draw the cost against each size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SIZES), figsize=(3 * len(SIZES), 2.6), sharey=True, layout="constrained")
    for axis, (name, sizes) in zip(axes, SIZES.items(), strict=True):
        axis.loglog(sizes, costs[name], "o-", color="tab:blue")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(LABELS[name])
        axis.set_title(f"~ size^{exponent(sizes, costs[name]):.2f}", fontsize="medium")
    axes[0].set_ylabel("µs per environment step")
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.png"))
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")

    print("processes: environment steps per second, and two over one")
    for num_envs in (128, 512):
        found = [[speed(number, num_envs, 3 * options.seconds) for number in (1, 2)] for _ in range(options.rounds)]
        one, two = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(second / first for first, second in found)
        print(f"  {num_envs:>4} environments   one {one:>7,.0f}   two {two:>7,.0f}   {ratio:.2f} times", flush=True)

    print(f"growth: µs per environment step, one size changed of {BASE}")
    costs = {}
    for name, sizes in SIZES.items():
        found = [[cost({**BASE, name: size}, options.seconds) for size in sizes] for _ in range(options.rounds)]
        costs[name] = [statistics.median(column) for column in zip(*found, strict=True)]
        row = "  ".join(f"{size:,}: {x:,.0f}" for size, x in zip(sizes, costs[name], strict=True))
        print(f"  {LABELS[name]:20} {row}   exponent {exponent(sizes, costs[name]):.2f}", flush=True)
    draw(costs, options.out)


if __name__ == "__main__":
    main()
