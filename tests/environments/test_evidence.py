"""The environments that show what agents learn by default: a delayed cue, and control with hidden velocities."""

import gymnasium
import numpy as np
import pytest
import torch

from merlin.environments.batch import make_environment
from tests.environments.delayed_cue import DelayedCue
from tests.environments.hidden import SHOWN


def play_cue(steps, seed, choose):
    """Return observations acted on, and rewards, of an episode; the last action is what `choose` makes of the cue."""
    env = DelayedCue(steps)
    observation, _ = env.reset(seed=seed)
    seen, rewards, ended, action = [], [], False, choose(observation[0])
    while not ended:
        seen.append(observation)
        observation, reward, ended, truncated, _ = env.step(action)
        rewards.append(reward)
        assert not truncated and env.observation_space.contains(observation)
    return np.array(seen), np.array(rewards)


@pytest.mark.parametrize("steps", [2, 20, 100])
def test_whoever_remembers_the_cue_earns_1_at_the_last_step(steps):
    cues = set()
    for seed in range(20):
        seen, rewards = play_cue(steps, seed, lambda cue: int(cue > 0))
        assert rewards.tolist() == [0.0] * (steps - 1) + [1.0]
        assert np.flatnonzero(seen[:, 0]).tolist() == [0] and np.flatnonzero(seen[:, 1]).tolist() == [steps - 1]
        assert abs(seen[0, 0]) == seen[-1, 1] == 1 and seen[:, 2:].all()
        cues.add(seen[0, 0])
    assert cues == {-1.0, 1.0}


def test_whoever_does_not_earns_nothing_whatever_it_does():
    """The two actions earn the opposite of each other, and nothing but the first observation depends on the cue."""
    for seed in range(20):
        earned = [play_cue(20, seed, lambda _, action=action: action)[1][-1] for action in (0, 1)]
        assert sorted(earned) == [-1.0, 1.0]
    env = DelayedCue(3)
    rest = []
    for cue in (0, 1):
        env.reset(seed=0)
        env.cue = cue
        rest.append([env.step(0)[0].tolist() for _ in range(2)])
    assert rest[0] == rest[1]


def test_an_episode_of_one_step_is_refused():
    with pytest.raises(ValueError, match=r"steps must be at least 2, .* but is 1"):
        DelayedCue(1)


def needs_box2d(task):
    if "LunarLander" in task:
        pytest.importorskip("Box2D")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Box2D's binding
@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_is_the_task_without_its_velocities(name):
    task, indices = SHOWN[name]
    needs_box2d(task)
    whole = gymnasium.make(task)
    with make_environment(f"tests.environments.hidden:{name}", 1) as environment:
        assert environment.spaces["observation"].shape == (len(indices),)
        assert environment.action_space == whole.action_space
    part = gymnasium.make(name)
    seen, _ = part.reset(seed=3)
    expected, _ = whole.reset(seed=3)
    whole.action_space.seed(0)
    for _ in range(10):
        assert part.observation_space.contains(seen) and np.array_equal(seen, expected[list(indices)])
        action = whole.action_space.sample()
        seen, reward, *ends, _ = part.step(action)
        expected, its_reward, *its_ends, _ = whole.step(action)
        assert (reward, ends) == (its_reward, its_ends)


def test_a_hidden_task_keeps_its_time_limit():
    env = gymnasium.make("PoMountainCar-v0")
    env.reset(seed=0)
    ends = [env.step(1)[2:4] for _ in range(200)]
    assert ends[-2:] == [(False, False), (False, True)]


def test_the_cue_reaches_agents_as_a_vector():
    with make_environment("tests.environments.delayed_cue:DelayedCue-v0", 3, env_kwargs={"steps": 2}) as environment:
        environment.reset(0)
        environment.step(torch.zeros(3, dtype=torch.int64))
        assert environment.step(torch.zeros(3, dtype=torch.int64)).terminated.all()
