"""Trains the agents that `examples/trained` holds, one for each of five tasks, and exports them with their cards.

python benchmarks/trained_agents.py [NAME ...] [--runs DIRECTORY]

The first seed of each is taken as it comes out. All five take some 25 minutes of one core.
"""

import argparse
from pathlib import Path

import merlin

TRAINED = Path(__file__).parents[1] / "examples" / "trained"
EVENTS = {
    "I captured": 1,
    "I picked up": 0.4,
    "I returned": 0.1,
    "mate captured": 0.5,
    "mate picked up": 0.1,
    "I tagged a carrier": 0.1,
    "they captured": -0.1,
}
AGENTS = {
    "card_game": {"env": "merlin/MemoryGame-v0", "env_kwargs": {"pairs": 4}, "steps": 2_000_000},
    "corridor": {"env": "merlin/TMaze-v0", "env_kwargs": {"length": 50}, "steps": 700_000},
    "hallway": {"env": "merlin/Memory-v0", "env_kwargs": {"size": 9, "agent_view_size": 3}, "steps": 3_000_000},
    "latent_learning": {"env": "merlin/LatentLearning-v0", "steps": 2_000_000},
    "capture_the_flag": {
        "env": "merlin/CaptureTheFlag-v0",
        "agent": "ftw",
        "env_kwargs": {"size": 9, "rewards": EVENTS},
        "steps": 2_000_000,
    },
}
EPISODES = 512


def main() -> None:
    """Train and export, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(AGENTS)} (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/trained"), help="directory of the runs")
    options = parser.parse_args()
    if unknown := set(options.names) - set(AGENTS):
        parser.error(f"names must be of {', '.join(AGENTS)}, but {', '.join(sorted(unknown))} came: correct them.")
    for name in options.names or AGENTS:
        run = merlin.train(run_dir=options.runs / name, seed=1, wandb="disabled", **AGENTS[name])
        print(run.agent.save(TRAINED / name, episodes=EPISODES))


if __name__ == "__main__":
    main()
