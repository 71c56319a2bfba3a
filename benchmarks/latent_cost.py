"""Times updates of MERLIN with categorical latents by those with a Gaussian of 32, in turn; CPU time of one thread.

python benchmarks/latent_cost.py [--groups 8 16 32] [--updates 30]
"""

import argparse
import statistics
import time

import torch

from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.runs.settings import override
from merlin.training.trainer import Trainer


def trainer(*settings: str) -> Trainer:
    """Return a trainer on the card game of 3 pairs that has made its first updates."""
    config = override(preset("merlin", "merlin/MemoryGame-v0", {"pairs": 3}), list(settings))
    environment = build_environment(config)
    made = Trainer(build_agent(config, environment), environment, config.training, total_steps=10**9, seed=1)
    for _ in range(5):
        made.update()
    return made


def seconds(of: Trainer) -> float:
    begin = time.process_time()
    of.update()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--updates", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gaussian = trainer("model.latent=gaussian")
    for groups in options.groups:
        categorical = trainer("model.latent=categorical", f"model.latent_groups={groups}")
        ratios = [seconds(gaussian) / seconds(categorical) for _ in range(options.updates)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{groups} groups of 4: speed {middle:.2f} ({low:.2f} to {high:.2f}) of the Gaussian's")


if __name__ == "__main__":
    main()
