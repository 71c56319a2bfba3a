"""What holds for every task, as a batch and as a single environment."""

import copy
import gc
import pickle
import re
import subprocess
import sys
from contextlib import contextmanager

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

from merlin import tasks
from tests.tasks.play import num_choices, random_policy, uniform_actions

CASES = [
    ("merlin/MemoryGame-v0", {"pairs": 2}),
    ("merlin/MemoryGame-v0", {"view": "picture", "glyph_seed": 3}),
    ("merlin/TMaze-v0", {"length": 2}),
    ("merlin/TMaze-v0", {"length": 1, "view": "egocentric"}),
    ("merlin/Memory-v0", {"max_steps": 12}),
    ("merlin/Memory-v0", {"max_steps": 12, "view": "first_person", "picture_size": 16, "sight_distance": 8}),
    ("merlin/Memory-v0", {"size": 9, "random_length": True, "agent_view_size": 3, "max_steps": 12}),
    ("merlin/RepeatPrevious-v0", {"k": 2, "length": 6, "num_symbols": 3}),
    ("merlin/Playback-v0", {"length": 3}),
    ("merlin/Playback-v0", {"length": 2, "num_symbols": 2, "reverse": True}),
    ("merlin/VisuomotorMapping-v0", {"trials": 10, "responses": 2}),
    ("merlin/VisuomotorMapping-v0", {"view": "picture", "pictures": 3, "responses": 3, "trials": 8, "glyph_seed": 3}),
    ("merlin/RewardValuation-v0", {"size": 5, "objects": 4, "max_steps": 12, "agent_view_size": 3}),
    ("merlin/TransientInstruction-v0", {"max_steps": 15}),
    ("merlin/TransientInstruction-v0", {"size": 6, "objects": 2, "instruction_steps": 3, "max_steps": 11}),
    ("merlin/Maze-v0", {"size": 5, "max_steps": 12}),
    ("merlin/Maze-v0", {"size": 11, "agent_view_size": 3, "max_steps": 13}),
    ("merlin/GoalMaze-v0", {"size": 5, "max_steps": 20}),
    ("merlin/GoalMaze-v0", {"size": 9, "rooms_per_side": 2, "moving_doors": True, "max_steps": 20}),
    ("merlin/WaterMaze-v0", {"room_size": 3, "max_steps": 20}),
    ("merlin/WaterMaze-v0", {"num_rooms": 1, "room_size": 4, "agent_view_size": 3, "max_steps": 12}),
    ("merlin/LatentLearning-v0", {"stem_length": 1, "arm_length": 1, "explore_steps": 6, "return_steps": 12}),
    ("merlin/LatentLearning-v0", {"stem_length": 2, "explore_steps": 8, "return_steps": 8, "agent_view_size": 3}),
    (
        "merlin/KeyToDoor-v0",
        {"room_size": 3, "explore_steps": 6, "apples": 2, "distractor_steps": 14, "reward_steps": 6},
    ),
    (
        "merlin/ActiveVisualMatch-v0",
        {"room_size": 3, "explore_steps": 9, "apples": 2, "distractor_steps": 14, "reward_steps": 6},
    ),
    ("merlin/Empty-v0", {"size": 5, "random_start": True, "max_steps": 12}),
    ("merlin/FourRooms-v0", {"size": 7, "max_steps": 12}),
    ("merlin/LavaGap-v0", {"obstacle": "wall", "agent_view_size": 5, "max_steps": 12}),
    ("merlin/DoorKey-v0", {"size": 5, "max_steps": 12}),
    ("merlin/RedBlueDoors-v0", {"size": 4, "max_steps": 12}),
    ("merlin/MultiRoom-v0", {"max_num_rooms": 3, "max_room_size": 5, "max_steps": 12}),
    ("merlin/KeyCorridor-v0", {"num_rows": 2, "room_size": 3, "max_steps": 12}),
    ("merlin/ObstructedMaze-v0", {"agent_view_size": 3, "max_steps": 12}),
    ("merlin/WaterMaze-v0", {"max_steps": 20, "view": "first_person", "picture_size": 16}),
    ("merlin/CaptureTheFlag-v0", {"size": 7, "max_steps": 12, "opponents": "random", "team_mate": "random"}),
    ("merlin/CaptureTheFlag-v0", {"size": 11, "max_steps": 14, "opponents": "mixed", "team_mate": "attacker"}),
    (
        "merlin/CaptureTheFlag-v0",
        {"max_steps": 13, "opponents": "attacker", "team_mate": "random", "view": "first_person", "picture_size": 16},
    ),
    ("merlin/LatentLearning-v0", {"explore_steps": 8, "return_steps": 8, "view": "first_person", "picture_size": 16}),
]
every_case = pytest.mark.parametrize("task_id, kwargs", CASES)


