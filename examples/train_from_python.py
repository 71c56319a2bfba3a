"""Train and evaluate without the command line.

python examples/train_from_python.py [ENVIRONMENT_STEPS] [RUN_DIR] [SEED] [SLOTS]
"""

import sys

import merlin


def main(steps: int = 300_000, run_dir: str = "runs/from-python", seed: int = 7, slots: int = 6) -> None:
    task, game = "merlin/MemoryGame-v0", {"pairs": 2}
    # A preset chooses the sizes; `set` changes what it is told to.
    settings = {"training.unroll_length": 12, "model.entropy_cost": 0.03, "model.memory_size": slots}
    run = merlin.train(task, run_dir, agent="merlin", steps=steps, seed=seed, env_kwargs=game, set=settings)
    oracle = merlin.make_environment(task, 1, env_kwargs=game).scores["oracle"]
    print(f"return {run.evaluate(episodes=200)['episode_return_mean']:.2f}, of {oracle:.2f} with perfect memory")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, str, int, int), sys.argv[1:], strict=False)))
