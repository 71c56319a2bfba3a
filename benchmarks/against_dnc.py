"""Measures an LSTM with our memory against that of the `dnc` package, at equal sizes: time of a step, peak memory.

    python benchmarks/against_dnc.py [--lengths 20 100] [--slots 100] [--word-size 64] [--num-envs 64] [--threads 2]

Each learns from one window, forward and backward: an LSTM of 256 that reads 4 words of the memory at each step and
writes one, whose words have gradients. dnc's also keeps links between slots in the order of writing; ours keeps the
trace of later words. Every figure is a process of its own; the peak before is subtracted. Needs `pip install dnc`.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from itertools import product

INPUT_SIZE, HIDDEN_SIZE, NUM_READ_KEYS = 64, 256, 4


def ours(length: int, slots: int, word_size: int, num_envs: int):
    """Return a function of inputs [T, B, I] whose backward pass teaches all parameters."""
    import torch
    from torch import nn

    from merlin import memory as memories
    from merlin.memory.window import MemoryWindow
    from merlin.networks.lstm import LSTM
    from merlin.networks.window_linear import in_window

    lstm = LSTM(INPUT_SIZE + NUM_READ_KEYS * word_size, HIDDEN_SIZE, 1)
    reader = memories.Reader(HIDDEN_SIZE, word_size, NUM_READ_KEYS)
    write = nn.Linear(INPUT_SIZE, word_size // 2)

    def unroll(x):
        words = write(x)
        start = memories.initial_state(num_envs, slots, word_size)
        start = start._replace(num_written=start.num_written + slots)  # so that all slots are read, as there
        memory = MemoryWindow(start, length, 0.96).begin(start)
        step, read = in_window(lstm).step, in_window(reader)
        state, found = lstm.initial_state(num_envs), torch.zeros(num_envs, NUM_READ_KEYS * word_size)
        outputs = []
        for t in range(length):
            state = step(torch.cat([x[t], found], -1), state)
            found, weights = memory.read(*read(state.hidden))
            found = found.flatten(1)
            memory = memory.write(words[t], weights)
            outputs.append(torch.cat([state.hidden, found], -1))
        return torch.stack(outputs)

    return unroll


def dnc(length: int, slots: int, word_size: int, num_envs: int):
    """Return the same of the package."""
    from dnc import DNC

    net = DNC(
        INPUT_SIZE,
        HIDDEN_SIZE,
        num_hidden_layers=1,
        nr_cells=slots,
        cell_size=word_size,
        read_heads=NUM_READ_KEYS,
        batch_first=False,
        gpu_id=-1,
    )
    return lambda x: net(x, (None, None, None), reset_experience=True)[0]


WAYS = {"ours": ours, "dnc": dnc}


def measure(way: str, length: int, slots: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of a time step, forward and backward, and the MB of the window."""
    import torch

    torch.set_num_threads(options.threads)
    resource.setrlimit(resource.RLIMIT_DATA, (int(options.limit_gb * 2**30),) * 2)
    unroll = WAYS[way](length, slots, options.word_size, options.num_envs)
    x = torch.randn(length, options.num_envs, INPUT_SIZE)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, spent = peak(), []
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        unroll(x).square().mean().backward()
        spent.append(time.perf_counter() - begin)
    return {"milliseconds": 1000 * spent[-1] / length, "mb": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--slots", type=int, nargs="+", default=[100])
    parser.add_argument("--word-size", type=int, default=64)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gb", type=float, default=16)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, length, slots = options.one
        print(json.dumps(measure(way, int(length), int(slots), options)))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.threads} threads"
    )
    print(f"W {options.word_size}, {NUM_READ_KEYS} keys, {options.num_envs} environments; forward and backward:")
    sizes = ["--word-size", str(options.word_size), "--num-envs", str(options.num_envs)]
    sizes += ["--threads", str(options.threads), "--limit-gb", str(options.limit_gb)]
    for length, slots in product(options.lengths, options.slots):
        texts = []
        for way in WAYS:
            command = [sys.executable, "-W", "ignore", __file__, "--one", way, str(length), str(slots), *sizes]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                texts.append(f"{way}: {done.stderr.strip().splitlines()[-1][:60]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            texts.append(f"{way} {found['milliseconds']:7.2f} ms a step, {found['mb']:>6,.0f} MB")
        print(f"T {length:>4}, N {slots:>5}   {'   '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
