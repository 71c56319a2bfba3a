"""Staggered episodes: one is cut in each environment, bootstrapped, counted in nothing, and only once."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import merlin
from merlin.environments.adapters import AgentView, first_cut
from merlin.environments.batch import Environment, longest_first_episode, make_environment, spread_seed
from merlin.runs.settings import override
from merlin.training.trainer import Trainer

LIMIT, B, SEED = 12, 6, 3


class Clock(gymnasium.Env):
    """Shows how many steps its episode has; its own end is a termination after `LIMIT` steps."""

    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        assert not options, "what is for the border is not for the environment"
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.array([self.count], np.float32), 1.0, self.count == LIMIT, False, {}


gymnasium.register("test/StaggeredClock-v0", Clock, max_episode_steps=LIMIT + 8)


def batch(kind: str) -> Environment:
    if kind in ("sync", "async"):
        return make_environment("test/StaggeredClock-v0", B, vectorization=kind)
    make = lambda: AgentView(gymnasium.make("test/StaggeredClock-v0"))  # noqa: E731
    return Environment(SyncVectorEnv([make] * B, autoreset_mode=AutoresetMode.DISABLED))


@pytest.mark.parametrize("truncation_ends", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async", "disabled"])
def test_each_environment_is_cut_once_where_its_seed_says(kind, truncation_ends):
    """Its episodes end at k, k + 12, k + 24, ... instead of at 12, 24, ..., for k below 12."""
    with batch(kind) as environment:
        environment._truncation_ends = truncation_ends
        longest = longest_first_episode(environment.vector_env)
        if environment.vector_env.spec is not None:
            assert longest == LIMIT + 8
        timestep = environment.reset(SEED, staggers=True)
        cuts = [first_cut(seed, longest) for seed in spread_seed(SEED, B)]
        clock = [0] * B
        for step in range(1, longest + LIMIT):
            timestep = environment.step(torch.zeros(B, dtype=torch.int64))
            for i in range(B):
                clock[i] += 1
                is_over, is_cut = clock[i] == LIMIT, step == cuts[i] and clock[i] < LIMIT
                assert bool(timestep.terminated[i]) == is_over
                assert bool(timestep.truncated[i]) == is_cut == bool(timestep.is_cut[i])
                if is_cut:
                    assert timestep.final_observation["observation"][i].item() == clock[i]
                clock[i] = 0 if is_over or is_cut else clock[i]
                assert timestep.observation["observation"][i].item() == clock[i]
        assert len(set(clock)) > 2


@pytest.mark.parametrize("kind", ["sync", "async", "disabled"])
def test_a_reset_that_does_not_stagger_forgets_what_was_to_be_cut(kind):
    with batch(kind) as environment:
        environment.reset(SEED, staggers=True)
        environment.reset(SEED)
        for _ in range(longest_first_episode(environment.vector_env)):
            timestep = environment.step(torch.zeros(B, dtype=torch.int64))
            assert not timestep.truncated.any() and not timestep.is_cut.any()


def test_where_nothing_can_be_cut_nothing_is():
    """A batch that begins the next episode with the next step, and one of views that are none of ours."""
    for mode, make in ((AutoresetMode.NEXT_STEP, lambda: AgentView(Clock())), (AutoresetMode.SAME_STEP, Clock)):
        environment = Environment(SyncVectorEnv([make] * B, autoreset_mode=mode))
        environment.reset(SEED, staggers=True)
        for _ in range(3 * LIMIT):
            timestep = environment.step(torch.zeros(B, dtype=torch.int64))
            assert not timestep.truncated.any() and not timestep.is_cut.any()


@pytest.mark.parametrize("task", ["merlin/TMaze-v0", "merlin/Maze-v0", "merlin/LatentLearning-v0"])
def test_batches_of_tensors_are_cut_too(task):
    with make_environment(task, 64) as environment:
        longest = longest_first_episode(environment.vector_env)
        environment.reset(SEED, staggers=True)
        cuts = torch.tensor([first_cut(seed, longest) for seed in spread_seed(SEED, 64)])
        num_cut = torch.zeros(64, dtype=torch.int64)
        for step in range(1, longest + 30):
            timestep = environment.step(torch.ones(64, dtype=torch.int64))
            assert (timestep.truncated | timestep.terminated)[cuts == step].all()
            num_cut += timestep.is_cut
            if step == longest // 2:
                state = environment.state_dict()
                with make_environment(task, 64) as other:
                    other.load_state_dict(state)
                    assert (other._cuts.left() == environment._cuts.left()).all()
        assert (num_cut <= 1).all() and num_cut.sum() > 50
        assert environment.vector_env.unwrapped.cut is None and environment._cuts is None


def test_a_batch_that_can_staggers_its_episodes_itself():
    with make_environment("merlin/CaptureTheFlag-v0", 64, env_kwargs={"size": 7, "max_steps": 16}) as environment:
        for staggers, ends_apart in ((True, [2, 4, 6, 8, 10, 12, 14, 16] * 2), (False, [16] * 16)):
            environment.reset(SEED, staggers=staggers)
            ends = []
            for step in range(1, 17):
                timestep = environment.step(torch.zeros(64, 3, dtype=torch.int64))
                assert not timestep.truncated.any() and not timestep.is_cut.any()
                ends += [step] * (int(timestep.terminated.sum()) // 4)
            assert ends == sorted(ends_apart)


def test_an_episode_that_was_cut_counts_in_no_statistics():
    """Every episode that is counted has its true length, and none is counted before one ran to its end."""
    config = override(
        merlin.preset("rl-lstm", "test/StaggeredClock-v0"), ["num_envs=4", "model.hidden_size=4", "training.passes=1"]
    )
    assert config.training.staggered_episodes
    with make_environment(config.task, 4) as environment:
        agent = merlin.build_agent(config, environment)
        trainer = Trainer(agent, environment, config.training, total_steps=10_000, seed=SEED)
        lengths = torch.cat([trainer.update()[1].lengths for _ in range(4)])
    assert len(lengths) > 20 and (lengths == LIMIT).all()
