"""The defaults of tasks that no table names: by what a look at them shows, and the same in any units."""

import re
import time
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import merlin
from merlin.agents import AGENTS
from merlin.environments import sight
from merlin.environments.batch import Environment
from merlin.environments.sight import Sight, look
from merlin.experiments.spec import make_comparison, plan
from merlin.runs import presets
from merlin.runs.directory import write_config
from merlin.runs.presets import general
from merlin.runs.settings import override
from merlin.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = ["num_envs=4", "model.hidden_size=8", "training.unroll_length=8", "training.minibatches=1"]


class Units(gymnasium.Env):
    """A pole on a cart without its velocities, in units of one's own; or one that is pushed by a number in a Box."""

    def __init__(self, reward: float = 1.0, place: float = 1.0, angle: float = 1.0, pushes: bool = False):
        self.env, self.reward, self.units = gymnasium.make("CartPole-v1"), reward, np.array([place, angle], np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-3, 3, (1,), np.float32) if pushes else spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        observation, _ = self.env.reset(seed=seed)
        return observation[[0, 2]] * self.units, {}

    def step(self, action):
        push = int(action) if isinstance(self.action_space, spaces.Discrete) else int(action[0] > 0)
        observation, reward, terminated, truncated, _ = self.env.step(push)
        return observation[[0, 2]] * self.units, reward * self.reward, terminated, truncated, {}


gymnasium.register("test/Units-v0", Units)
gymnasium.register("test/MemoryGameOfOthers-v0", Units)


def learn(agent: str, updates: int = 8, **env_kwargs):
    """Return the agent's parameters after some updates, and the returns of the episodes until then."""
    config = override(merlin.preset(agent, "test/Units-v0", env_kwargs), SMALL)
    assert config.preset == "general"
    with merlin.build_environment(config) as environment:
        built = merlin.build_agent(config, environment)
        trainer = Trainer(built, environment, config.training, total_steps=10_000, seed=5)
        returns = torch.cat([trainer.update()[1].returns for _ in range(updates)])
    return {name: x.detach().clone() for name, x in built.named_parameters()}, returns


@pytest.mark.usefixtures("steps_take_as_long")
@pytest.mark.parametrize("pushes", [False, True])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_is_the_same_in_any_units(agent, pushes):
    """Units that are powers of two change no digit of a float: episodes, and all that is learnt, are equal.

    All but the last layers of heads that are in units of returns, which are of their own scale only by rounding.
    """
    parameters, returns = learn(agent, pushes=pushes)
    in_others, returns_in_others = learn(agent, pushes=pushes, reward=1024.0, place=2.0**-6, angle=64.0)
    assert len(returns) > 4 and torch.equal(returns * 1024, returns_in_others)
    for name, x in parameters.items():
        torch.testing.assert_close(in_others[name], x, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("task", "kinds", "is_continuous", "is_native"),
    [
        ("CartPole-v1", {"vector"}, False, False),
        ("Pendulum-v1", {"vector"}, True, False),
        ("MiniGrid-Empty-5x5-v0", {"symbols", "category"}, False, False),
        ("merlin/MemoryGame-v0", {"category"}, False, True),
        ("nowhere/Nothing-v0", set(), False, False),
    ],
)
def test_what_a_look_shows(task, kinds, is_continuous, is_native):
    seen = look(task, {})
    assert (seen.kinds, seen.is_continuous, seen.is_native) == (kinds, is_continuous, is_native)
    assert (seen.step_seconds > 0) == bool(kinds and not is_native)


def test_a_task_that_hangs_or_ends_its_process_looks_like_nothing(monkeypatch):
    monkeypatch.setattr(sight, "PATIENCE", 0.5)
    for misdeed, why in (("sleep", "did not answer for 0.5 seconds"), ("sys.exit()", "SystemExit")):
        seen = look("tests.environments.misbehaving:test/Misbehaving-v0", {"misdeed": misdeed})
        assert seen._replace(failure="") == Sight()
        assert re.match(f"its trial steps failed: .*Misbehaving-v0 failed in step: .*{why}", str(seen))
        assert len(str(seen)) < 160, "the run's own sentence says the rest"
    assert merlin.preset("rl-lstm", "test/Misbehaving-v0", {"misdeed": "sleep"}).preset == "general"


