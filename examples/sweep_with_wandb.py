"""A sweep of Weights & Biases, whose agent trains one run after another: wandb login

python examples/sweep_with_wandb.py [RUNS] [STEPS]
"""

import sys
from functools import partial

import wandb

import merlin

SWEEP = {
    "method": "bayes",
    "metric": {"name": "held_out_return", "goal": "maximize"},
    "parameters": {  # by the names that --set takes
        "model.entropy_cost": {"min": 0.003, "max": 0.1, "distribution": "log_uniform_values"},
        "training.learning_rate": {"min": 3e-4, "max": 1e-2, "distribution": "log_uniform_values"},
    },
}


def train(steps: int, **options) -> float:
    with wandb.init(**options) as run:
        task, settings = "merlin/MemoryGame-v0", dict(run.config)
        log = lambda report: run.log(report)  # noqa: E731 (returns None, so that nothing stops)
        trained = merlin.train(task, agent="rl-mem", steps=steps, env_kwargs={"pairs": 2}, set=settings, on_report=log)
        score = trained.evaluate(episodes=200)["episode_return_mean"]
        run.log({"held_out_return": score})
    return score


def main(runs: int = 20, steps: int = 200_000) -> None:
    wandb.agent(wandb.sweep(SWEEP, project="merlin-agents"), partial(train, steps), count=runs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
