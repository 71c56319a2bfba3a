"""Seconds per row of FTW beside an LSTM of the same sizes: acting and one pass over each window, on one thread.

    python benchmarks/ftw_speed.py [--envs 256] [--length 32] [--windows 12]
    python benchmarks/ftw_speed.py --game [--windows 6]

All read the same encodings, of the T-maze, and have 64 units and heads of the same size; FTW's auxiliary tasks are left
out. RL-MEM's memory is FTW's in size. With --game all is as capture the flag's preset has it, FTW learning by PPO as
RL-LSTM does. Times are CPU seconds of this process, the least of several windows, as other
processes may be busy.
"""

import argparse
import time
from dataclasses import replace

import torch

from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.training.trainer import Trainer

AGENTS: dict[str, tuple[str, dict]] = {
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

IN_THE_GAME: dict[str, tuple[str, dict]] = {
    "RL-LSTM": ("rl-lstm", {}),
    "FTW, core=lstm": ("ftw", {"objective": "ppo", "core": "lstm"}),
    "FTW, no memory": ("ftw", {"objective": "ppo", "memory_size": 0}),
    "FTW, memory 64 x 16, 2 keys": ("ftw", {"objective": "ppo", "memory_size": 64}),
}
REWARDS = [1, 0.4, 0.3, 0.5, 0.1, 0.1, 0.3, 0.1, -0.3, -0.1, -0.5, -0.2, -0.1]


def in_the_game(agent: str, settings: dict) -> Trainer:
    """Return what trains an agent in capture the flag, on 9 x 9 cells with fixed rewards for events."""
    config = preset(agent, "merlin/CaptureTheFlag-v0", {"size": 9, "rewards": REWARDS})
    config = replace(config, model=replace(config.model, **settings), device="cpu")
    environment = build_environment(config)
    return Trainer(build_agent(config, environment), environment, config.training, total_steps=10**9, seed=1)


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
    parser.add_argument("--game", action="store_true", help="in capture the flag, as its preset has it")
    parser.add_argument("--only", nargs="*", help="agents, by the beginnings of their names, besides the first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = IN_THE_GAME if arguments.game else AGENTS
    first = next(iter(table))
    wanted = tuple(table) if arguments.only is None else (first, *arguments.only)
    trainers = {
        name: in_the_game(*x) if arguments.game else trainer_of(*x, arguments.envs, arguments.length)
        for name, x in table.items()
        if name.startswith(wanted)
    }
    seconds = dict.fromkeys(trainers, float("inf"))
    for window in range(arguments.windows):  # in turn, so that other processes slow all of them down alike
        for name, trainer in trainers.items():
            begin = time.process_time()
            trainer.update()
            if window > 0:
                seconds[name] = min(seconds[name], time.process_time() - begin)
    for name, least in seconds.items():
        rows = trainers[name].environment.num_envs * trainers[name].config.unroll_length
        print(f"{name:30} {1e6 * least / rows:7.1f} us a row  {least / seconds[first]:5.2f} x {first}'s", flush=True)


if __name__ == "__main__":
    main()