def test_a_slow_task_is_found_to_be_slow_within_a_moment(monkeypatch):
    """Time is that of a counter, which a step moves: no test waits for it."""
    now = [0.0]

    class Slow(Units):
        def step(self, action):
            now[0] += 0.25
            return super().step(action)

    gymnasium.register("test/Slow-v0", Slow)
    make = sight.make_environment
    monkeypatch.setattr(sight, "make_environment", lambda *x, **more: make(*x, **(more | {"vectorization": "sync"})))
    monkeypatch.setattr(sight.time, "perf_counter", lambda: now[0])
    assert look("test/Slow-v0", {}).step_seconds == pytest.approx(0.25)
    assert now[0] == pytest.approx(0.25 * sight.FEWEST_STEPS)
    assert merlin.preset("merlin", "test/Slow-v0").training.passes == 6


def test_a_busy_machine_makes_no_task_look_slow(monkeypatch):
    """Whoever asks waits 3 ms for each answer of an environment whose steps are a few additions."""
    step = Environment.step

    def late(self, action):
        time.sleep(1.5 * general.DEAR_SECONDS)
        return step(self, action)

    monkeypatch.setattr(sight, "_SEEN", {})
    monkeypatch.setattr(Environment, "step", late)
    seconds = look("CartPole-v1", {}).step_seconds
    assert 0 < seconds < general.DEAR_SECONDS


@pytest.mark.usefixtures("steps_take_as_long")
def test_runs_of_a_comparison_and_later_ones_learn_as_often_however_long_a_step_takes_then(tmp_path, monkeypatch):
    """Two seeds, then a third when the machine is busy: what was settled by the first run holds."""
    comparison = make_comparison({"tasks": ["test/Units-v0"], "agents": ["rl-lstm"], "seeds": [1, 2]})
    runs = plan(comparison, tmp_path)
    assert all("training.passes=4" in run.arguments() for run in runs)
    runs[0].run_dir.mkdir()
    write_config(runs[0].config(), runs[0].run_dir)
    busy = Sight(frozenset({"vector"}), False, False, 1.0)
    monkeypatch.setattr(presets, "look", lambda *_: busy)
    assert merlin.preset("rl-lstm", "test/Units-v0").training.passes == 7
    later = plan(replace(comparison, seeds=(1, 2, 3)), tmp_path)
    assert [run.config().training.passes for run in later] == [4, 4, 4]


def test_a_run_goes_on_though_its_steps_take_another_time(tmp_path, monkeypatch):
    config = override(merlin.preset("rl-lstm", "test/Units-v0"), [*SMALL, "steps=64", "device=cpu"])
    merlin.train(config, tmp_path / "run")
    merlin.train(replace(config, steps=128, preset_reason="another"), tmp_path / "run", resume=True)


def test_steps_that_cost_more_are_learnt_from_more_often():
    kinds = frozenset({"vector"})
    passes = [
        [
            general.table(Sight(kinds, False, *speed))[agent].get("training.passes", 1)
            for agent in ("merlin", "rl-lstm", "rl-mem")
        ]
        for speed in ((True, 0.0), (False, 1e-4), (False, 0.1))
    ]
    assert all(native < fast < slow for native, fast, slow in zip(*passes, strict=True))
    policy = [
        general.table(Sight(kinds, False, native, 1e-4))["merlin"].get("training.policy_passes", 1)
        for native in (True, False)
    ]
    assert policy[0] < policy[1]


@pytest.mark.usefixtures("steps_take_as_long")
@pytest.mark.parametrize("agent", AGENTS)
def test_a_name_says_nothing_and_the_reason_is_kept(agent):
    """A task under another name gets the same settings, and whoever reads the configuration sees why."""
    here, there = (merlin.preset(agent, f"test/{name}-v0") for name in ("Units", "MemoryGameOfOthers"))
    assert replace(here, task=there.task) == there
    assert here.preset_reason.startswith("no table of ours names the task: vector; choices; ")
    assert merlin.preset(agent, "merlin/TMaze-v0").preset_reason == "by the task's name"
    told = merlin.preset(agent, "merlin/TMaze-v0", name="general")
    assert told.preset_reason == "as told: vector; choices; a batch of tensors" and told.model.running_scales


@pytest.mark.parametrize(
    ("kinds", "is_continuous", "is_native", "rate"),
    [
        ({"category"}, False, False, 5e-4),
        ({"category", "vector"}, False, False, 2e-3),
        ({"symbols"}, False, False, 2e-3),
        ({"category"}, True, False, 2e-3),
        ({"category"}, False, True, 2e-3),
    ],
)
def test_the_predictor_learns_in_small_steps_where_all_that_is_seen_are_categories(
    kinds, is_continuous, is_native, rate
):
    settings = general.table(Sight(frozenset(kinds), is_continuous, is_native, 1e-4))["merlin"]
    assert settings["training.learning_rate"] == rate
    assert settings["model.return_cost"] == (5.0 if rate == 5e-4 else 0.5)
