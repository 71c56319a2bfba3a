"""Times an update of Dreamer on one thread: CPU seconds of its parts, and of the whole, by the size of a small model.

    python benchmarks/dreamer_update.py [--task merlin/MemoryGame-v0] [--updates 40] [--profile]

512 rows in 32 windows of 16, 192 starts of 8 imagined steps, some 200,000 parameters.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise

import torch

from merlin.agents.dreamer import Dreamer
from merlin.environments.batch import make_environment
from merlin.runs.presets import preset
from merlin.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="merlin/MemoryGame-v0")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="show where PyTorch's time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = preset("dreamer", options.task)
    model = replace(config.model, imagination_length=8, prefill_steps=1024, replay_ratio=1e-9)
    with make_environment(options.task, config.num_envs) as environment:
        agent = Dreamer(environment.spaces, environment.action_space, model)
        trainer = Trainer(agent, environment, config.training, total_steps=10**9, seed=0)
        collecting = []
        for _ in range(20):
            begin = time.process_time()
            trainer.update()
            collecting.append(time.process_time() - begin)
        learner = trainer.learner
        parts: dict[str, list[float]] = {name: [] for name in ("draw", "scan", "losses", "backward and steps", "whole")}
        for _ in range(options.updates):
            marks = [time.process_time()]
            unroll, state = learner._draw()
            marks.append(time.process_time())
            actions, previous = agent.action_codes(unroll, state)
            activations, _ = agent.scan(unroll, state, actions, previous)
            marks.append(time.process_time())
            losses = agent.loss(activations, unroll, actions, previous, 1.0, learner.generator)
            marks.append(time.process_time())
            learner._descend(losses)
            marks.append(time.process_time())
            for name, (start, end) in zip(parts, pairwise(marks), strict=False):
                parts[name].append(end - start)
            parts["whole"].append(marks[-1] - marks[0])
        if options.profile:
            with torch.profiler.profile() as profile:
                for _ in range(5):
                    learner._learn(*learner._draw(), 1.0)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    parameters = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    print(
        f"{parameters:,} parameters; {1e6 * statistics.median(collecting) / (16 * config.num_envs):.0f} us a step acted"
    )
    for name, seconds in parts.items():
        print(f"{name:20} {1e3 * statistics.median(seconds):7.1f} ms")


if __name__ == "__main__":
    main()
