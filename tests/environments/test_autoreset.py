"""Every autoreset mode gives the same training data."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper

from merlin.environments import passed
from merlin.environments.batch import Environment, make_environment, spread_seed
from merlin.errors import MerlinError
from tests.environments.examples import BufferBatch, Episodes, TensorBatch, episodes


def row_of(observation, index):
    return {name: entry[index].tolist() for name, entry in observation.items()}


def transitions(environment, num_transitions, seed=7):
    """Return, for each environment, what its actions led to; the action depends on how many came before."""
    collected = [[] for _ in range(environment.num_envs)]
    timestep = environment.reset(seed)
    while min(map(len, collected)) < num_transitions:
        action = torch.tensor([(len(rows) + i) % 3 - 1 for i, rows in enumerate(collected)])
        following = environment.step(action)
        for i, rows in enumerate(collected):
            if timestep.is_last[i]:
                continue
            led_to = following.final_observation if following.truncated[i] else following.observation
            rows.append(
                {
                    "is_first": timestep.is_first[i].item(),
                    "observation": row_of(timestep.observation, i),
                    "action": action[i].item(),
                    "reward": following.reward[i].item(),
                    "end": (following.terminated[i].item(), following.truncated[i].item()),
                    "led_to": None if following.terminated[i] else row_of(led_to, i),
                    "success": str(following.success[i].item()),
                }
            )
        timestep = following
    return [rows[:num_transitions] for rows in collected]


def expected_transitions(num_envs, num_transitions, seeds=None):
    """The same from each environment alone."""
    seeds = spread_seed(7, num_envs) if seeds is None else seeds
    collected = []
    for i in range(num_envs):
        env, rows = Episodes(), []
        observation, _ = env.reset(seed=seeds[i])
        flat = {"clock": observation["clock"].tolist(), "inner.0": observation["inner"][0]}
        is_first = True
        while len(rows) < num_transitions:
            action = (len(rows) + i) % 3 - 1
            following, reward, terminated, truncated, info = env.step(action)
            led_to = {"clock": following["clock"].tolist(), "inner.0": following["inner"][0]}
            is_end = terminated or truncated
            rows.append(
                {
                    "is_first": is_first,
                    "observation": flat,
                    "action": action,
                    "reward": reward,
                    "end": (terminated, truncated),
                    "led_to": None if terminated else led_to,
                    "success": str(float(info["is_success"])) if is_end else "nan",
                }
            )
            flat, is_first = led_to, is_end
            if is_end:
                observation, _ = env.reset()
                flat = {"clock": observation["clock"].tolist(), "inner.0": observation["inner"][0]}
        collected.append(rows)
    return collected


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("batch", ["sync", "async", "tensors", "buffers"])
def test_every_autoreset_mode_gives_the_same_training_data(mode, batch):
    is_native = batch in ("tensors", "buffers")
    expected = expected_transitions(3, 40, seeds=(7, 8, 9) if is_native else None)  # a batch spreads its own
    ends = [row["end"] for rows in expected for row in rows]
    assert ends.count((True, False)) > 5 and ends.count((False, True)) > 5
    vector_env = episodes(mode, "async" if batch == "async" else "sync")
    wrap = {"tensors": TensorBatch, "buffers": BufferBatch}.get(batch, lambda vector_env: vector_env)
    with Environment(wrap(vector_env)) as environment:
        assert environment.is_native == is_native
        assert transitions(environment, 40) == expected


class Generous(VectorWrapper):
    """Rewards every row, that of a reset too, and says for one step too long that an episode ended."""

    def reset(self, **options):
        self.was_end = np.zeros(self.num_envs, bool)
        return super().reset(**options)

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        was_end, self.was_end = self.was_end, terminated | truncated
        return observation, reward + 1, terminated | was_end, truncated, info


@pytest.mark.parametrize("wrap", [lambda x: x, TensorBatch])
def test_nothing_comes_of_an_action_that_is_ignored(wrap):
    with Environment(wrap(Generous(episodes(AutoresetMode.NEXT_STEP)))) as environment:
        timestep, ignored = environment.reset(7), 0
        for _ in range(40):
            following = environment.step(torch.zeros(3, dtype=torch.int64))
            rows = timestep.is_last
            assert not following.reward[rows].any() and not following.is_end[rows].any()
            assert torch.equal(following.is_first, rows) and not following.is_last[rows].any()
            timestep, ignored = following, ignored + int(rows.sum())
        assert ignored > 5


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_id_gives_the_same_training_data_as_the_environments_alone(vectorization):
    env_kwargs = {"shares_buffer": True}
    with make_environment("test/Episodes-v0", 3, vectorization=vectorization, env_kwargs=env_kwargs) as environment:
        assert transitions(environment, 40) == expected_transitions(3, 40)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_truncation_can_end_an_episode_for_good(mode):
    with Environment(episodes(mode), truncation_ends=True) as environment:
        expected = [
            [
                row | {"end": (any(row["end"]), False), "led_to": None if any(row["end"]) else row["led_to"]}
                for row in rows
            ]
            for rows in expected_transitions(3, 40)
        ]
        assert transitions(environment, 40) == expected


def test_a_reset_begins_everywhere_and_again_the_same():
    with make_environment("test/Episodes-v0", 4) as environment:
        first = environment.reset(3)
        for _ in range(9):
            environment.step(torch.zeros(4, dtype=torch.int64))
        again = environment.reset(3)
        assert again.is_first.all() and not again.is_last.any() and (again.reward == 0).all()
        assert not again.terminated.any() and not again.truncated.any() and again.success.isnan().all()
        assert torch.equal(first.observation["inner.0"], again.observation["inner.0"])
        assert len({*first.observation["inner.0"].tolist()}) > 1
        assert not torch.equal(environment.reset(4).observation["inner.0"], first.observation["inner.0"])


def test_neighbouring_seeds_have_no_environment_in_common():
    with make_environment("test/Episodes-v0", 8) as environment:
        seen = []
        for seed in (1, 2):
            environment.reset(seed)
            seen.append([env.unwrapped.np_random.random() for env in environment.vector_env.unwrapped.envs])
        assert len({*seen[0], *seen[1]}) == 16


def test_a_reset_forgets_that_the_last_row_ended_an_episode():
    with Environment(episodes(AutoresetMode.NEXT_STEP)) as environment:
        timestep = environment.reset(0)
        while not timestep.is_last.any():
            timestep = environment.step(torch.zeros(3, dtype=torch.int64))
        environment.reset(0)
        assert not environment.step(torch.zeros(3, dtype=torch.int64)).is_first.any()


def tensors_of(timestep):
    return [*timestep.observation.values(), timestep.is_first, timestep.is_last, timestep.reward, timestep.terminated]


def test_what_a_step_returned_is_never_written_again():
    with make_environment("test/Episodes-v0", 3) as environment:
        steps, copies = [environment.reset(0)], []
        for _ in range(10):
            copies.append([tensor.clone() for tensor in tensors_of(steps[-1])])
            steps.append(environment.step(torch.ones(3, dtype=torch.int64)))
        for step, copied in zip(steps, copies, strict=False):
            assert all(map(torch.equal, tensors_of(step), copied))


@pytest.mark.parametrize("told", [AutoresetMode.NEXT_STEP, "NEXT_STEP", "NextStep"])
def test_a_batch_says_when_it_resets_by_the_modes_name_too(told):
    vector_env = episodes(AutoresetMode.SAME_STEP)
    vector_env.metadata["autoreset_mode"] = told
    assert Environment(vector_env)._border.autoreset is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("told", [None, True, "next step"])
def test_a_batch_must_say_when_it_resets(told):
    vector_env = episodes(AutoresetMode.SAME_STEP)
    vector_env.metadata["autoreset_mode"] = told
    with pytest.raises(MerlinError, match=f"must declare when it resets, .* 'autoreset_mode' is {told!r}: put"):
        Environment(vector_env)
    del vector_env.metadata["autoreset_mode"]
    with pytest.raises(MerlinError, match=r"must declare when it resets, .* 'autoreset_mode' is None: put"):
        Environment(vector_env)


@pytest.mark.parametrize("name", ["num_envs", "single_observation_space", "single_action_space"])
@pytest.mark.parametrize("take", [Environment, passed.name_of], ids=["batch", "passed"])
def test_a_batch_must_say_what_is_in_it(name, take):
    vector_env = episodes(AutoresetMode.SAME_STEP)
    delattr(vector_env, name)
    with pytest.raises(MerlinError, match=f"must have .*, but {name} of SyncVectorEnv is None: set it"):
        take(vector_env)