def make_batch(task_id, kwargs, num_envs=5):
    return gymnasium.make_vec(
        task_id, num_envs=num_envs, vectorization_mode="vector_entry_point", device="cpu", **kwargs
    )


def flat(step):
    """Return the tensors of a step (or of a tree) in a fixed order."""
    if isinstance(step, torch.Tensor):
        return [step]
    branches = [step[name] for name in sorted(step)] if isinstance(step, dict) else step
    return [tensor for branch in branches for tensor in flat(branch)]


def arrays(observation):
    if isinstance(observation, torch.Tensor):
        return observation.numpy()
    return {name: value.numpy() for name, value in observation.items()}


def first_row(observation):
    if isinstance(observation, torch.Tensor):
        return observation.numpy()[0]
    return {name: value.numpy()[0] for name, value in observation.items()}


def assert_equal(left, right):
    for one, other in zip(flat(left), flat(right), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def run(env, num_steps, seed=1):
    policy = random_policy(env, seed)
    return [env.step(policy(None)) for _ in range(num_steps)]


def test_import_registers_and_nothing_else():
    program = """
import sys, merlin, gymnasium
assert "torch" not in sys.modules and {*merlin.tasks.TASKS} <= {*gymnasium.registry}
gymnasium.make("merlin/TMaze-v0")
"""
    for first in ("", "import gymnasium", "import sys, merlin; assert not {'gymnasium', 'numpy'} & {*sys.modules}"):
        subprocess.run([sys.executable, "-W", "error", "-c", first + program], check=True)


def test_registering_again_changes_nothing():
    before = dict(gymnasium.registry)
    tasks.register()
    assert gymnasium.registry == before


@every_case
def test_single_passes_the_checker(task_id, kwargs):
    check_env(gymnasium.make(task_id, render_mode="rgb_array", **kwargs).unwrapped)


@every_case
def test_vectorized_by_gymnasium(task_id, kwargs):
    env = gymnasium.make_vec(task_id, num_envs=2, vectorization_mode="sync", **kwargs)
    env.reset(seed=1)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)


