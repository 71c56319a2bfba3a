"""Every environment looks the same to an agent: whatever batches it, resets it, or breaks in it."""

import multiprocessing
import os
import signal
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from merlin.errors import MerlinError
from merlin.networks.spaces import Tokens, kind
from merlin.training.environment import Environment, make_environment


class Episodes(gymnasium.Env):
    """Episodes of 1 to 5 steps that end either way. The observation tells the episode and the step."""

    observation_space = spaces.Dict(
        {"clock": spaces.Box(-1, 100, (2,), np.float64), "inner": spaces.Tuple([spaces.Discrete(5, start=2)])}
    )
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, shares_buffer=False):
        self.clock = np.full(2, -1.0)
        self.shares_buffer = shares_buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 6))
        self.ends_by_truncation = bool(self.np_random.integers(2))
        self.clock[:] = self.clock[0] + 1, 0
        return self._observe(), {"noise": {"deep": None}}

    def _observe(self):
        clock = self.clock if self.shares_buffer else self.clock.copy()
        return {"clock": clock, "inner": (2 + self.length % 5,)}

    def step(self, action):
        assert self.action_space.contains(action)
        self.clock[1] += 1
        is_end = self.clock[1] == self.length
        info = {"is_success": bool(action == 1), "noise": {"deep": object()}}
        return (
            self._observe(),
            float(10 * self.clock[1] + action),
            is_end and not self.ends_by_truncation,
            is_end and self.ends_by_truncation,
            info,
        )


class TensorBatch(VectorEnv):
    """A batch of tensors, made from one of numpy arrays."""

    def __init__(self, numpy_env):
        self.numpy_env = numpy_env
        self.metadata = {"autoreset_mode": numpy_env.metadata["autoreset_mode"], "tensors": True}
        for name in ("num_envs", "single_observation_space", "single_action_space"):
            setattr(self, name, getattr(numpy_env, name))

    def _tensors(self, observation):
        return {
            "clock": torch.tensor(observation["clock"]),
            "inner": tuple(torch.tensor(entry) for entry in observation["inner"]),
        }

    def reset(self, *, seed=None, options=None):
        if options:
            options = {"reset_mask": options["reset_mask"].numpy()}
        observation, _ = self.numpy_env.reset(seed=seed, options=options)
        return self._tensors(observation), {}

    def step(self, actions):
        observation, reward, terminated, truncated, info = self.numpy_env.step(actions.numpy())
        done = terminated | truncated
        success = np.where(done, info.get("final_info", info).get("is_success", 0.0), np.nan)
        tensor_info = {"is_success": torch.tensor(success, dtype=torch.float32)}
        if "final_obs" in info:
            rows = [row if row is not None else self.single_observation_space.sample() for row in info["final_obs"]]
            final = {
                "clock": np.stack([row["clock"] for row in rows]),
                "inner": [np.stack([r["inner"][0] for r in rows])],
            }
            tensor_info |= {"final_obs": self._tensors(final), "_final_obs": torch.tensor(done)}
        flags = torch.tensor(terminated), torch.tensor(truncated)
        return self._tensors(observation), torch.tensor(reward, dtype=torch.float32), *flags, tensor_info


class Misbehaving(gymnasium.Env):
    """Does, at its third step or when asked, what environments should not."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 1, (3,), np.float32)

    def __init__(self, misdeed="none", when="step", action_space=None, observation_space=None):
        self.misdeed, self.when, self.num_steps = misdeed, when, 0
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space
        in_worker = multiprocessing.parent_process() is not None
        if when == "constructor" or (when == "constructor in a worker" and in_worker):
            self.misbehave()

    def misbehave(self):
        if self.misdeed == "raise":
            raise ZeroDivisionError("the moon is full")
        if self.misdeed == "raise what cannot be pickled":
            raise type("LocalError", (Exception,), {})("held", lambda: None)
        if self.misdeed == "exit":
            os._exit(7)
        if self.misdeed == "sleep":
            time.sleep(100)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.when == "reset":
            self.misbehave()
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        if self.num_steps == 3 and self.when == "step":
            self.misbehave()
        reward = np.nan if self.misdeed == "nan" and self.num_steps == 3 else 0.5
        threads = np.full(3, torch.get_num_threads() / 100, np.float32)
        return threads, reward, False, False, {}


class Speaker(gymnasium.Env):
    """Says something; draws pictures; hears actions in a Box."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own form)
    observation_space = spaces.Dict(
        {"said": spaces.Text(6, charset="abc xyz"), "heard": spaces.Box(-9, 9, (2, 2), np.float64)}
    )
    action_space = spaces.Box(np.array([[-1, -2], [-3, -4]]), 5, (2, 2), np.float64)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"said": "bay", "heard": np.zeros((2, 2))}, {}

    def step(self, action):
        assert action.dtype == np.float64
        return {"said": "", "heard": action}, 0.0, False, False, {}

    def render(self):
        return np.full((4, 5, 3), 7, np.uint8)


