"""A task and the memory in RLlib: its PPO, and `MemoryLSTM` as the core of its module. pip install 'ray[rllib]'

The task: see a cue, walk a corridor of LENGTH, turn to the cued side. Without memory the return is 0.50.
With 1 of SLOTS, 32 unless told, it remembers the step before alone, besides what its LSTM holds.

It takes two minutes of a core:
python examples/memory_in_rllib.py [ITERATIONS] [LENGTH] [STEPS_OF_ITERATION] [SEED] [SLOTS]
"""

import argparse
import inspect

import numpy as np
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from merlin.memory import MemoryLSTM  # which registers the tasks too

HIDDEN, WINDOW = 64, 16


class MemoryModule(TorchRLModule, ValueFunctionAPI):
    """Policy and values of what the memory returns. RLlib cuts windows where episodes start, and keeps the state."""

    def setup(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(self.observation_space.shape[0], HIDDEN), nn.Tanh())
        self.core = MemoryLSTM(HIDDEN, HIDDEN, memory_size=self.model_config["slots"], batch_first=True)
        self.policy, self.value = nn.Linear(HIDDEN, self.action_space.n), nn.Linear(HIDDEN, 1)

    def get_initial_state(self) -> dict:
        return {"memory": np.zeros(self.core.state_size, np.float32)}

    def _forward(self, batch: dict, **_) -> dict:
        state = batch[Columns.STATE_IN]["memory"].unsqueeze(0)
        features, after = self.core(self.encoder(batch[Columns.OBS]), state)  # [B, T, H]
        return {
            Columns.ACTION_DIST_INPUTS: self.policy(features),
            Columns.STATE_OUT: {"memory": after[0]},
            Columns.EMBEDDINGS: features,
        }

    def compute_values(self, batch: dict, embeddings=None):
        features = self._forward(batch)[Columns.EMBEDDINGS] if embeddings is None else embeddings
        return self.value(features).squeeze(-1)


def main(iterations: int = 60, length: int = 5, steps: int = 2_048, seed: int = 1, slots: int = 32) -> float:
    model = {"max_seq_len": WINDOW, "slots": slots}
    config = (
        PPOConfig()
        .environment("merlin/TMaze-v0", env_config={"length": length})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=32)
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=MemoryModule, model_config=model))
        .training(train_batch_size=steps, minibatch_size=512, num_epochs=4, lr=7e-4, gamma=0.98, entropy_coeff=0.03)
        .debugging(seed=seed)
    )
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    algorithm = config.build_algo()
    mean = float("nan")
    for iteration in range(iterations):
        result = algorithm.train()["env_runners"]
        mean = result.get("episode_return_mean", mean)
        print(f"{(iteration + 1) * steps:,} steps  return {mean:.2f}")
    algorithm.stop()
    ray.shutdown()
    return mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
