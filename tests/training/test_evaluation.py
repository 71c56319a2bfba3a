"""Evaluations: every environment plays as many episodes, and what never ends is given up and told."""

import itertools
import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from merlin.environments.batch import make_environment
from merlin.errors import MerlinError
from merlin.experience import StepOutput
from merlin.tasks.capture_the_flag.rules import EVENTS
from merlin.training.evaluation import MAX_STEPS, Evaluation, evaluate
from merlin.training.random_play import FEWEST_EPISODES, RandomPlayer, random_returns


class Lasting(gymnasium.Env):
    """Episodes of as many steps as each environment is told, one after the other; none lasts for ever."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    made = 0

    def __init__(self, lengths, successes=(True,)):
        self.lengths, self.successes, self.episode = lengths[Lasting.made % len(lengths)], successes, -1
        Lasting.made += 1

    def reset(self, *, seed=None, options=None):
        self.episode, self.steps = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        length = self.lengths[self.episode % len(self.lengths)]
        success = self.successes[self.episode % len(self.successes)]
        return np.zeros(1, np.float32), 2.0, self.steps == length, False, {"is_success": success}


gymnasium.register("test/Lasting-v0", entry_point=Lasting)
gymnasium.register("test/Limited-v0", entry_point=Lasting, max_episode_steps=50_000)


class Idle:
    """A player that has no state and does nothing."""

    def initial_state(self, batch_size):
        return ()

    def step(self, observation, state, is_first, reward=None, *, generator=None, greedy=False):
        nothing = torch.zeros(len(is_first))
        return StepOutput(nothing.long(), nothing, nothing, nothing.unsqueeze(1)), state


def play(lengths, task="test/Lasting-v0", successes=(True,), **how):
    Lasting.made = 0
    settings = {"lengths": lengths, "successes": successes}
    with make_environment(task, len(lengths), env_kwargs=settings) as environment:
        return evaluate(Idle(), environment, seed=1, **how)


def test_each_environment_plays_as_many_episodes():
    result = play([[3], [5, 2]], episodes=4)
    assert result == {
        "episode_return_mean": 6.5, "episode_return_std": pytest.approx(np.std([6, 6, 10, 4])),
        "episode_length_mean": 3.25, "episodes": 4, "env_steps": 13, "success_rate": 1.0,
    }  # fmt: skip


def test_draws_are_told_apart_from_wins():
    result = play([[1]], episodes=8, successes=(1, 0.5, 0.5, 0))
    assert (result["success_rate"], result["draw_rate"]) == (0.5, 0.5)
    assert "draw_rate" not in play([[1]], episodes=8, successes=(True, False))


class Restless(Idle):
    """A player of capture the flag that does anything."""

    def step(self, observation, state, is_first, reward=None, *, generator=None, greedy=False):
        output, state = super().step(observation, state, is_first)
        sizes = torch.tensor([5, 3, 2])
        return output._replace(action=(torch.rand(len(is_first), 3, generator=generator) * sizes).long()), state


def test_events_of_a_game_are_told_by_name_and_episode():
    """What they are worth, and the end, is the return."""
    settings = {"size": 7, "openness": 1.0, "max_steps": 60, "rewards": [2.0**-event for event in range(13)]}
    with make_environment("merlin/CaptureTheFlag-v0", 8, env_kwargs=settings | {"opponents": "mixed"}) as environment:
        result = evaluate(Restless(), environment, episodes=20, seed=1, skip=1)
    means = [result["event_" + name.lower().replace(" ", "_")] for name in EVENTS]
    assert min(means[-3:]) > 0 and means[EVENTS.index("I was tagged")] > 0.2
    end = 2 * result["success_rate"] - 1
    earned = sum(weight * mean for weight, mean in zip(settings["rewards"], means, strict=True))
    assert result["episode_return_mean"] == pytest.approx(earned + end, abs=1e-5)


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


class Grip(gymnasium.Env):
    """An episode of one step, which earns what is chosen of what the mask allows: 1 or 3. Step 500 may fail."""

    observation_space = spaces.Discrete(2)
    arm = spaces.Box(np.array([[-1, 5], [0, 2]]), np.array([[1, 500], [3, 2]]), dtype=np.float64)
    action_space = spaces.Dict({"arm": arm, "count": spaces.Box(0, 2, (1,), np.int8), "hand": spaces.Discrete(4)})
    mask = np.array([0, 1, 0, 1], np.int8)

    def __init__(self, fails=False):
        self.fails, self.taken = fails, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {"action_mask": self.mask}

    def step(self, action):
        assert action in self.action_space
        self.taken.append(action)
        assert not self.fails or len(self.taken) < 5
        return 0, float(action["hand"]), True, False, {"action_mask": self.mask}


gymnasium.register("test/Grip-v0", entry_point=Grip)


def test_random_play_is_uniform_over_what_is_allowed():
    with make_environment("test/Grip-v0", 2) as environment:
        evaluate(RandomPlayer(environment, 0), environment, episodes=800, seed=0)
        taken = [action for env in environment.vector_env.unwrapped.envs for action in env.unwrapped.taken]
    arms = np.stack([action["arm"] for action in taken])
    assert np.abs(arms.mean(0) - [[0, 252.5], [1.5, 2]]).max() < 20 and arms[:, 0, 1].min() < 20 < 480 < arms.max()
    for found in ([int(action["count"][0]) for action in taken], [action["hand"] for action in taken]):
        values, counts = np.unique(found, return_counts=True)
        assert values.tolist() in ([0, 1, 2], [1, 3]) and (np.abs(counts / len(taken) - 1 / len(values)) < 0.06).all()


@pytest.mark.parametrize("num_envs", [1, 3, 40])
def test_what_random_play_earns_is_told_of_enough_episodes_that_end_in_time(num_envs):
    with make_environment("test/Grip-v0", num_envs) as environment:
        returns = random_returns(environment, 0, seconds=10.0)
        assert returns == random_returns(environment, 0, seconds=10.0)
        assert len(returns) == FEWEST_EPISODES and set(returns) == {1.0, 3.0}
        assert num_envs == 40 or not random_returns(environment, 0, seconds=0.0)
    with make_environment("test/Grip-v0", num_envs, env_kwargs={"fails": True}) as environment:
        assert num_envs == 40 or not random_returns(environment, 0, seconds=10.0)


@pytest.mark.parametrize("seconds, count", [(200, 100), (100, 50), (50, 0)])
def test_random_play_goes_on_until_time_is_over_or_there_are_as_many_episodes_as_wanted(seconds, count, monkeypatch):
    ticks = itertools.count()  # one when it begins, and one before and after each episode
    monkeypatch.setattr("merlin.training.random_play.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with make_environment("test/Grip-v0", 1) as environment:
        assert len(random_returns(environment, 0, seconds=seconds, most=100)) == count


@pytest.mark.parametrize("numbers", [{"episodes": 0}, {"episodes": -1}, {"episodes": 1, "max_steps": 0}])
def test_numbers_that_play_nothing_are_told(numbers):
    name = list(numbers)[-1]
    with pytest.raises(MerlinError, match=f"^{name} must be a whole number from 1 to .* but is {numbers[name]}"):
        play([[3]], **numbers)
