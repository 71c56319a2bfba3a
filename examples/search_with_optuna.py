"""A search of settings by Optuna, which stops runs that fall behind: pip install optuna

python examples/search_with_optuna.py [TRIALS] [STEPS]
"""

import argparse
import inspect
import math

import optuna

import merlin


def objective(trial: optuna.Trial, steps: int) -> float:
    settings = {
        "model.entropy_cost": trial.suggest_float("entropy_cost", 0.003, 0.1, log=True),
        "training.learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
    }

    def on_report(report: dict) -> None:
        if math.isfinite(report["episode_return_mean"]):
            trial.report(report["episode_return_mean"], report["env_steps"])
            if trial.should_prune():
                raise optuna.TrialPruned()  # the run has a checkpoint, from which resume= goes on

    game = {"env_kwargs": {"pairs": 2}, "seed": trial.number + 1}
    run = merlin.train("merlin/MemoryGame-v0", agent="rl-mem", steps=steps, set=settings, on_report=on_report, **game)
    return run.evaluate(episodes=200)["episode_return_mean"]


def main(trials: int = 20, steps: int = 200_000) -> float:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_warmup_steps=steps // 5))
    study.optimize(lambda trial: objective(trial, steps), n_trials=trials)
    print(f"return {study.best_value:.2f} of 2 with {study.best_params}")
    return study.best_value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
