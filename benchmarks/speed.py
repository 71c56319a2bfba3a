"""Measures environment steps per second of training, beside RecurrentPPO, torch-ac and TorchRL where installed.

    python benchmarks/speed.py [--rounds 3] [--seconds 10] [--threads 2] [--only TEXT ...] [--beside DIRECTORY]

Every figure is a process of its own; the processes alternate, round after round, so that a drift of the machine meets
all of them. Printed: the median over rounds, the shares of environment, acting and learning, the fraction of the speed
of large matrix products, and the peak memory. `--beside` measures other code as well, such as a worktree of an earlier
commit, in turn with this one.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

GAME, MAZE, MINIGRID = "merlin/MemoryGame-v0", "merlin/Memory-v0", "MiniGrid-MemoryS7-v0"
TASKS = {"game": GAME, "maze": MAZE, "MiniGrid": MINIGRID}
SIZES = {
    "small": {"latent_size": 32, "hidden_size": 64, "policy_hidden_size": 64, "memory_size": 32},
    "medium": {"latent_size": 64, "hidden_size": 128, "policy_hidden_size": 128, "memory_size": 128},
    "paper": {"latent_size": 200, "hidden_size": 256, "policy_hidden_size": 256, "memory_size": 1350},
}


class Setup(NamedTuple):
    """Who learns what, on how many environments, with which of its preset's settings changed."""

    agent: str
    task: str
    num_envs: int
    model: dict[str, int] = {}  # noqa: RUF012 (never changed)
    training: dict[str, int] = {}  # noqa: RUF012


def one_layer(size: int) -> dict[str, int]:
    return {"hidden_size": size, "num_layers": 1}


SETUPS = {
    # with its preset's sizes
    "rl-lstm preset, game, 128 envs": Setup("rl-lstm", GAME, 128),
    "rl-mem preset, game, 128 envs": Setup("rl-mem", GAME, 128),
    "merlin preset, game, 128 envs": Setup("merlin", GAME, 128),
    "merlin preset, game, 512 envs": Setup("merlin", GAME, 512),
    "rl-lstm preset, MiniGrid, 64 envs": Setup("rl-lstm", MINIGRID, 64),
    "rl-mem preset, MiniGrid, 64 envs": Setup("rl-mem", MINIGRID, 64),
    "merlin preset, MiniGrid, 64 envs": Setup("merlin", MINIGRID, 64),
    # with an LSTM of one size, as the others have
    "rl-lstm 256 x 1, game, 64 envs": Setup("rl-lstm", GAME, 64, one_layer(256)),
    "rl-lstm 256 x 1, game, 1,024 envs": Setup("rl-lstm", GAME, 1024, one_layer(256)),
    "rl-lstm 256 x 2, game, 64 envs": Setup("rl-lstm", GAME, 64, {"hidden_size": 256}),
    "TorchRL 256 x 1, game, 64 envs": Setup("TorchRL", GAME, 64, one_layer(256)),
    "TorchRL 256 x 1, game, 1,024 envs": Setup("TorchRL", GAME, 1024, one_layer(256)),
}
SETUPS |= {
    f"{agent} {size} x 1, {task}, 16 envs": Setup(agent, TASKS[task], 16, one_layer(size))
    for task in TASKS
    for size in (64, 128, 256)
    for agent in ("rl-lstm", "RecurrentPPO", "torch-ac", "TorchRL")
}
# one pass over each window, so that tasks can be compared
SETUPS |= {
    f"{agent} {size}, {task}, {num_envs} envs": Setup(
        agent, TASKS[task], num_envs, SIZES[size], {"passes": 1, "minibatches": 1, "unroll_length": 20}
    )
    for task in ("game", "maze")
    for size, num_envs in (("small", 512), ("medium", 128), ("paper", 64))
    for agent in ("rl-lstm", "rl-mem", "merlin")
}
# the sizes of ALF's
SETUPS |= {
    f"merlin N {slots:,} Z {latent}, game, {num_envs} envs": Setup(
        "merlin",
        GAME,
        num_envs,
        {"latent_size": latent, "hidden_size": 256, "policy_hidden_size": 256, "memory_size": slots},
        {"unroll_length": 20},
    )
    for slots, latent, num_envs in ((100, 64, 64), (1350, 200, 16))
}


def configure(setup: Setup, threads: int):
    """Return the configuration of a run."""
    from merlin import preset

    config = preset(setup.agent, setup.task)
    return replace(
        config,
        num_envs=setup.num_envs,
        device="cpu",
        model=replace(config.model, **{name: x for name, x in setup.model.items() if hasattr(config.model, name)}),
        training=replace(config.training, num_threads=threads, **setup.training),
    )


