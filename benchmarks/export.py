"""How much does an exported step differ from the agent's, and how long does it take for one environment?

    python benchmarks/export.py [--rounds 7] [--steps 200]          needs pip install '.[export]'

Each agent at its preset's sizes for merlin/MemoryGame-v0, with fresh weights. The difference is the largest of any
output over 64 steps with resets, over 1 and the number's size. Latencies are medians over rounds of the mean of a
round's steps, the ways in turn, at batch 1 on one thread: `Agent.step` as users call it, greedy; the function that is
exported, not exported (`eager`); the loaded torch program; and onnxruntime.
"""

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch

from merlin.agents import AGENTS
from merlin.runs.export import StepProgram, export, play
from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment


@torch.no_grad()
def measure(name: str, rounds: int, steps: int) -> str:
    """Return a line of the table."""
    config = replace(preset(name), device="cpu")
    with build_environment(config, 1) as environment:
        agent = build_agent(config, environment).eval()
    with tempfile.TemporaryDirectory() as directory:
        paths = {form: Path(directory) / f"agent.{form}" for form in ("torch", "onnx")}
        written = {form: export(agent, config, path, form, 1) for form, path in paths.items()}
        with open(paths["torch"], "rb") as file:
            program = torch.export.load(file).module()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(paths["onnx"], options, providers=["CPUExecutionProvider"])
    step = StepProgram(agent)
    inputs = play(step, config, 1, 40)[0][-1]
    arrays = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
    state = agent.initial_state(1)
    observation = {entry: inputs[f"observation.{entry}"] for entry in agent.spaces}
    ways = {
        "Agent.step": lambda: agent.step(observation, state, inputs["is_first"], inputs["reward"], greedy=True),
        "eager": lambda: step(inputs),
        "torch": lambda: program(inputs),
        "onnx": lambda: session.run(None, arrays),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds + 1):
        for way, run in ways.items():
            begin = time.perf_counter()
            for _ in range(steps):
                run()
            if round_number:  # the first one warms up
                taken[way].append((time.perf_counter() - begin) / steps * 1e3)
    times = "".join(f"{statistics.median(taken[way]):>12.3f}" for way in ways)
    return f"{name:<9}{written['torch'].difference:>12.1e}{written['onnx'].difference:>12.1e}{times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, PyTorch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread")
    print(f"{'':<9}{'largest difference':>24}{'milliseconds a step':>48}")
    print(f"{'agent':<9}{'torch':>12}{'onnx':>12}{'Agent.step':>12}{'eager':>12}{'torch':>12}{'onnx':>12}")
    for name in AGENTS:
        print(measure(name, options.rounds, options.steps), flush=True)


if __name__ == "__main__":
    main()
