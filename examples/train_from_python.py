"""Train and evaluate without the command line.

It takes half a minute of a core: python examples/train_from_python.py [STEPS] [RUN_DIR] [SEED] [SLOTS]
"""

import argparse

import merlin


def main(steps: int = 300_000, run_dir: str | None = None, seed: int = 7, slots: int = 6) -> None:
    task, game = "merlin/MemoryGame-v0", {"pairs": 2}
    # A preset chooses the sizes; `set` changes what it is told to.
    settings = {"training.unroll_length": 12, "model.entropy_cost": 0.03, "model.memory_size": slots}
    run = merlin.train(task, run_dir, agent="merlin", steps=steps, seed=seed, env_kwargs=game, set=settings)
    oracle = merlin.make_environment(task, 1, env_kwargs=game).scores["oracle"]
    print(f"return {run.evaluate(episodes=200)['episode_return_mean']:.2f}, of {oracle:.2f} with perfect memory")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=300_000)
    parser.add_argument("run_dir", nargs="?")
    parser.add_argument("seed", nargs="?", type=int, default=7)
    parser.add_argument("slots", nargs="?", type=int, default=6)
    main(**vars(parser.parse_args()))
