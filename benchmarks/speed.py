"""Measures environment steps per second of training, beside stable-baselines3-contrib's RecurrentPPO where installed.

    python benchmarks/speed.py [--rounds 3] [--seconds 10] [--threads 2] [--only TEXT]

Every figure is a process of its own; the processes alternate, round after round, so that a drift of the machine meets
all of them. Printed: the median over rounds, the shares of environment, acting and learning, the fraction of the speed
of large matrix products, and the peak memory.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

GAME, MINIGRID = "merlin/MemoryGame-v0", "MiniGrid-MemoryS7-v0"
ONE_LAYER = {"hidden_size": 256, "num_layers": 1}


class Setup(NamedTuple):
    """Who learns what, on how many environments, with which of its preset's sizes changed."""

    agent: str
    task: str
    num_envs: int
    model: dict[str, int] = {}  # noqa: RUF012 (never changed)


SETUPS = {
    "rl-lstm small, game, 128 envs": Setup("rl-lstm", GAME, 128),
    "rl-mem small, game, 128 envs": Setup("rl-mem", GAME, 128),
    "merlin small, game, 128 envs": Setup("merlin", GAME, 128),
    "merlin small, game, 512 envs": Setup("merlin", GAME, 512),
    "rl-lstm 256 x 1, game, 64 envs": Setup("rl-lstm", GAME, 64, ONE_LAYER),
    "rl-lstm 256 x 1, game, 1,024 envs": Setup("rl-lstm", GAME, 1024, ONE_LAYER),
    "rl-lstm 256 x 2, game, 64 envs": Setup("rl-lstm", GAME, 64, {"hidden_size": 256}),
    "RecurrentPPO 256, game, 16 envs": Setup("RecurrentPPO", GAME, 16),
    "rl-lstm small, MiniGrid, 64 envs": Setup("rl-lstm", MINIGRID, 64),
    "rl-mem small, MiniGrid, 64 envs": Setup("rl-mem", MINIGRID, 64),
    "merlin small, MiniGrid, 64 envs": Setup("merlin", MINIGRID, 64),
    "rl-lstm 256 x 1, MiniGrid, 16 envs": Setup("rl-lstm", MINIGRID, 16, ONE_LAYER),
    "RecurrentPPO 256, MiniGrid, 16 envs": Setup("RecurrentPPO", MINIGRID, 16),
}


def measure_ours(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train for some seconds after a warm-up; return steps per second and where the time went."""
    from merlin.presets import preset
    from merlin.profiling import profile

    config = preset(setup.agent, setup.task)
    config = replace(
        config,
        num_envs=setup.num_envs,
        device="cpu",
        model=replace(config.model, **setup.model),
        training=replace(config.training, num_threads=threads),
    )
    result = profile(config, seconds)
    return {"steps_per_second": result.steps_per_second, "utilization": result.utilization} | result.shares


def measure_recurrent_ppo(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train RecurrentPPO with its defaults, an LSTM of 256, on the flattened observation."""
    import gymnasium
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    import tasks  # noqa: F401 (registers)

    torch.set_num_threads(threads)

    def make():
        if setup.task == MINIGRID:
            from minigrid.wrappers import ImgObsWrapper

            return gymnasium.wrappers.FlattenObservation(ImgObsWrapper(gymnasium.make(MINIGRID)))
        return gymnasium.wrappers.FlattenObservation(gymnasium.make(setup.task))

    model = RecurrentPPO("MlpLstmPolicy", make_vec_env(make, setup.num_envs), device="cpu")
    window = model.n_steps * setup.num_envs
    model.learn(window)
    begin, windows = time.perf_counter(), 0
    while windows == 0 or time.perf_counter() - begin < seconds:
        model.learn(window, reset_num_timesteps=False)
        windows += 1
    return {"steps_per_second": windows * window / (time.perf_counter() - begin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="measure the setups whose name holds this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        setup = SETUPS[options.one]
        measure = measure_recurrent_ppo if setup.agent == "RecurrentPPO" else measure_ours
        result = measure(setup, options.seconds, options.threads)
        result["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.threads} threads"
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SETUPS if options.only in name}
    for _ in range(options.rounds):
        for name in results:
            command = [sys.executable, __file__, "--one", name]
            command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {results[name][-1]['steps_per_second']:,.0f} steps/s", file=sys.stderr, flush=True)
    for name, rows in results.items():
        if not rows:
            print(f"{name:38} not measured: it failed, or is not installed")
            continue
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        rates = [row["steps_per_second"] for row in rows]
        parts = ("environment", "acting", "learning")
        shares = " ".join(f"{key} {middle[key]:4.0%}" for key in parts if key in middle)
        rate = f"{middle['steps_per_second']:>9,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f})"
        used = f"  {middle['utilization']:.0%} of large products" if "utilization" in middle else ""
        print(f"{name:38} {rate}  {shares}{used}  peak {middle['peak_megabytes']:,.0f} MB")


if __name__ == "__main__":
    main()
