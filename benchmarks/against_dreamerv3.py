"""Times an update of Dreamer beside one of NM512/dreamerv3-torch, at equal sizes, on one thread.

    git clone https://github.com/NM512/dreamerv3-torch ../dreamerv3-torch
    python benchmarks/against_dreamerv3.py ../dreamerv3-torch [--rounds 40]

Two processes take turns, one update each: 512 rows in 32 windows of 16, 192 starts of 8 imagined steps, latents of 2
groups of 32 classes, layers and recurrent state of 96, heads of 2 layers. Counted are CPU seconds. Both sample their
windows outside of what is timed. The other's is DreamerV3: it has norms in all layers, an actor that is evaluated three
times, and a value of the slow copy as a second target. Rewards and values are one number each there too
(`symlog_mse`); `--bins` takes its default, 255 bins.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
WINDOWS, LENGTH, STARTS, STEPS, GROUPS, CLASSES, WIDTH, LAYERS = 32, 16, 192, 8, 2, 32, 96, 2
TASK = "merlin/MemoryGame-v0"


def ours(options: argparse.Namespace):
    """Return an update, and its number of parameters."""
    from merlin.agents.dreamer import Dreamer
    from merlin.environments.batch import make_environment
    from merlin.runs.presets import preset
    from merlin.training.trainer import Trainer

    config = preset("dreamer", TASK)
    sizes = {"latent_groups": GROUPS, "latent_classes": CLASSES, "head_layers": LAYERS}
    sizes |= dict.fromkeys(("deterministic_size", "hidden_size", "head_size"), WIDTH)
    sizes |= {"replay_windows": WINDOWS, "imagination_starts": STARTS, "imagination_length": STEPS}
    model = replace(config.model, **sizes, prefill_steps=1024, replay_ratio=1e-9)
    environment = make_environment(TASK, config.num_envs)
    agent = Dreamer(environment.spaces, environment.action_space, model)
    training = replace(config.training, unroll_length=LENGTH)
    trainer = Trainer(agent, environment, training, total_steps=10**9, seed=0)
    for _ in range(10):
        trainer.update()
    learner = trainer.learner
    return learner._draw, lambda drawn: learner._learn(*drawn, 1.0), count(agent)


def theirs(options: argparse.Namespace):
    """Return the same of the checkout."""
    import numpy as np
    import torch
    from gymnasium.spaces import Box, Dict

    sys.path.insert(0, str(options.checkout))
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # what updates do without
    import models

    build = models.networks.MLP.__init__  # whose default is a GPU, for all but the heads
    build.__defaults__ = tuple("cpu" if x == "cuda" else x for x in build.__defaults__)
    size, num_actions = 36, 6
    head = {"layers": LAYERS, "outscale": 0.0, "dist": "symlog_disc" if options.bins else "symlog_mse"}
    rates = {"lr": 3e-5, "eps": 1e-5, "grad_clip": 100.0}
    network = {
        "mlp_keys": "observation", "cnn_keys": "$^", "act": "SiLU", "norm": True, "cnn_depth": 1, "kernel_size": 4,
        "minres": 4, "mlp_layers": 1, "mlp_units": WIDTH,
    }  # fmt: skip
    config = types.SimpleNamespace(
        device="cpu", precision=32, encoder=network | {"symlog_inputs": True},
        decoder=network | {"cnn_sigmoid": False, "image_dist": "mse", "vector_dist": "symlog_mse", "outscale": 1.0},
        dyn_stoch=GROUPS, dyn_discrete=CLASSES, dyn_deter=WIDTH, dyn_hidden=WIDTH, dyn_rec_depth=1,
        dyn_mean_act="none", dyn_std_act="sigmoid2", dyn_min_std=0.1, act="SiLU", norm=True, unimix_ratio=0.01,
        initial="learned", num_actions=num_actions, units=WIDTH, grad_heads=["decoder", "reward", "cont"],
        reward_head=head | {"loss_scale": 1.0}, cont_head={"layers": LAYERS, "loss_scale": 1.0, "outscale": 1.0},
        actor=rates | {"layers": LAYERS, "dist": "onehot", "entropy": 3e-4, "unimix_ratio": 0.01, "std": "none",
                       "min_std": 0.1, "max_std": 1.0, "temp": 0.1, "outscale": 1.0},
        critic=rates | head | {"slow_target": True, "slow_target_update": 1, "slow_target_fraction": 0.02},
        model_lr=1e-4, opt_eps=1e-8, grad_clip=1000, weight_decay=0.0, opt="adam", kl_free=1.0, dyn_scale=0.5,
        rep_scale=0.1, discount=0.997, discount_lambda=0.95, imag_horizon=STEPS, imag_gradient="reinforce",
        imag_gradient_mix=0.0, reward_EMA=True,
    )  # fmt: skip
    space = Dict({"observation": Box(-1, 1, (size,))})
    model = models.WorldModel(space, None, 0, config)
    behaviour = models.ImagBehavior(config, model)
    for part in (model, behaviour):
        part.requires_grad_(False)
    random = np.random.default_rng(0)
    shape = WINDOWS, LENGTH

    def draw():
        first = np.zeros(shape, dtype=np.float32)
        first[:, 0] = 1
        return {
            "observation": random.random((*shape, size), dtype=np.float32),
            "action": np.eye(num_actions, dtype=np.float32)[random.integers(num_actions, size=shape)],
            "reward": random.random((*shape, 1), dtype=np.float32),
            "is_first": first,
            "is_terminal": np.zeros(shape, dtype=np.float32),
            "image": np.zeros(1, dtype=np.float32),  # asked for, and read by no network
        }

    def learn(data):
        posterior, _, _ = model._train(data)
        rows = torch.randint(WINDOWS * LENGTH, (STARTS,))
        starts = {name: x.flatten(0, 1)[rows].unsqueeze(0) for name, x in posterior.items()}
        heads = model.heads
        behaviour._train(starts, lambda f, s, a: heads["reward"](model.dynamics.get_feat(s)).mode())

    return draw, learn, count(model) + count(behaviour.actor) + count(behaviour.value)


def count(module) -> int:
    """Return how many parameters learn, but for those that are copies."""
    return sum(x.numel() for name, x in module.named_parameters() if "target" not in name)


WAYS = {"ours": ours, "dreamerv3-torch": theirs}


def serve(options: argparse.Namespace) -> None:
    """Make an update for each line that comes, and print what it cost."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw, learn, parameters = WAYS[options.serve](options)
    for _ in range(3):
        learn(draw())
    print("ready", parameters, flush=True)
    for _ in sys.stdin:
        data = draw()
        begin = time.process_time()
        learn(data)
        print(time.process_time() - begin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bins", action="store_true", help="let the other predict rewards and values in 255 bins")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes, seconds = {}, {name: [] for name in WAYS}
    for name in WAYS:
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--serve", name]
        process = subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True)
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise SystemExit(f"{name} ended before its first update")
        print(f"{name:16} {int(line.split()[1]):>9,} parameters", flush=True)
        processes[name] = process
    for _ in range(options.rounds):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[name].append(float(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    for name, x in seconds.items():
        low, _, high = statistics.quantiles(x, n=4)
        print(f"{name:16} {1e3 * statistics.median(x):7.1f} ms an update ({1e3 * low:.1f} to {1e3 * high:.1f})")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
