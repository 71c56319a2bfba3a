"""Seconds per row of FTW beside an LSTM of the same sizes: acting and one pass over each window, on one thread.

    python benchmarks/ftw_speed.py [--envs 256] [--length 32] [--windows 6]

All read the same encodings, of the T-maze, and have 64 units and heads of the same size; FTW's auxiliary tasks are left
out. RL-MEM's memory is FTW's in size. Times are CPU seconds of this process, the least of several windows, as other
processes may be busy.
"""

import argparse
import time
from dataclasses import replace

import torch

from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.training.trainer import Trainer

AGENTS = {
    "LSTM": ("rl-lstm", {"num_layers": 1, "head_size": 128}),
    "two LSTM layers": ("rl-lstm", {"num_layers": 2, "head_size": 128}),
    "RL-MEM of one LSTM layer": (
        "rl-mem",
        {"num_layers": 1, "head_size": 128, "latent_size": 16, "memory_size": 32, "num_read_keys": 2}
        | {"retroactive_discount": None},
    ),
    "FTW, core=lstm": ("ftw", {"core": "lstm"}),
    "FTW, no memory": ("ftw", {"memory_size": 0}),
    "FTW, no memory, tick_steps 1": ("ftw", {"memory_size": 0, "tick_steps": 1}),
    "FTW, memory 32 x 16, 2 keys": ("ftw", {"memory_size": 32}),
}


def seconds_per_row(agent: str, settings: dict, num_envs: int, length: int, windows: int) -> float:
    """Return CPU seconds for each row, of the quickest window."""
    config = preset(agent, "merlin/TMaze-v0")
    settings = {"hidden_size": 64} | settings | ({"reward_prediction_cost": 0.0} if agent == "ftw" else {})
    model, training = replace(config.model, **settings), replace(config.training, unroll_length=length)
    config = replace(config, model=model, training=training, num_envs=num_envs, device="cpu")
    environment = build_environment(config)
    trainer = Trainer(build_agent(config, environment), environment, training, total_steps=10**9, seed=1)
    found = []
    for _ in range(windows):
        begin = time.process_time()
        trainer.update()
        found.append(time.process_time() - begin)
    return min(found[1:]) / (num_envs * length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("envs", 256), ("length", 32), ("windows", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = None
    for name, (agent, settings) in AGENTS.items():
        seconds = seconds_per_row(agent, settings, arguments.envs, arguments.length, arguments.windows)
        base = base or seconds
        print(f"{name:30} {1e6 * seconds:7.1f} us a row  {seconds / base:5.2f} x the LSTM's", flush=True)


if __name__ == "__main__":
    main()
