"""Mistakes of a user, which a type checker finds, all of them and nothing else: see tests/test_typing.py."""

from pathlib import Path

import torch

import merlin
from merlin import memory as memories
from merlin import prset as preset  # mistake
from merlin.agents.merlin import MerlinConfg as MerlinConfig  # mistake

config = merlin.preset("merlin", "merlin/MemoryGame-v0")
merlin.trian(config, Path("runs/mine"))  # mistake
merlin.train("merlin/TMaze-v0", agent=merlin.MerlinConfig())  # mistake
merlin.train(config, Path("runs/mine"), max_secnds=1)  # mistake
print(config.sede)  # mistake
print(config.training.unroll_lenght)  # mistake
print(preset, MerlinConfig)
print(merlin.MerlinConfig(kl_reference_nat=8.0))  # mistake
merlin.override(config, [("model.kl_cost", 1)])  # mistake

with merlin.make_environment("merlin/TMaze-v0", 4) as environment:
    environment.rest(0)  # mistake
    now = environment.reset(0)
    agent = merlin.build_agent(config, environment)
    agent.step(now.observation, agent.initial_state(4))  # mistake
    output, _ = agent.step(now.observation, agent.initial_state(4), now.is_first)
    print(output.log_probs)  # mistake
    agent.setp(now)  # mistake

state = memories.initial_state(2, memory_size=8, word_size=6)
memories.reed(state.memory, torch.zeros(2, 1, 6), torch.zeros(2, 1))  # mistake
memories.write(state, None, torch.zeros(2, 1, 8))  # mistake
print(state.num_writen)  # mistake
