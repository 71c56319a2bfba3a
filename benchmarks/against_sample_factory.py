"""Compares RL-LSTM's training with Sample Factory's recurrent PPO on MiniGrid's MemoryS13, stepped by MiniGrid in both.

    pip install .                                                           here
    pip install torch sample-factory 'minigrid<3'                           in another environment: it wants numpy 1
    python benchmarks/against_sample_factory.py OTHER_PYTHON [--rounds 3] [--num-envs 16 64]

Both have an LSTM of 256 behind a layer for what is seen, windows of 32 steps, one pass over each, and one process. Ours
sees categories, Sample Factory their numbers. Counted are CPU seconds of training alone: the difference between a long
run and a short one.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASK, WINDOW, HIDDEN, SEEN = "MiniGrid-MemoryS13-v0", 32, 256, 128
SHORT, LONG = 10_240, 61_440


def flat_task(*_, **__):
    """Return MiniGrid's environment, what is seen as a row of numbers."""
    import gymnasium
    import numpy as np
    from minigrid.wrappers import ImgObsWrapper

    class Flat(gymnasium.ObservationWrapper):
        observation_space = gymnasium.spaces.Box(0, 255, (7 * 7 * 3,), np.float32)

        def observation(self, observation):
            return observation.reshape(-1).astype(np.float32)

    return Flat(ImgObsWrapper(gymnasium.make(TASK)))


def sample_factory(num_envs: int, steps: int) -> None:
    """Train Sample Factory for so many steps."""
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import run_rl

    register_env(TASK, flat_task)
    settings = {
        "env": TASK, "train_for_env_steps": steps, "num_envs_per_worker": num_envs, "batch_size": num_envs * WINDOW,
        "rollout": WINDOW, "recurrence": WINDOW, "rnn_size": HIDDEN, "encoder_mlp_layers": SEEN,
        "num_epochs": 1, "num_batches_per_epoch": 1, "use_rnn": True, "rnn_type": "lstm", "rnn_num_layers": 1,
        "num_workers": 1, "worker_num_splits": 1, "serial_mode": True, "async_rl": False, "device": "cpu",
        "normalize_input": False, "save_every_sec": 100_000, "experiment": "beside", "restart_behavior": "overwrite",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        given = [f"--{name}={value}" for name, value in (settings | {"train_dir": folder}).items()]
        parser, _ = parse_sf_args(given)
        run_rl(parse_full_cfg(parser, given))


def ours(num_envs: int, steps: int) -> None:
    """Train RL-LSTM for so many steps."""
    from dataclasses import replace

    import torch

    from merlin import Trainer, build_agent, build_environment, preset

    torch.set_num_threads(1)
    config = preset("rl-lstm", TASK, {})
    model = replace(config.model, hidden_size=HIDDEN, num_layers=1)
    training = replace(config.training, passes=1, minibatches=1, unroll_length=WINDOW)
    config = replace(config, task=f"minigrid:{TASK}", num_envs=num_envs, device="cpu", model=model, training=training)
    with build_environment(config) as environment:
        trainer = Trainer(build_agent(config, environment), environment, training, total_steps=steps, seed=1)
        while trainer.env_steps < steps:
            trainer.update()


KINDS = {"ours": ours, "Sample Factory": sample_factory}


def cost(python: str, kind: str, num_envs: int, steps: int) -> float:
    """Return the CPU seconds of a run in a process of its own."""
    command = [python, __file__, "--serve", kind, "--num-envs", str(num_envs), "--steps", str(steps)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2_000:])
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="the interpreter that has Sample Factory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        KINDS[options.serve](options.num_envs[0], options.steps)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(time.process_time() + children.ru_utime + children.ru_stime)
        return
    pythons = {"ours": sys.executable, "Sample Factory": options.python}
    print(f"{TASK}, LSTM of {HIDDEN}: environment steps per CPU second, medians")
    for num_envs in options.num_envs:
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for index in range(options.rounds):
            for kind in sorted(KINDS, reverse=bool(index % 2)):
                short, long = (cost(pythons[kind], kind, num_envs, steps) for steps in (SHORT, LONG))
                rates[kind].append((LONG - SHORT) / (long - short))
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        shown = ", ".join(f"{kind} {statistics.median(rate):,.0f}" for kind, rate in rates.items())
        low, high = min(ratios), max(ratios)
        print(f"{num_envs:>5} environments: {shown}, ratio {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
