"""Measures one act at batch 1: agents of this package beside RecurrentPPO (sb3-contrib), in turn, on one thread.

    python benchmarks/acting.py [--rounds 25] [--steps 60] [--task merlin/MemoryGame-v0]

Each agent at its preset's sizes with fresh weights, RecurrentPPO with its defaults (an LSTM of 256), each as its users
call it: `LoadedAgent.act` and `RecurrentPPO.predict`, observations and actions as arrays. `step` is `Agent.step`, which
computes what learning and analyses read too. Printed: CPU milliseconds, medians and least over rounds, and the median
and quartiles of the ratio to RecurrentPPO in the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import gymnasium
import numpy as np
import torch

from merlin import build_agent, build_environment
from merlin.runs.player import LoadedAgent
from merlin.runs.presets import preset

PEER = "RecurrentPPO.predict"


def ours(name: str, task: str) -> dict[str, Callable[[], object]]:
    config = replace(preset(name, task), device="cpu")
    with build_environment(config, 1) as environment:
        agent = build_agent(config, environment).eval()
        timestep = environment.reset(1)
    player, states = LoadedAgent(agent), [agent.initial_state(1)]
    observation, _ = gymnasium.make(task).reset(seed=0)
    player.reset()
    player.act(observation)

    def step() -> None:
        states[0] = agent.step(timestep.observation, states[0], False, timestep.reward)[1]

    return {f"{name} act": lambda: player.act(observation, 0.0), f"{name} step": step}


def recurrent_ppo(task: str) -> Callable[[], object]:
    from sb3_contrib import RecurrentPPO

    env = gymnasium.wrappers.FlattenObservation(gymnasium.make(task))
    model, states, never = RecurrentPPO("MlpLstmPolicy", env, device="cpu"), [None], np.zeros(1, bool)
    observation, _ = env.reset(seed=0)

    def predict() -> None:
        states[0] = model.predict(observation, state=states[0], episode_start=never)[1]

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--task", default="merlin/MemoryGame-v0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {way: act for name in ("merlin", "rl-mem", "rl-lstm") for way, act in ours(name, options.task).items()}
    ways[PEER] = recurrent_ppo(options.task)
    costs: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(options.rounds + 1):
        for way, act in ways.items():
            begin = time.process_time()
            for _ in range(options.steps):
                act()
            if round_number:  # the first one warms up
                costs[way].append((time.process_time() - begin) / options.steps * 1e3)
    for way, found in costs.items():
        ratios = [x / peer for x, peer in zip(found, costs[PEER], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        took = f"{statistics.median(found):6.3f} ms (least {min(found):.3f})"
        print(f"{way:22} {took}   {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
