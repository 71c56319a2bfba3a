"""Population-based training of one agent's settings by Ray Tune, on top of run directories: each trial is a run.

Part by part a trial reports its return and its run directory. Ray lets the worst go on from the directory of one of
the best, with other settings. What may change in a run that goes on are settings of training (training.*).
Jaderberg et al. 2017, arXiv:1711.09846. (Agents that play one another are `merlin population`'s.)

pip install 'merlin-agents[ray]'
python examples/pbt_with_ray.py [TRIALS] [PARTS] [STEPS_OF_A_PART] [DIRECTORY]
"""

import argparse
import inspect
import io
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

import merlin
from merlin.runs.learning_curve import load

RANGES = {"learning_rate": tune.loguniform(1e-5, 1e-1), "max_grad_norm": tune.loguniform(0.1, 10)}


def train(settings: dict) -> None:
    """Train a trial part by part, from where it or its model stands."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir, part = Path(directory) / "run", 0
        if (found := tune.get_checkpoint()) is not None:  # its own, or that which it is to exploit
            with found.as_directory() as source:
                shutil.copytree(source, run_dir)
            part = round(load(run_dir)["env_steps"][-1] / settings["part_steps"])
        for number in range(part + 1, settings["parts"] + 1):
            config = merlin.preset("rl-lstm", "merlin/TMaze-v0")
            config = replace(config, steps=number * settings["part_steps"], device="cpu")
            changes = [f"training.{name}={settings[name]}" for name in RANGES]
            # Schedules would count from a run's end, which is not known here.
            changes += ["training.final_learning_rate_fraction=1", "training.final_entropy_fraction=1"]
            config = merlin.override(config, changes)
            merlin.train(config, run_dir, resume=run_dir.exists(), stream=io.StringIO())
            score = float(load(run_dir)["episode_return_mean"][-1])
            tune.report({"score": score, "part": number}, checkpoint=tune.Checkpoint.from_directory(run_dir))


def main(trials: int = 4, parts: int = 8, part_steps: int = 20_000, directory: str = "runs/pbt") -> None:
    scheduler = PopulationBasedTraining(
        time_attr="part", perturbation_interval=1, hyperparam_mutations=RANGES, quantile_fraction=0.25
    )
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=RANGES | {"parts": parts, "part_steps": part_steps},
        tune_config=tune.TuneConfig(scheduler=scheduler, metric="score", mode="max", num_samples=trials),
        run_config=tune.RunConfig(name="pbt", storage_path=str(Path(directory).absolute()), verbose=1),
    )
    best = tuner.fit().get_best_result()
    assert best.metrics is not None and best.checkpoint is not None
    print(f"score {best.metrics['score']:.2f} at a learning rate of {best.metrics['config']['learning_rate']:.1e}")
    print(f"merlin evaluate {best.checkpoint.path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
