"""Evaluations: every environment plays as many episodes, and what never ends is given up and told."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from merlin.environments.batch import make_environment
from merlin.experience import StepOutput
from merlin.training.evaluation import MAX_STEPS, Evaluation, evaluate


class Lasting(gymnasium.Env):
    """Episodes of as many steps as each environment is told, one after the other; none lasts for ever."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    made = 0

    def __init__(self, lengths):
        self.lengths, self.episode = lengths[Lasting.made % len(lengths)], -1
        Lasting.made += 1

    def reset(self, *, seed=None, options=None):
        self.episode, self.steps = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        length = self.lengths[self.episode % len(self.lengths)]
        return np.zeros(1, np.float32), 2.0, self.steps == length, False, {"is_success": True}


gymnasium.register("test/Lasting-v0", entry_point=Lasting)
gymnasium.register("test/Limited-v0", entry_point=Lasting, max_episode_steps=50_000)


class Idle:
    """A player that has no state and does nothing."""

    def initial_state(self, batch_size):
        return ()

    def step(self, observation, state, is_first, reward=None, *, generator=None, greedy=False):
        nothing = torch.zeros(len(is_first))
        return StepOutput(nothing.long(), nothing, nothing, nothing.unsqueeze(1)), state


def play(lengths, task="test/Lasting-v0", **how):
    Lasting.made = 0
    with make_environment(task, len(lengths), env_kwargs={"lengths": lengths}) as environment:
        return evaluate(Idle(), environment, seed=1, **how)


def test_each_environment_plays_as_many_episodes():
    result = play([[3], [5, 2]], episodes=4)
    assert result == {
        "episode_return_mean": 6.5, "episode_return_std": pytest.approx(np.std([6, 6, 10, 4])),
        "episode_length_mean": 3.25, "episodes": 4, "env_steps": 13, "success_rate": 1.0,
    }  # fmt: skip


def test_an_episode_that_takes_too_long_is_given_up_and_told():
    result = play([[3], [4, None], [None]], episodes=6, max_steps=10)
    assert result == {
        "episode_return_mean": pytest.approx((6 + 6 + 8) / 3), "episode_return_std": pytest.approx(np.std([6, 6, 8])),
        "episode_length_mean": pytest.approx(10 / 3), "episodes": 3, "env_steps": 6 + 14 + 10, "success_rate": 1.0,
        "unfinished_episodes": 3, "unfinished_return_mean": 20.0, "max_steps": 10,
    }  # fmt: skip


def test_where_no_episode_ends_there_is_no_score():
    result = play([[None]], episodes=5, max_steps=4)
    assert math.isnan(result["episode_return_mean"]) and math.isnan(result["episode_length_mean"])
    assert (result["episodes"], result["unfinished_episodes"], result["unfinished_return_mean"]) == (0, 5, 8.0)


def test_one_given_up_before_any_counted_has_earned_nothing():
    result = play([[None], [2]], episodes=2, skip=1, max_steps=4)
    assert (result["episodes"], result["unfinished_episodes"]) == (1, 1)
    assert math.isnan(result["unfinished_return_mean"])


def test_an_episode_of_just_the_limit_counts():
    assert play([[4]], episodes=1, max_steps=4)["episodes"] == 1


@pytest.mark.parametrize(("task", "expected"), [("test/Lasting-v0", MAX_STEPS), ("test/Limited-v0", 50_000)])
def test_the_limit_is_at_least_the_tasks_own(task, expected):
    with make_environment(task, 1, env_kwargs={"lengths": [[2]]}) as environment:
        assert Evaluation(environment, 1).max_steps == expected


def test_progress_is_told_after_each_step():
    seen = []
    play([[3], [5]], episodes=2, tell=lambda evaluation: seen.append((len(evaluation.returns), evaluation.is_done)))
    assert seen == [(0, False), (0, False), (1, False), (1, False), (2, True)]