def picture_minigrid(**kwargs):
    from minigrid.envs import EmptyEnv
    from minigrid.wrappers import RGBImgPartialObsWrapper

    return RGBImgPartialObsWrapper(EmptyEnv(size=5, **kwargs), tile_size=1)


for name, entry_point in {
    "Episodes": Episodes,
    "Misbehaving": Misbehaving,
    "Speaker": Speaker,
    "PictureMiniGrid": picture_minigrid,
}.items():
    gymnasium.register(f"test/{name}-v0", entry_point=entry_point)


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    left = multiprocessing.active_children()
    for worker in left:
        worker.kill()
        worker.join()
    assert not left


def episodes(mode, vectorization="sync", num_envs=3):
    return gymnasium.make_vec(
        "test/Episodes-v0",
        num_envs=num_envs,
        vectorization_mode=vectorization,
        vector_kwargs={"autoreset_mode": mode},
        disable_env_checker=True,
    )


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


def expected_transitions(num_envs, num_transitions, seed=7):
    """The same from each environment alone."""
    collected = []
    for i in range(num_envs):
        env, rows = Episodes(), []
        observation, _ = env.reset(seed=seed + i)
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
@pytest.mark.parametrize("batch", ["sync", "async", "tensors"])
def test_every_autoreset_mode_gives_the_same_training_data(mode, batch):
    expected = expected_transitions(3, 40)
    ends = [row["end"] for rows in expected for row in rows]
    assert ends.count((True, False)) > 5 and ends.count((False, True)) > 5
    vector_env = episodes(mode, "async" if batch == "async" else "sync")
    with Environment(TensorBatch(vector_env) if batch == "tensors" else vector_env) as environment:
        assert environment.is_native == (batch == "tensors")
        assert transitions(environment, 40) == expected


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_id_gives_the_same_training_data_as_the_environments_alone(vectorization):
    env_kwargs = {"shares_buffer": True}
    with make_environment("test/Episodes-v0", 3, vectorization=vectorization, env_kwargs=env_kwargs) as environment:
        assert transitions(environment, 40) == expected_transitions(3, 40)


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


def test_entries_have_the_types_that_networks_take():
    with make_environment("test/Speaker-v0", 2) as environment:
        observation = environment.reset(0).observation
    assert {name: entry.dtype for name, entry in observation.items()} == {"said": torch.int64, "heard": torch.float32}
    with make_environment("test/PictureMiniGrid-v0", 2) as environment:
        assert environment.reset(0).observation["image"].dtype == torch.uint8


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_texts_become_tokens_and_boxes_are_clipped(vectorization):
    with make_environment("test/Speaker-v0", 2, vectorization=vectorization) as environment:
        said = environment.spaces["said"]
        assert isinstance(said, Tokens) and said.vocabulary == ("", *" abcxyz") and said.shape == (6,)
        observation = environment.reset(0).observation
        assert [said.vocabulary[index] for index in observation["said"][1]] == ["b", "a", "y", "", "", ""]
        action = torch.tensor([[[-7.0, -7], [-7, -7]], [[1, 2], [3, 7]]])
        observation = environment.step(action).observation
        assert observation["heard"].tolist() == [[[-1, -2], [-3, -4]], [[1, 2], [3, 5]]]
        assert (observation["said"] == 0).all()


@pytest.mark.parametrize("view", [7, 3])
def test_minigrid_is_symbols(view):
    env_kwargs = {} if view == 7 else {"agent_view_size": 3}
    with make_environment("MiniGrid-MemoryS7-v0", 2, env_kwargs=env_kwargs) as environment:
        image = environment.spaces["image"]
        assert kind(image) == "symbols" and image.shape == (view, view, 3) and image.nvec[0, 0].tolist() == [11, 6, 4]
        alone = gymnasium.make("MiniGrid-MemoryS7-v0", **env_kwargs)
        expected, _ = alone.reset(seed=6)
        observation = environment.reset(5).observation
        assert observation["image"][1].tolist() == expected["image"].tolist()
        assert observation["direction"][1] == expected["direction"]
        assert environment.spaces.keys() == {"direction", "image"}  # the mission is always the same


def test_the_words_of_missions_are_those_of_all_missions():
    with make_environment("MiniGrid-GoToDoor-5x5-v0", 5) as environment:
        mission = environment.spaces["mission"]
        colours = {"blue", "green", "grey", "purple", "red", "yellow"}
        assert mission.vocabulary == ("", *sorted({"go", "to", "the", "door"} | colours)) and mission.shape == (5,)
        observation = environment.reset(0).observation["mission"]
        texts = [" ".join(mission.vocabulary[index] for index in row) for row in observation]
    alone = gymnasium.make("MiniGrid-GoToDoor-5x5-v0")
    assert texts == [alone.reset(seed=seed)[0]["mission"] for seed in range(5)]


