"""The public names as a user has them, for a type checker, which finds nothing: see tests/test_typing.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor

import merlin
from merlin import memory as memories
from merlin.agents.merlin.predictor import Inference, Predictor, PredictorConfig, PredictorState
from merlin.networks.actions import ActionDistribution, make_action_distribution


def train(run_dir: Path) -> float:
    config = merlin.preset("merlin", "merlin/MemoryGame-v0", {"pairs": 2})
    config = merlin.override(replace(config, steps=1000), ["training.unroll_length=12"])
    assert_type(config, merlin.RunConfig)
    assert_type(config.model.entropy_cost, float)
    assert_type(config.training.unroll_length, int)
    summary = merlin.train(config, run_dir, max_seconds=10)
    assert_type(summary, merlin.Summary)
    merlin.plot_learning_curve([run_dir], run_dir / "curve.png")
    run = merlin.train("merlin/TMaze-v0", agent="rl-mem", steps=1e4, set={"model.memory_size": 6}, resume=False)
    assert_type(run.agent, merlin.LoadedAgent)
    assert_type(run.evaluate(episodes=3), dict[str, Any])
    assert_type(merlin.load("folder").save("other", episodes=0), Path)
    return summary.episode_return_mean


def act(run_dir: Path) -> Tensor:
    config = merlin.load_config(run_dir)
    with merlin.build_environment(config, num_envs=4) as environment:
        assert_type(environment, merlin.Environment)
        agent = merlin.load_agent(run_dir, environment, config)
        scores = merlin.evaluate(agent, environment, episodes=8, seed=1)
        assert_type(scores, dict[str, Any])
        now, state = environment.reset(seed=0), agent.initial_state(environment.num_envs)
        assert_type(now, merlin.Timestep)
        output, state = agent.step(now.observation, state, now.is_first, now.reward, greedy=True)
        assert_type(output, merlin.StepOutput)
        assert_type(output.latent, Tensor | None)
        return environment.step(output.action).reward


def remember(word: Tensor, query: Tensor) -> Tensor:
    state = memories.initial_state(batch_size=2, memory_size=8, word_size=6, dtype=torch.float64)
    assert_type(state, merlin.MemoryState)
    reader = merlin.Reader(input_size=5, word_size=6, num_read_keys=3)
    keys, strengths = reader.forward(query)
    words, weights = memories.read(state.memory, keys, strengths, memories.written(state), top_k=2)
    assert_type(words, Tensor)
    state = memories.write(state, word, weights, retroactive_discount=0.9)
    state = memories.reset(state, torch.ones(2, dtype=torch.bool))
    return state.usage


def predict() -> Tensor:
    environment = merlin.make_environment("merlin/TMaze-v0", 4, env_kwargs={"length": 3})
    actions = make_action_distribution(environment.action_space)
    assert_type(actions, ActionDistribution)
    predictor = Predictor(environment.spaces, actions, PredictorConfig(latent_size=16))
    state, now = predictor.initial_state(4), environment.reset(seed=0)
    assert_type(state, PredictorState)
    code = predictor.encode(now.observation, torch.zeros(4, actions.encoding_size), now.reward)
    inference = predictor.perceive(code, torch.randn(4, 16), state)
    assert_type(inference, Inference)
    action = actions.sample(torch.zeros(4, actions.num_parameters))
    state, weights, slots = predictor.advance(inference.latent, actions.encode(action), state)
    assert_type(slots, Tensor | None)
    return weights


def print_the_version() -> None:
    assert_type(merlin.__version__, str)
    for name, entry in merlin.AGENTS.items():
        assert_type(entry.agent_class, type[merlin.Agent])
        print(merlin.__version__, name, entry.summary)