@every_case
def test_batch_declares_what_it_returns(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.metadata["tensors"]
    assert env.observation_space.contains(arrays(env.reset(seed=2)[0]))
    for observation, reward, terminated, truncated, info in run(env, 20):
        assert env.observation_space.contains(arrays(observation))
        ended = terminated | truncated
        assert reward.dtype == torch.float32
        assert torch.equal(info["is_success"].isnan(), ~ended)
        assert env.can_truncate or not truncated.any()
        assert "final_obs" in info or not ended.any()


@every_case
def test_seed_determines_everything(task_id, kwargs):
    env = make_batch(task_id, kwargs, num_envs=20)
    first, again, other = [(env.reset(seed=seed), run(env, 10)) for seed in (7, 7, 8)]
    assert_equal(first, again)
    assert any(not torch.equal(one, two) for one, two in zip(flat(first), flat(other), strict=False))
    env.reset()  # unseeded: the generator goes on
    assert any(not torch.equal(one, two) for one, two in zip(flat(first[1]), flat(run(env, 10)), strict=False))


@every_case
def test_numpy_actions_are_accepted(task_id, kwargs):
    env, twin = make_batch(task_id, kwargs), make_batch(task_id, kwargs)
    env.reset(seed=3), twin.reset(seed=3)
    actions = uniform_actions(env, 1)
    assert_equal(env.step(actions.numpy()), twin.step(actions))


@every_case
def test_impossible_action_is_refused(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    env.reset(seed=0)
    count, nothing = num_choices(env), uniform_actions(env, 0)
    highest, state = re.escape(str((count - 1).tolist())), env.state_dict()
    for part in range(count.numel()):
        for action in (int(count.flatten()[part]), -1):
            actions = nothing.clone()
            actions[2].view(-1)[part] = action
            with pytest.raises(ValueError, match=rf"an action must be from 0 to {highest}, but .*{action}"):
                env.step(actions)
    assert_equal(env.state_dict(), state)
    shape, wrong = (re.escape(str(tuple(actions.shape))) for actions in (nothing, nothing[:4]))
    with pytest.raises(ValueError, match=f"actions must have shape {shape}, but have {wrong}"):
        env.step(nothing[:4])


@every_case
def test_stepping_needs_a_reset_and_an_open_environment(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    with pytest.raises(ResetNeeded, match="must be reset before its first step"):
        env.step(uniform_actions(env, 0))
    env.reset()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="closed cannot be stepped"):
        env.step(uniform_actions(env, 0))


@every_case
def test_state_dict_continues_exactly(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    env.reset(seed=4)
    run(env, 10)
    state = env.state_dict()
    expected = run(env, 25)
    fresh = make_batch(task_id, kwargs)
    for _ in range(2):  # twice: loading must not make the state an alias of the environment
        fresh.load_state_dict(state)
        assert_equal(run(fresh, 25), expected)


@every_case
def test_foreign_state_is_refused(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    with pytest.raises(ValueError, match="must have shape"):
        env.load_state_dict(make_batch(task_id, kwargs, num_envs=4).state_dict())
    with pytest.raises(ValueError, match="the state must hold"):
        env.load_state_dict({})


@every_case
def test_rows_are_independent(task_id, kwargs):
    env, twin = make_batch(task_id, kwargs), make_batch(task_id, kwargs)
    env.reset(seed=5), twin.reset(seed=5)
    policy = random_policy(env)
    for step in range(40):
        actions = policy(None)
        changed = actions.clone()
        changed[2] = step % num_choices(env)
        outcome, changed_outcome = env.step(actions), twin.step(changed)
        if hasattr(env, "pool") and any(outcome[i][2] != changed_outcome[i][2] for i in (2, 3)):
            break  # grid worlds hand out starts in the order in which episodes end: from here on, others differ
        for one, other in zip(flat(outcome), flat(changed_outcome), strict=True):
            keep = torch.arange(5) != 2
            torch.testing.assert_close(one[keep], other[keep], rtol=0, atol=0, equal_nan=True)
    assert step >= 2


@every_case
def test_row_equals_batch_of_one(task_id, kwargs):
    env, one = make_batch(task_id, kwargs), make_batch(task_id, kwargs, num_envs=1)
    env.reset(seed=6)
    state = env.state_dict()
    one.load_state_dict(
        {name: value[3:4] if value.ndim and len(value) == 5 else value for name, value in state.items()}
    )
    policy = random_policy(env)
    while True:
        actions = policy(None)
        (_, reward, terminated, truncated, info), row = env.step(actions), one.step(actions[3:4])
        assert_equal(
            [reward[3:4], terminated[3:4], truncated[3:4], info["is_success"][3:4]], [*row[1:4], row[4]["is_success"]]
        )
        if row[2] | row[3]:
            assert_equal([tensor[3:4] for tensor in flat(info["final_obs"])], row[4]["final_obs"])
            break


@every_case
def test_returned_tensors_are_never_written_again(task_id, kwargs):
    env = make_batch(task_id, kwargs)
    steps, copies = [env.reset(seed=8)], []
    copies.append([tensor.clone() for tensor in flat(steps[0])])
    for _ in range(40):
        steps.append(run(env, 1, seed=len(steps))[0])
        copies.append([tensor.clone() for tensor in flat(steps[-1])])
    assert_equal(steps, copies)


@every_case
def test_final_observation_is_where_the_episode_ended(task_id, kwargs):
    env, twin = make_batch(task_id, kwargs), make_batch(task_id, kwargs)
    start = env.reset(seed=9)[0]
    twin.autoreset = False
    policy, num_ends = random_policy(env), 0
    for _ in range(60):
        twin.load_state_dict(env.state_dict())
        actions = policy(start)
        stayed, (observation, _, terminated, truncated, info) = twin.step(actions)[0], env.step(actions)
        ended = terminated | truncated
        num_ends += int(ended.sum())
        assert torch.equal(info.get("_final_obs", torch.zeros(5, dtype=torch.bool)), ended)
        for final, shown, stay in zip(
            flat(info.get("final_obs", stayed)), flat(observation), flat(stayed), strict=True
        ):
            assert torch.equal(final[ended], stay[ended]) and torch.equal(shown[~ended], stay[~ended])
    assert num_ends > 5


@every_case
def test_single_equals_batch_of_one(task_id, kwargs):
    single, batch = gymnasium.make(task_id, **kwargs), make_batch(task_id, kwargs, num_envs=1)
    for seed in range(3):
        observation, info = single.reset(seed=seed)
        expected, _ = batch.reset(seed=seed)
        ended = False
        while True:
            assert data_equivalence(observation, first_row(expected), exact=True)
            if ended:
                break
            action = single.action_space.sample()
            observation, reward, terminated, truncated, info = single.step(action)
            expected, *outcome, batch_info = batch.step(np.array([action]))
            assert [reward, terminated, truncated] == [value.item() for value in outcome]
            ended = terminated or truncated
            expected = batch_info["final_obs"] if ended else expected
        told = {k: first_row(x) for k, x in batch_info.items() if not k.endswith("final_obs")}
        told = {k: x for k, x in told.items() if not np.isnan(x).all()}
        assert info.keys() == told.keys() >= {"is_success"}
        assert all(np.array_equal(info[k], x) and np.ndim(info[k]) == np.ndim(x) for k, x in told.items())


@every_case
def test_pictures(task_id, kwargs):
    single = gymnasium.make(task_id, render_mode="rgb_array", **kwargs)
    single.reset(seed=0)
    before = single.render()
    single.step(uniform_actions(single.unwrapped.batch, 0)[0].numpy())
    after = single.render()
    assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[2] == 3
    assert before.shape == after.shape and (before != after).any()
    batch = make_batch(task_id, kwargs | {"render_mode": "rgb_array"}, num_envs=3)
    batch.reset(seed=0)
    assert len(batch.render()) == 3
    assert np.array_equal(
        gymnasium.make(task_id, render_mode="rgb_array", **kwargs).unwrapped.batch.render()[0].shape, before.shape
    )
    assert make_batch(task_id, kwargs).render() is None


@pytest.mark.parametrize(
    "task_id, kwargs, message",
    [
        ("merlin/MemoryGame-v0", {"pairs": 1}, "pairs must be at least 2, but is 1"),
        ("merlin/MemoryGame-v0", {"view": "pixels"}, "view must be 'symbolic' or 'picture'"),
        ("merlin/TMaze-v0", {"length": 0}, "length must be at least 1, but is 0"),
        ("merlin/TMaze-v0", {"view": "picture"}, "view must be 'vector' or 'egocentric'"),
        ("merlin/TMaze-v0", {"render_mode": "ansi"}, "render_mode must be None, 'rgb_array' or 'human'"),
        ("merlin/TMaze-v0", {"num_envs": 0}, "num_envs must be at least 1"),
        ("merlin/TMaze-v0", {"num_envs": 2.5}, "num_envs must be a whole number, but is 2.5"),
        ("merlin/Memory-v0", {"random_length": "no"}, "random_length must be True or False, but is 'no'"),
        ("merlin/Memory-v0", {"max_steps": 12.5}, "max_steps must be a whole number or None, but is 12.5"),
        ("merlin/Maze-v0", {"see_through_walls": 2}, "see_through_walls must be True or False, but is 2"),
        ("merlin/KeyToDoor-v0", {"apple_reward": float("nan")}, "apple_reward must be a finite number, but is nan"),
    ],
)
def test_bad_settings(task_id, kwargs, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(task_id, vectorization_mode="vector_entry_point", **kwargs)


@pytest.mark.parametrize(
    "task_id, kwargs",
    [
        ("merlin/Memory-v0", {"max_steps": 6}),
        ("merlin/RewardValuation-v0", {"max_steps": 6}),
        ("merlin/GoalMaze-v0", {"max_steps": 6}),
        ("merlin/KeyCorridor-v0", {"max_steps": 6}),
    ],
)
def test_the_next_step_begins_what_was_truncated_while_others_go_on(task_id, kwargs):
    env = make_batch(task_id, kwargs | {"autoreset_mode": "NEXT_STEP"}, num_envs=4)
    env.reset(seed=0)
    left, is_late = torch.zeros(4, dtype=torch.int64), torch.tensor([False, True, False, True])
    for _ in range(3):
        env.step(left)
    env.reset(options={"reset_mask": is_late})
    ends = torch.stack([env.step(left)[3] for _ in range(17)])  # six steps, and one that is ignored
    assert ends[:, ~is_late].nonzero()[:, 0].unique().tolist() == [2, 9, 16]
    assert ends[:, is_late].nonzero()[:, 0].unique().tolist() == [5, 12]


@pytest.mark.parametrize("task_id", ["merlin/TMaze-v0", "merlin/Memory-v0", "merlin/WaterMaze-v0"])
def test_a_seed_counts_in_a_reset_of_some(task_id):
    env, seen = make_batch(task_id, {"autoreset_mode": "DISABLED"}, num_envs=40), []
    env.reset(seed=0)
    for seed in (5, 5, 6):
        start, _ = env.reset(seed=seed, options={"reset_mask": torch.arange(40) > 3})
        seen.append([tensor[4:] for tensor in flat(start)])
    assert_equal(seen[0], seen[1])
    assert any(not torch.equal(one, other) for one, other in zip(seen[0], seen[2], strict=True))


@pytest.mark.parametrize("task_id", ["merlin/TMaze-v0", "merlin/RepeatPrevious-v0", "merlin/Empty-v0"])
def test_a_single_environment_is_reset_where_an_episode_ended(task_id):
    env = gymnasium.make(task_id, arrays="numpy", **({"max_steps": 3} if "Empty" in task_id else {})).unwrapped
    env.reset(seed=0)
    while not any(env.step(0)[2:4]):
        pass
    with pytest.raises(ResetNeeded, match="an episode that has ended must be reset before the next step"):
        env.step(0)
    env.reset()
    state = env.batch.state_dict()
    while not any(env.step(0)[2:4]):
        pass
    env.batch.load_state_dict(state)
    env.step(0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("task_id, kwargs", [CASES[i] for i in (0, 2, 4, 5, 18)])
def test_a_copy_goes_on_alone(task_id, kwargs, copied):
    env = make_batch(task_id, kwargs)
    env.reset(seed=0)
    twin = copied(env)
    expected = run(env, 20)
    del env
    gc.collect()  # what a copy reads is its own
    assert_equal(run(twin, 20), expected)


@pytest.mark.parametrize("task_id", ["merlin/MemoryGame-v0", "merlin/RepeatPrevious-v0", "merlin/Memory-v0"])
def test_arrays_may_be_written(task_id):
    env, twin = (make_batch(task_id, {"arrays": "numpy"}) for _ in range(2))
    seen, others = env.reset(seed=0)[0], twin.reset(seed=0)[0]
    for step in range(12):
        for entry in seen.values() if isinstance(seen, dict) else [seen]:
            entry[...] = 1
        actions = np.full(5, step % num_choices(env).item())
        (seen, *outcome, _), (others, *wanted, _) = env.step(actions), twin.step(actions)
        assert data_equivalence(seen, others, exact=True)
        assert all(map(np.array_equal, outcome, wanted))


def test_a_state_of_another_type_is_read_as_ours():
    env = make_batch("merlin/Memory-v0", {})
    env.reset(seed=0)
    state = env.state_dict()
    twin = make_batch("merlin/Memory-v0", {})
    twin.load_state_dict(state | {"cells": state["cells"].long(), "position": state["position"].int()})
    assert_equal(run(twin, 20), run(env, 20))


@contextmanager
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AROUND = {
    "a default type": doubles,
    "a default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize(
    "task_id, kwargs, has_kernels",
    [
        ("merlin/MemoryGame-v0", {}, True),
        ("merlin/RepeatPrevious-v0", {"length": 6}, True),
        ("merlin/VisuomotorMapping-v0", {"trials": 6}, True),
        ("merlin/FourRooms-v0", {"size": 7, "agent_view_size": 9, "max_steps": 5}, True),
        ("merlin/FourRooms-v0", {"size": 7, "agent_view_size": 9, "max_steps": 5}, False),
        ("merlin/Memory-v0", {"view": "first_person", "picture_size": 16, "max_steps": 5}, False),
        ("merlin/RewardValuation-v0", {}, True),
    ],
)
def test_what_surrounds_a_task_changes_nothing(task_id, kwargs, has_kernels, around, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr("merlin.tasks.grid.native.load", lambda: None)
    env = make_batch(task_id, kwargs)
    expected = [env.reset(seed=0), *(env.step(torch.zeros(5, dtype=torch.int64)) for _ in range(12))]
    actions = torch.zeros(5, dtype=torch.int64)
    with around():
        env = make_batch(task_id, kwargs)
        found = [env.reset(seed=0), *(env.step(actions) for _ in range(4))]
    found += [env.step(actions) for _ in range(8)]  # what was made inside can be written outside
    assert_equal(found, expected)


def test_scores_of_unknown_task():
    with pytest.raises(ValueError, match="merlin/TMaze-v0"):
        tasks.scores("merlin/Nothing-v0")