def test_minigrid_success_is_reaching_the_goal():
    forward, right = 2, 1
    with make_environment("MiniGrid-LavaGapS5-v0", 1) as environment:  # the gap is somewhere, lava everywhere else
        environment.reset(0)
        timestep = environment.step(torch.tensor([forward]))
        while not timestep.terminated:
            timestep = environment.step(torch.tensor([forward]))
        assert timestep.success == 0 and timestep.reward == 0
    with make_environment("MiniGrid-Empty-5x5-v0", 2, env_kwargs={"max_steps": 5}) as environment:
        environment.reset(0)
        for action in (forward, forward, right, forward, forward):
            timestep = environment.step(torch.tensor([action, right]))
        assert timestep.success.tolist() == [1, 0]
        assert timestep.terminated.tolist() == [True, False] and timestep.truncated.tolist() == [True, True]
        assert environment.step(torch.tensor([right, right])).success.isnan().all()


def test_a_minigrid_that_is_drawn_is_a_picture():
    with make_environment("test/PictureMiniGrid-v0", 1) as environment:
        assert isinstance(environment.spaces["image"], spaces.Box) and environment.spaces["image"].shape == (7, 7, 3)


def test_our_tasks_are_batches_of_tensors_that_continue_exactly():
    def actions():
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(6, (4,), generator=generator) for _ in range(40)]

    with (
        make_environment("merlin/MemoryGame-v0", 4) as environment,
        make_environment("merlin/MemoryGame-v0", 4) as other,
    ):
        assert environment.is_native
        environment.reset(0)
        for action in actions()[:13]:
            environment.step(action)
        other.reset(1)
        other.load_state_dict(environment.state_dict())
        for action in actions()[13:]:
            timestep, same = environment.step(action), other.step(action)
            assert all(torch.equal(timestep.observation[name], same.observation[name]) for name in timestep.observation)
            assert torch.equal(timestep.reward, same.reward)


def test_success_is_nan_where_the_task_does_not_define_it():
    with make_environment("CartPole-v1", 2) as environment:
        environment.reset(0)
        steps = [environment.step(torch.ones(2, dtype=torch.int64)) for _ in range(20)]
    assert any(step.terminated.any() for step in steps) and all(step.success.isnan().all() for step in steps)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_pictures_of_an_environment(vectorization):
    arguments = {"num_envs": 2, "vectorization": vectorization, "render_mode": "rgb_array"}
    with make_environment("test/Speaker-v0", **arguments) as environment:
        environment.reset(0)
        assert environment.render(1).shape == (4, 5, 3)
    with make_environment("test/Episodes-v0", **arguments) as environment:
        assert environment.render(0) is None


