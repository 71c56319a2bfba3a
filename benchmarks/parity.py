"""Plays random actions in our grid tasks and in MiniGrid's from the same layouts and counts the steps that differ.

    python benchmarks/parity.py [--steps 100000] [--only TEXT]

Compared at every step: image, direction, reward, terminated, truncated and what is carried. A new layout for each
episode; views of 3, 5, 7 and 9 cells, with and without walls that hide what lies behind them.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.tasks.minigrid_tasks.test_minigrid_tasks import FAMILIES, compare

VIEWS = list(itertools.product((3, 5, 7, 9), (False, True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="at least so many for each family")
    parser.add_argument("--only", default="", help="compare the families whose name holds this text")
    options = parser.parse_args()
    print(f"{'family':16} {'settings':>8} {'steps':>9} {'mismatches':>10} {'solved':>7} {'carrying':>9} {'seconds':>8}")
    for name, pairs in FAMILIES.items():
        if options.only not in name:
            continue
        begin, runs = time.perf_counter(), list(itertools.product(pairs, VIEWS))
        share = -(-options.steps // len(runs))
        results = [compare(pair, *view, share, seed) for seed, (pair, view) in enumerate(runs)]
        steps, mismatches = (sum(result[i] for result in results) for i in (0, 1))
        solved, carrying = (sum(result[2][event] for result in results) for event in ("reward", "carrying"))
        seconds = time.perf_counter() - begin
        print(
            f"{name:16} {len(runs):8} {steps:9,} {mismatches:10,} {solved:7,} {carrying:9,} {seconds:8.0f}", flush=True
        )


if __name__ == "__main__":
    main()
