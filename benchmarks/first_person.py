"""Measures how many first-person pictures are drawn per second, alone and as the view of a task.

    python benchmarks/first_person.py [--rounds 5] [--seconds 2] [--picture-size 64] [--device cpu]

Drawn alone are poses in grids of 25 x 25 cells, of which one in twelve is a wall and one in ten is anything. The task
is merlin/Memory-v0 of size 13 played at random, with either view. Every figure is a process of its own; the processes
alternate, round after round, so that a drift of the machine meets all of them. Printed: medians over rounds, their
range, the median per second of CPU time (which other processes on the machine hardly change) and the peak memory.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, product

SIZE = 25


def pictures(num_envs: int, picture_size: int, device: str) -> Callable[[], object]:
    """Return what draws a picture of each of as many poses."""
    import torch

    from merlin.tasks.grid import cells
    from merlin.tasks.grid.first_person.renderer import FirstPerson

    def chance(probability: float) -> torch.Tensor:
        return torch.rand(num_envs, SIZE, SIZE, generator=generator) < probability

    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(len(cells.CELLS), (num_envs, SIZE, SIZE), generator=generator)
    grid = torch.where(chance(1 / 12), cells.WALL, cells.EMPTY)
    grid = torch.where(chance(1 / 10), anything, grid)
    grid[:, [0, -1]] = grid[:, :, [0, -1]] = cells.WALL
    x, y = torch.randint(1, SIZE - 1, (2, num_envs), generator=generator)
    direction = torch.randint(4, (num_envs,), generator=generator)
    draw = FirstPerson(SIZE, picture_size, device=device)
    scene = [part.to(device) for part in (cells.packed()[grid].flatten(1), y * SIZE + x, direction)]
    return lambda: draw(*scene)


def steps(num_envs: int, picture_size: int, device: str, view: str) -> Callable[[], object]:
    """Return what takes a random step in each environment."""
    import torch

    from merlin.tasks.minigrid_tasks.memory import Hallway

    env = Hallway(num_envs, 13, view=view, picture_size=picture_size, device=device)
    env.reset(seed=0)
    actions = cycle(torch.randint(3, (1000, num_envs), generator=torch.Generator().manual_seed(0)).to(device))
    return lambda: env.step(next(actions))


SETUPS = {"pictures alone": pictures}
SETUPS |= {
    f"steps, view {view}": lambda *sizes, view=view: steps(*sizes, view=view) for view in ("first_person", "grid")
}


def measure(setup: str, num_envs: int, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Return how many are made per second, and per second of CPU time, after a warm-up; and the peak memory."""
    import torch

    torch.set_num_threads(threads)
    make = SETUPS[setup](num_envs, options.picture_size, options.device)
    finish = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    for _ in range(3):
        make()
    finish()
    begin, cpu_begin, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < options.seconds:
        for _ in range(10):
            make()
        finish()
        count += 10 * num_envs
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": count / seconds, "cpu_rate": count / cpu_seconds, "megabytes": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--picture-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        setup, num_envs, threads = options.one
        print(json.dumps(measure(setup, int(num_envs), int(threads), options)))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.device}")
    cases = list(product(SETUPS, (64, 1024), (1, 2)))
    rows: dict[tuple[str, int, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", *map(str, case)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[case].append(json.loads(done.stdout.splitlines()[-1]))
    for (setup, num_envs, threads), results in rows.items():
        rates = [result["rate"] for result in results]
        cpu_rate, megabytes = (
            statistics.median(result[key] for result in results) for key in ("cpu_rate", "megabytes")
        )
        print(
            f"{setup:26} {num_envs:>5,} envs {threads} threads {statistics.median(rates):>9,.0f}/s "
            f"({min(rates):,.0f} to {max(rates):,.0f})  {cpu_rate:>9,.0f} per CPU second  peak {megabytes:,.0f} MB"
        )


if __name__ == "__main__":
    main()