def measure_ours(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train for some seconds after a warm-up; return steps per second and where the time went."""
    config = configure(setup, threads)
    try:
        from merlin.profiling import profile
    except ImportError:  # code from before it could profile itself
        return {"steps_per_second": measure_updates(config, seconds)}
    result = profile(config, seconds)
    return {"steps_per_second": result.steps_per_second, "utilization": result.utilization} | result.shares


def measure_updates(config, seconds: float) -> float:
    """Return the environment steps per second of training, after two updates to warm up."""
    import torch

    from merlin import Trainer, build_agent, build_environment

    torch.set_num_threads(config.training.num_threads)
    with build_environment(config) as environment:
        agent = build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=10**12, seed=config.seed)
        for _ in range(2):
            trainer.update()
        begin, steps = time.perf_counter(), trainer.env_steps
        while time.perf_counter() - begin < seconds or trainer.env_steps == steps:
            trainer.update()
        return (trainer.env_steps - steps) / (time.perf_counter() - begin)


def make_single(task: str):
    """Return one environment with one flat observation, as the others take it."""
    import gymnasium

    import merlin  # noqa: F401 (registers)

    env = gymnasium.make(task)
    if task == MINIGRID:
        from minigrid.wrappers import ImgObsWrapper

        env = ImgObsWrapper(env)
    return gymnasium.wrappers.FlattenObservation(env)


def measure_recurrent_ppo(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train RecurrentPPO with its defaults, all but the LSTM's size."""
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(threads)
    envs = make_vec_env(lambda: make_single(setup.task), setup.num_envs)
    size = {"lstm_hidden_size": setup.model["hidden_size"]}
    model = RecurrentPPO("MlpLstmPolicy", envs, device="cpu", policy_kwargs=size)
    window = model.n_steps * setup.num_envs
    model.learn(window)
    begin, windows = time.perf_counter(), 0
    while windows == 0 or time.perf_counter() - begin < seconds:
        model.learn(window, reset_num_timesteps=False)
        windows += 1
    return {"steps_per_second": windows * window / (time.perf_counter() - begin)}


def measure_torch_ac(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train torch-ac's PPO with its defaults, all but a recurrence of 16, on an LSTM of this size and a worker each."""
    import numpy as np
    import torch
    from torch import nn
    from torch_ac import PPOAlgo, RecurrentACModel

    torch.set_num_threads(threads)
    envs = [make_single(setup.task) for _ in range(setup.num_envs)]
    size, num_inputs = setup.model["hidden_size"], envs[0].observation_space.shape[0]

    class Model(nn.Module, RecurrentACModel):
        memory_size = 2 * size

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(num_inputs, 64), nn.Tanh())
            self.cell = nn.LSTMCell(64, size)
            self.actor, self.critic = nn.Linear(size, int(envs[0].action_space.n)), nn.Linear(size, 1)

        def forward(self, obs, memory):
            hidden, cell = self.cell(self.encoder(obs), tuple(memory.chunk(2, 1)))
            policy = torch.distributions.Categorical(logits=self.actor(hidden))
            return policy, self.critic(hidden).squeeze(1), torch.cat([hidden, cell], 1)

    def stack(observations, device=None):
        return torch.from_numpy(np.stack(observations)).float()

    learner = PPOAlgo(envs, Model(), torch.device("cpu"), recurrence=16, preprocess_obss=stack)
    begin, steps = 0.0, -1
    while steps < 0 or time.perf_counter() - begin < seconds:
        experience, _ = learner.collect_experiences()
        learner.update_parameters(experience)
        if steps < 0:  # the first one warms up
            begin = time.perf_counter()
            steps = 0
        else:
            steps += learner.num_frames
    return {"steps_per_second": steps / (time.perf_counter() - begin)}


def measure_torchrl(setup: Setup, seconds: float, threads: int) -> dict[str, float]:
    """Train TorchRL's PPO on an LSTM of this size, on our batch of environments: windows of 16 steps, one pass."""
    import gymnasium
    import numpy as np
    import torch
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch import nn
    from torchrl.collectors import Collector
    from torchrl.envs import Compose, GymWrapper, InitTracker, TransformedEnv
    from torchrl.modules import (
        ActorValueOperator,
        LSTMModule,
        OneHotCategorical,
        ProbabilisticActor,
        set_recurrent_mode,
    )
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    import merlin  # noqa: F401 (registers)

    torch.set_num_threads(threads)
    made = gymnasium.make_vec(setup.task, setup.num_envs, vectorization_mode="vector_entry_point", arrays="numpy")
    spaces, size, window = made.single_observation_space, setup.model["hidden_size"], 16

    class Rows(gymnasium.vector.VectorWrapper):
        """One-hots side by side: of batches that reset themselves TorchRL takes no Dict, gymnasium's wrappers none."""

        single_observation_space = gymnasium.spaces.flatten_space(spaces)
        observation_space = gymnasium.vector.utils.batch_space(single_observation_space, setup.num_envs)
        autoreset_mode = made.metadata["autoreset_mode"]

        def reset(self, **options):
            observation, info = self.env.reset(**options)
            return self.row(observation), info

        def step(self, actions):
            observation, *rest, _ = self.env.step(actions)
            return self.row(observation), *rest, {}

        def row(self, observation):
            parts = [np.eye(int(space.n), dtype=np.float32)[observation[name]] for name, space in spaces.items()]
            return np.concatenate(parts, 1)

    lstm = LSTMModule(Rows.single_observation_space.shape[0], size, in_key="row", out_key="features")
    env = TransformedEnv(GymWrapper(Rows(made)), Compose(InitTracker(), lstm.make_tensordict_primer()))
    row = TensorDictModule(lambda x: x.float(), ["observation"], ["row"])

    def head(outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 200), nn.Tanh(), nn.Linear(200, outputs))

    logits = TensorDictModule(head(int(made.single_action_space.n)), ["features"], ["logits"])
    agent = ActorValueOperator(
        TensorDictSequential(row, lstm),
        ProbabilisticActor(logits, ["logits"], distribution_class=OneHotCategorical, return_log_prob=True),
        TensorDictModule(head(1), ["features"], ["state_value"]),
    )
    policy, value = agent.get_policy_operator(), agent.get_value_operator()
    advantages = GAE(gamma=0.96, lmbda=0.9, value_network=value, shifted=True)
    loss = ClipPPOLoss(policy, value, entropy_coeff=0.02, critic_coeff=0.5)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3)
    begin, steps = 0.0, -1
    for data in Collector(env, policy, frames_per_batch=setup.num_envs * window, total_frames=-1):
        with torch.no_grad(), set_recurrent_mode(True):
            advantages(data)
        with set_recurrent_mode(True):
            losses = loss(data)
        optimizer.zero_grad()
        sum(x for name, x in losses.items() if name.startswith("loss_")).backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 10.0)
        optimizer.step()
        if steps < 0:  # the first one warms up
            begin, steps = time.perf_counter(), 0
            continue
        steps += data.numel()
        if time.perf_counter() - begin >= seconds:
            break
    return {"steps_per_second": steps / (time.perf_counter() - begin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], help="measure the setups whose name holds one of these")
    parser.add_argument("--beside", metavar="DIRECTORY", help="other code to measure as well: where its packages lie")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        setup = SETUPS[options.one]
        others = {"RecurrentPPO": measure_recurrent_ppo, "torch-ac": measure_torch_ac, "TorchRL": measure_torchrl}
        result = others.get(setup.agent, measure_ours)(setup, options.seconds, options.threads)
        result["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.threads} threads"
    )
    names = [name for name in SETUPS if any(text in name for text in options.only)]
    codes = [None, options.beside] if options.beside else [None]
    results: dict[tuple[str, str | None], list[dict[str, float]]] = {(x, code): [] for x in names for code in codes}
    for _ in range(options.rounds):
        for (name, code), rows in results.items():
            command = [sys.executable, __file__, "--one", name]
            command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
            environment = os.environ | ({"PYTHONPATH": code} if code else {})
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode == 0:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {rows[-1]['steps_per_second']:,.0f} steps/s", file=sys.stderr, flush=True)
    for (name, code), rows in results.items():
        name = f"  {code}" if code else name
        if not rows:
            print(f"{name:38} not measured: it failed, or is not installed")
            continue
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        rates = [row["steps_per_second"] for row in rows]
        parts = ("environment", "acting", "learning")
        shares = " ".join(f"{key} {middle[key]:4.0%}" for key in parts if key in middle)
        rate = f"{middle['steps_per_second']:>9,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f})"
        used = f"  {middle['utilization']:.0%} of large products" if "utilization" in middle else ""
        print(f"{name:38} {rate}  {shares}{used}  peak {middle['peak_megabytes']:,.0f} MB")


if __name__ == "__main__":
    main()
