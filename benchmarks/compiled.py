"""Does torch.compile make a step of MERLIN faster? Eager and compiled in turn, on the CPU.

    python benchmarks/compiled.py [--threads 1] [--rounds 5] [--num-envs 64 512]

A step is what acting repeats: prior, posterior, both LSTMs, both reads and the write, at the preset's sizes. Printed:
the median of each, their ratio, and how long compiling took, which every run would wait for. It needs a C++ compiler.
"""

import argparse
import platform
import statistics
import time

import torch
from gymnasium import spaces

from merlin.agents.merlin import Merlin
from merlin.agents.merlin.agent import MerlinExtras, MerlinState
from merlin.runs.presets import preset
from merlin.states import map_state


@torch.no_grad()
def measure(num_envs: int, rounds: int, steps: int = 30) -> str:
    agent = Merlin({"card": spaces.Discrete(5)}, spaces.Discrete(6), preset("merlin").model)

    def step(code: torch.Tensor, noise: torch.Tensor, action: torch.Tensor, state: MerlinState):
        perceived = agent.perceive(code, state, MerlinExtras(noise, noise, None))
        return agent.policy_parameters(perceived.activations), agent.advance(perceived, action).state

    code = torch.randn(num_envs, 2 * agent.config.latent_size)
    inputs = code, torch.randn(num_envs, agent.config.latent_size), torch.randn(num_envs, 6)
    ways = {"eager": step, "compiled": torch.compile(step)}
    begin = time.perf_counter()
    start = agent.initial_state(num_envs)
    for _ in range(3):
        start = ways["compiled"](*inputs, start)[1]
        ways["compiled"](*inputs, map_state(torch.clone, start))  # as a round begins: no two tensors are one
    compiling = time.perf_counter() - begin
    plain = step(*inputs, start)[1]
    torch.testing.assert_close(ways["compiled"](*inputs, start)[1], plain, atol=1e-4, rtol=1e-4)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            state, begin = map_state(torch.clone, start), time.perf_counter()
            for _ in range(steps):
                state = way(*inputs, state)[1]
            taken[name].append((time.perf_counter() - begin) / steps * 1e3)
    eager, compiled = (statistics.median(taken[name]) for name in ways)
    return (
        f"{num_envs:>5} environments: eager {eager:6.2f} ms a step, compiled {compiled:6.2f} ms, "
        f"{eager / compiled:.2f} times as fast; compiling took {compiling:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 128, 512])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, PyTorch {torch.__version__}, {options.threads} threads")
    for num_envs in options.num_envs:
        print(measure(num_envs, options.rounds), flush=True)


if __name__ == "__main__":
    main()
