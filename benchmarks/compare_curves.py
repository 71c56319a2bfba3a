"""Draws the return of several agents on one task, thin lines for seeds and a thick one for their median.

    python benchmarks/compare_curves.py runs/learning/memory-game-3 docs/learning_curve.png

The first argument is what the run directories of `benchmarks/learning.py` begin with.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from merlin.runs.learning_curve import load
from merlin.runs.run import build_environment, load_config

AGENTS = {"merlin": ("MERLIN", "#6b3fa0"), "rl-mem": ("RL-MEM", "#d9822b"), "rl-lstm": ("RL-LSTM", "#2b7bba")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefix", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for agent, (label, colour) in AGENTS.items():
        runs = sorted(options.prefix.parent.glob(f"{options.prefix.name}_{agent}_seed*/"))
        curves = [load(run) for run in runs]
        if not curves:
            continue
        length = min(len(curve["env_steps"]) for curve in curves)
        steps = curves[0]["env_steps"][:length] / 1e6
        returns = np.stack([curve["episode_return_mean"][:length] for curve in curves])
        axes.plot(steps, returns.T, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, np.median(returns, 0), color=colour, linewidth=2, label=f"{label}, {len(runs)} seeds")
    with build_environment(load_config(runs[0]), num_envs=1) as environment:
        for name, score in environment.scores.items():
            axes.axhline(score, color="#888888", linestyle="--", linewidth=0.8)
            axes.annotate(
                name, (1, score), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#666666"
            )
    axes.set(xlabel="million environment steps", ylabel="return of an episode")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
