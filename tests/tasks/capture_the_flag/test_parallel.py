"""One game for PettingZoo. Skipped where it is not installed: pip install '.[multi]'."""

import sys
import warnings

import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled

from merlin.tasks.capture_the_flag import parallel_env
from merlin.tasks.capture_the_flag.environment import CaptureTheFlag

SMALL = {"size": 7, "max_steps": 30}


def test_without_pettingzoo_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "merlin.tasks.capture_the_flag.parallel", raising=False)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'merlin-agents\[multi\]'"):
        parallel_env()


def played(env, steps, seed):
    env.reset(seed=seed)
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        actions = {agent: generator.integers(env.action_space(agent).nvec) for agent in env.agents}
        yield actions, env.step(actions)


@pytest.mark.parametrize("settings", [{}, {"opponents": "mixed"}, {"opponents": "random", "team_mate": "attacker"}])
def test_pettingzoos_own_tests(settings):
    testing = pytest.importorskip("pettingzoo.test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own: it warns of observations that are dicts
        testing.parallel_api_test(parallel_env(**SMALL, **settings), num_cycles=100)
        testing.parallel_seed_test(lambda: parallel_env(**SMALL, **settings), num_cycles=40)


def test_it_is_a_batch_of_one_game():
    pytest.importorskip("pettingzoo")
    env, batch = parallel_env(**SMALL), CaptureTheFlag(4, **SMALL)
    batch.reset(seed=3)
    for number, (actions, (observations, rewards, terminations, truncations, infos)) in enumerate(
        played(env, 30, 3), 1
    ):
        expected, reward, terminated, _, info = batch.step(torch.from_numpy(np.stack(list(actions.values()))))
        expected = info.get("final_obs", expected)
        assert env.agents == ([] if number == 30 else ["red_0", "red_1", "blue_0", "blue_1"])
        for row, agent in enumerate(env.possible_agents):
            assert env.observation_space(agent).contains(observations[agent])
            for name, x in observations[agent].items():
                assert np.array_equal(x, expected[name][row].numpy())
            assert (rewards[agent], terminations[agent]) == (reward[row], terminated[row]) and not truncations[agent]
            assert np.array_equal(infos[agent]["events"], info["events"][row])
            assert ("is_success" in infos[agent]) == (number == 30)


def test_the_state_is_the_whole_map():
    pytest.importorskip("pettingzoo")
    env = parallel_env(size=9)
    env.reset(seed=1)
    state = env.state()
    assert env.state_space.contains(state)
    players = [(x, y) for y, x in np.argwhere(state[..., 0] == 6)]
    expected = [tuple(map(int, env.batch.coordinates(position))) for position in env.batch.position[0]]
    assert sorted(players) == sorted(expected)
    assert sorted(state[state[..., 0] == 6].tolist()) == [[6, 1, 0]] * 2 + [[6, 2, 2]] * 2
    assert np.array_equal(state[::-1, ::-1, 0], state[..., 0])


def test_supersuit_makes_a_batch_of_it():
    supersuit = pytest.importorskip("supersuit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = supersuit.pettingzoo_env_to_vec_env_v1(parallel_env(**SMALL))
        batch = supersuit.concat_vec_envs_v1(batch, 2, num_cpus=1, base_class="gymnasium")
    observation, _ = batch.reset(seed=0)
    assert observation["image"].shape == (8, 7, 7, 3)
    for _ in range(35):
        actions = np.stack([batch.action_space.sample() for _ in range(8)])
        observation, reward, *_ = batch.step(actions)
    assert observation["status"].shape == (8, 5) and reward.shape == (8,)
    batch.close()
