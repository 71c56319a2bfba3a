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


def trainer_of(agent: str, settings: dict, num_envs: int, length: int) -> Trainer:
    """Return what trains an agent on the T-maze."""
    config = preset(agent, "merlin/TMaze-v0")
    settings = {"hidden_size": 64} | settings | ({"reward_prediction_cost": 0.0} if agent == "ftw" else {})
    model, training = replace(config.model, **settings), replace(config.training, unroll_length=length)
    config = replace(config, model=model, training=training, num_envs=num_envs, device="cpu")
    environment = build_environment(config)
    return Trainer(build_agent(config, environment), environment, training, total_steps=10**9, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("envs", 256), ("length", 32), ("windows", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="*", help="agents, by the beginnings of their names, besides the LSTM")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = tuple(AGENTS) if arguments.only is None else ("LSTM", *arguments.only)
    agents = {name: x for name, x in AGENTS.items() if name.startswith(wanted)}
    trainers = {
        name: trainer_of(agent, settings, arguments.envs, arguments.length)
        for name, (agent, settings) in agents.items()
    }
    seconds = dict.fromkeys(trainers, float("inf"))
    for window in range(arguments.windows):  # in turn, so that other processes slow all of them down alike
        for name, trainer in trainers.items():
            begin = time.process_time()
            trainer.update()
            if window > 0:
                seconds[name] = min(seconds[name], time.process_time() - begin)
    for name, least in seconds.items():
        microseconds = 1e6 * least / (arguments.envs * arguments.length)
        print(f"{name:30} {microseconds:7.1f} us a row  {least / seconds['LSTM']:5.2f} x the LSTM's", flush=True)


if __name__ == "__main__":
    main()
