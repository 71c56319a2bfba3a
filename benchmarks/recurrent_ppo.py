"""Trains RecurrentPPO of stable-baselines3-contrib, with its defaults, where `defaults.py` trains our agents.

    pip install . sb3-contrib box2d
    python benchmarks/recurrent_ppo.py --out runs/recurrent_ppo.jsonl [--only control cue:20 ...] [--seeds 1 2 3]
        [--jobs 2] [--steps 1e6] [--cpu-seconds 900]
    python benchmarks/defaults.py table runs/defaults.jsonl runs/recurrent_ppo.jsonl

The same environments, steps, held-out seeds and rows: MlpLstmPolicy, one environment, which is its default, one thread
of the CPU. Only the last weights are evaluated, since there is no choice of best ones in its defaults.
"""

import argparse
import json
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from defaults import EPISODES, Task, add_options, job_of, launch, learning, limited_task, score, selected, write_row

AGENT = "recurrent-ppo"


def train(task: Task, seed: int, run_dir: Path) -> dict[str, Any]:
    """Train, and return what came of it."""
    import gymnasium
    import sb3_contrib
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from merlin.environments.make import find_spec
    from merlin.training.evaluation import HELD_OUT_SEED

    class Reports(BaseCallback):
        """The returns of the episodes that ended in each rollout."""

        def __init__(self) -> None:
            super().__init__()
            self.reports: list[dict] = []
            self.returns: list[float] = []

        def _on_step(self) -> bool:
            self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            return time.process_time() - begin < task.cpu_seconds

        def _on_rollout_end(self) -> None:
            mean = statistics.fmean(self.returns) if self.returns else math.nan
            steps = self.num_timesteps
            self.reports.append({"env_steps": steps, "episodes": len(self.returns), "episode_return_mean": mean})
            self.returns = []

    torch.set_num_threads(1)
    make = partial(gymnasium.make, find_spec(task.task).id)  # and imports the module that registers it
    begin, wall = time.process_time(), time.monotonic()
    env = make_vec_env(make, seed=seed, env_kwargs=task.env_kwargs)
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu")
    model.learn(task.steps, callback=(reports := Reports()))
    row = {"steps": model.num_timesteps, "cpu_seconds": round(time.process_time() - begin, 1)}
    row |= {"wall_seconds": round(time.monotonic() - wall, 1), **learning(reports.reports, task.thresholds)}
    model.save(run_dir / "model.zip")
    held_out = {}
    for greedy in (False, True):
        batch = make_vec_env(make, EPISODES, seed=HELD_OUT_SEED + seed, env_kwargs=task.env_kwargs)
        returns, _ = evaluate_policy(model, batch, EPISODES, deterministic=greedy, return_episode_rewards=True)
        assert isinstance(returns, list), "a return of each episode"
        batch.close()
        held_out[f"last{' greedy' * greedy}"] = score(statistics.fmean(returns), statistics.pstdev(returns), EPISODES)
    return row | {"held_out": held_out, "num_envs": 1, "sb3_contrib": sb3_contrib.__version__}


def main() -> int:
    if sys.argv[1:2] == ["one"]:
        job = json.loads(sys.argv[2])
        write_row(job, lambda: train(limited_task(job), job["seed"], Path(job["directory"])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser.add_argument)
    options = parser.parse_args()
    tasks = selected(options.only or ["control", "cue"])
    return launch(__file__, [job_of(name, AGENT, seed) for name in tasks for seed in options.seeds], options)


if __name__ == "__main__":
    sys.exit(main())
