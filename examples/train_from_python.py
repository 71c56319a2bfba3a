"""Train and evaluate without the command line: a run is a function of its configuration.

python examples/train_from_python.py [ENVIRONMENT_STEPS] [RUN_DIR]
"""

import sys
from dataclasses import replace
from pathlib import Path

from merlin.runs.presets import preset
from merlin.runs.run import build_environment, load_agent, train
from merlin.runs.settings import override
from merlin.training.evaluation import HELD_OUT_SEED, evaluate


def main(steps: int = 300_000, run_dir: str = "runs/from-python") -> None:
    # A preset chooses the sizes; dataclasses.replace and --set's own `override` change what they are told to.
    config = replace(preset("merlin", "merlin/MemoryGame-v0", {"pairs": 2}), steps=steps, seed=7)
    config = override(config, ["training.unroll_length=12", "model.entropy_cost=0.03"])
    train(config, Path(run_dir))

    with build_environment(config, num_envs=50) as environment:
        agent = load_agent(Path(run_dir), environment, config)
        result = evaluate(agent, environment, episodes=200, seed=config.seed + HELD_OUT_SEED)
        print(f"return {result['episode_return_mean']:.2f}, of {environment.scores['oracle']:.2f} with perfect memory")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, str), sys.argv[1:], strict=False)))
