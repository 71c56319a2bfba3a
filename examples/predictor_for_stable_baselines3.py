"""A trained predictor of MERLIN, frozen, as what a Stable-Baselines3 agent sees: pip install stable-baselines3

PPO with a policy that has no memory then solves a task that needs one, as the predictor remembers for it: see a cue,
walk a corridor of LENGTH, turn to the cued side. Without memory 0.50 of episodes succeed.
With 1 of SLOTS the predictor has its LSTM alone, of which its features tell too little: 0.54.

It takes half a minute of a core:
python examples/predictor_for_stable_baselines3.py [STEPS_OF_MERLIN] [STEPS_OF_PPO] [LENGTH] [SEED] [SLOTS]
"""

import argparse
import inspect

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import merlin
from merlin.states import reset_state


class PredictorFeatures(VecEnvWrapper):
    """Observations are the predictor's latent, the mean of its posterior, and what it read from its memory."""

    def __init__(self, venv: VecEnv, agent: merlin.Merlin) -> None:
        self.predictor, self.actions = agent.predictor.requires_grad_(False), agent.actions
        state = self.predictor.initial_state(venv.num_envs)
        self.noise = torch.zeros(venv.num_envs, agent.config.latent_size)
        width = self.noise.shape[1] + state.read_words.shape[1]
        super().__init__(venv, observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (width,)))

    def reset(self) -> np.ndarray:
        self.state = self.predictor.initial_state(self.num_envs)
        self.latent, seen = self._perceive(self.venv.reset(), np.zeros(self.num_envs, np.float32))
        return seen

    def _perceive(self, observation: np.ndarray, reward: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        entries = {"observation": torch.from_numpy(observation)}
        code = self.predictor.encode(entries, self.state.action, torch.from_numpy(reward))
        latent = self.predictor.perceive(code, self.noise, self.state).latent
        return latent, torch.cat([latent, self.state.read_words], -1).numpy()

    def step_async(self, actions: np.ndarray) -> None:
        taken = self.actions.encode(torch.from_numpy(actions))
        self.state = self.predictor.advance(self.latent, taken, self.state)[0]
        self.venv.step_async(actions)

    def step_wait(self) -> tuple:
        observation, reward, done, infos = self.venv.step_wait()
        for row in np.flatnonzero(done):  # what ended an episode is seen with the memory of that episode
            last = observation.copy()
            last[row] = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = self._perceive(last, reward)[1][row]
        self.state = reset_state(self.state, torch.from_numpy(done))
        self.latent, seen = self._perceive(observation, np.where(done, 0, reward).astype(np.float32))
        return seen, reward, done, infos


def main(
    merlin_steps: int = 60_000,
    ppo_steps: int = 20_000,
    length: int = 5,
    seed: int = 1,
    slots: int | None = None,  # as the preset says
    run_dir: str | None = None,
) -> float:
    task, shape, sizes = "merlin/TMaze-v0", {"length": length}, {"model.memory_size": slots} if slots else {}
    run = merlin.train(task, run_dir, steps=merlin_steps, seed=seed, env_kwargs=shape, set=sizes, device="cpu")
    venv = make_vec_env(task, n_envs=16, seed=seed, env_kwargs=shape)
    features = PredictorFeatures(venv, run.agent.agent)
    policy = PPO("MlpPolicy", features, n_steps=64, batch_size=256, ent_coef=0.01, seed=seed, device="cpu")
    policy.learn(ppo_steps)
    observation, successes = features.reset(), []
    while len(successes) < 200:
        observation, _, done, infos = features.step(policy.predict(observation)[0])
        successes += [infos[row]["is_success"] for row in np.flatnonzero(done)]
    print(
        f"success {np.mean(successes):.2f} of PPO on the predictor's features; MERLIN {run.evaluate()['success_rate']}"
    )
    return float(np.mean(successes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