def run_misbehaving(vectorization, **env_kwargs):
    with make_environment("test/Misbehaving-v0", 2, vectorization=vectorization, env_kwargs=env_kwargs) as environment:
        environment.reset(0)
        for _ in range(3):
            environment.step(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "vectorization, misdeed, when, sentence",
    [
        ("sync", "raise", "step", "test/Misbehaving-v0 failed in step: ZeroDivisionError: the moon is full."),
        ("sync", "raise", "reset", "test/Misbehaving-v0 failed in reset: ZeroDivisionError: the moon is full."),
        ("sync", "raise", "constructor", "cannot be built with .*: ZeroDivisionError: the moon is full."),
        ("sync", "nan", "step", "Rewards must be finite, but test/Misbehaving-v0 returned nan in environment 0"),
        ("async", "raise", "step", r"failed in step: ZeroDivisionError: the moon is full \(environment \d\)."),
        ("async", "raise", "reset", r"failed in reset: ZeroDivisionError: the moon is full \(environment \d\)."),
        ("async", "raise", "constructor in a worker", "cannot be built with .*: ZeroDivisionError: the moon is full."),
        ("async", "raise what cannot be pickled", "step", "failed in step: LocalError: .*held"),
        ("async", "exit", "step", r"failed in step: the worker process of environment \d ended with status 7."),
        ("async", "exit", "constructor in a worker", "cannot be built with .*: a worker process died."),
        ("async", "nan", "step", "Rewards must be finite, but test/Misbehaving-v0 returned nan in environment 0"),
    ],
)
@pytest.mark.timeout(30)
def test_what_goes_wrong_inside_is_one_sentence(vectorization, misdeed, when, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        run_misbehaving(vectorization, misdeed=misdeed, when=when)
    assert "\n" not in str(raised.value)
    if misdeed != "nan":
        assert raised.value.__cause__ is not None
    if vectorization == "async" and misdeed == "raise" and when == "step":
        assert "in misbehave" in str(raised.value.__cause__)  # the worker's own traceback, for --debug
    assert not multiprocessing.active_children()


@pytest.mark.timeout(30)
def test_a_killed_worker_ends_in_a_sentence_within_seconds():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.reset(0)
    processes = environment.vector_env.unwrapped.processes
    processes[1].kill()
    start = time.monotonic()
    with pytest.raises(MerlinError, match="worker process of environment 1 was killed by signal 9"):
        for _ in range(3):
            environment.step(torch.zeros(3, dtype=torch.int64))
    assert time.monotonic() - start < 5
    assert not any(process.is_alive() for process in processes)
    environment.close()


@pytest.mark.timeout(30)
def test_a_batch_with_a_dead_worker_can_be_closed():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.vector_env.unwrapped.processes[1].kill()
    environment.vector_env.unwrapped.processes[1].join()
    environment.close()
    environment.close()


@pytest.mark.timeout(30)
def test_an_interrupted_step_can_be_closed():
    environment = make_environment("test/Misbehaving-v0", 3, vectorization="async")
    environment.reset(0)
    vector_env = environment.vector_env.unwrapped
    vector_env.step_async(np.zeros(3, np.int64))
    vector_env.parent_pipes[0].recv()  # as if Ctrl-C had come between two answers
    environment.close()
    assert not multiprocessing.active_children()


@pytest.mark.timeout(30)
def test_workers_leave_ctrl_c_to_the_trainer_and_end_with_it_despite_its_handlers(capfd):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        environment = make_environment("test/Misbehaving-v0", 2, vectorization="async", env_kwargs={"misdeed": "sleep"})
    finally:
        signal.signal(signal.SIGTERM, before)
    environment.reset(0)
    for process in environment.vector_env.unwrapped.processes:
        os.kill(process.pid, signal.SIGINT)
    observation = environment.step(torch.zeros(2, dtype=torch.int64)).observation
    assert torch.allclose(observation["observation"], torch.tensor(0.01))  # one torch thread in each worker
    environment.step(torch.zeros(2, dtype=torch.int64))
    environment.vector_env.unwrapped.step_async(np.zeros(2, np.int64))
    time.sleep(0.5)  # for them to fall asleep
    environment.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            {"task": "MiniGrid-MemoryS6-v0"},
            "There is no task 'MiniGrid-MemoryS6-v0'.*nearest of which is 'MiniGrid-Mem",
        ),
        ({"task": "merlin/MemoryGame-v1"}, "nearest of which is 'merlin/MemoryGame-v0'"),
        ({"task": "no_such_module:Id-v0"}, "The module of 'no_such_module:Id-v0' cannot be imported"),
        ({"task": "a:b:Id-v0"}, "cannot be imported"),
        ({"task": "MiniGrid-MemoryS7-v0", "env_kwargs": {"sise": 9}}, "cannot be built with {'sise': 9}: .*'sise'"),
        ({"task": "merlin/MemoryGame-v0", "env_kwargs": {"pears": 9}}, "cannot be built with {'pears': 9}: .*'pears'"),
        ({"task": "merlin/MemoryGame-v0", "env_kwargs": {"pairs": 1}}, "cannot be built with .*at least 2"),
        ({"task": "CartPole-v1", "env_kwargs": {"num_envs": 3}}, "cannot include num_envs"),
        ({"task": "CartPole-v1", "num_envs": 0}, "The number of environments must be at least 1, but is 0"),
        ({"task": "CartPole-v1", "vectorization": "threads"}, "must be 'sync' or 'async', but is 'threads'"),
        (
            {"task": "test/Misbehaving-v0", "env_kwargs": {"action_space": spaces.MultiBinary(3)}},
            "Action spaces are Discrete, MultiDiscrete or Box; test/Misbehaving-v0 has a MultiBinary",
        ),
        (
            {"task": "test/Misbehaving-v0", "env_kwargs": {"observation_space": spaces.Sequence(spaces.Discrete(2))}},
            "'observation' is a Sequence",
        ),
        (
            {
                "task": "test/Misbehaving-v0",
                "env_kwargs": {"observation_space": spaces.Sequence(spaces.Discrete(2))},
                "vectorization": "async",
            },
            "'observation' is a Sequence",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence(arguments, sentence):
    with pytest.raises(MerlinError, match=sentence) as raised:
        make_environment(**{"num_envs": 2, **arguments})
    assert "\n" not in str(raised.value)


def test_a_batch_must_say_when_it_resets():
    vector_env = episodes(AutoresetMode.SAME_STEP)
    del vector_env.metadata["autoreset_mode"]
    with pytest.raises(MerlinError, match="must declare when it resets"):
        Environment(vector_env)
