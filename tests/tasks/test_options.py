"""What every task takes beside its own arguments: autoreset modes, a limit of steps, numpy arrays, one-hot views."""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from merlin import tasks

B = 6
CUT = {"merlin/TMaze-v0": {"length": 3}, "merlin/Memory-v0": {"agent_view_size": 3}}
TOGETHER = {"merlin/RepeatPrevious-v0": {}, "merlin/MemoryGame-v0": {"pairs": 2}}


def make(task, **options):
    own = {**CUT, **TOGETHER}.get(task, {})
    return gymnasium.make_vec(task, num_envs=B, vectorization_mode="vector_entry_point", **own, **options)


def leaves(tree):
    return [x for branch in tree.values() for x in leaves(branch)] if isinstance(tree, dict) else [tree]


def equal(one, other, rows):
    return all(torch.equal(x[rows], y[rows]) for x, y in zip(leaves(one), leaves(other), strict=True))


def actions_of(env, steps, seed=0):
    env.single_action_space.seed(seed)
    return torch.tensor([[env.single_action_space.sample() for _ in range(B)] for _ in range(steps)])


@pytest.mark.parametrize("task", [*CUT, *TOGETHER])
def test_the_next_step_begins_an_episode_where_one_ended_and_nothing_else(task):
    env = make(task, autoreset_mode="NEXT_STEP", **({"max_episode_steps": 9} if task in CUT else {}))
    assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.NEXT_STEP
    env.reset(seed=1)
    length, before, lengths = torch.zeros(B), torch.zeros(B, dtype=torch.bool), []
    for action in actions_of(env, 40):
        state = {name: getattr(env.unwrapped, name).clone() for name in env.unwrapped.state_names}
        _seen, reward, terminated, truncated, info = env.step(action)
        assert "final_obs" not in info
        assert not (terminated | truncated)[before].any() and not reward[before].any(), "the action is ignored"
        assert torch.equal(info["is_success"].isnan(), ~(terminated | truncated))
        length = (length + 1).masked_fill(before, 0)
        lengths += length[terminated | truncated].tolist()
        if task == "merlin/TMaze-v0" and before.any():
            assert (env.unwrapped.num_steps[before] == 0).all()
            assert torch.equal(env.unwrapped.num_steps[~before], state["num_steps"][~before] + 1)
        before = terminated | truncated
    assert len(lengths) >= B and (task not in CUT or max(lengths) == 9)


@pytest.mark.parametrize("task", CUT)
def test_disabled_resets_where_it_is_told_to(task):
    env = make(task, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=4)
    env.reset(seed=0)
    for action in actions_of(env, 4):
        seen, _, terminated, truncated, _ = env.step(action)
    assert (terminated | truncated).any()
    mask = torch.arange(B) % 2 == 0
    begun, _ = env.reset(options={"reset_mask": mask})
    assert equal(seen, begun, ~mask) and not env.unwrapped.num_taken[mask].any()


def test_episodes_that_end_together_begin_together():
    env = make("merlin/RepeatPrevious-v0", autoreset_mode="DISABLED")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="begin and end together, so all must be reset"):
        env.reset(options={"reset_mask": torch.arange(B) == 0})


@pytest.mark.parametrize("task", CUT)
def test_a_limit_truncates_and_is_kept_in_the_state(task):
    env, ends = make(task, max_episode_steps=5), []
    env.reset(seed=3)
    actions = actions_of(env, 12)
    for t, action in enumerate(actions):
        if t == 7:
            state = env.unwrapped.state_dict()
        _, reward, terminated, truncated, _info = env.step(action)
        ends.append((truncated, terminated, reward))
    assert any(truncated.any() for truncated, _, _ in ends)
    lengths = torch.zeros(B)
    for truncated, terminated, _ in ends:
        lengths += 1
        assert (lengths[truncated] == 5).all() and (lengths <= 5).all() and not (truncated & terminated).any()
        lengths[truncated | terminated] = 0
    other = make(task, max_episode_steps=5)
    other.reset(seed=9)
    other.unwrapped.load_state_dict(state)
    for action, (truncated, terminated, reward) in zip(actions[7:], ends[7:], strict=True):
        again = other.step(action)
        assert all(torch.equal(x, y) for x, y in zip(again[1:4], (reward, terminated, truncated), strict=True))


@pytest.mark.parametrize("task", [*CUT, *TOGETHER])
@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_arrays_are_those_of_the_tensors_and_lie_in_their_spaces(task, mode):
    ours, theirs = make(task, autoreset_mode=mode), make(task, autoreset_mode=mode, arrays="numpy")
    tensors, arrays = ours.reset(seed=2)[0], theirs.reset(seed=2)[0]
    assert theirs.metadata["tensors"] is False and theirs.observation_space.contains(arrays)
    for action in actions_of(ours, 30):
        tensors, *more, info = ours.step(action)
        arrays, *others, told = theirs.step(action.numpy())
        for x, y in zip([*leaves(tensors), *more], [*leaves(arrays), *others], strict=True):
            assert isinstance(y, np.ndarray) and np.array_equal(x.numpy(), y)
        assert theirs.observation_space.contains(arrays) and others[0].dtype == np.float64
        ends = others[1] | others[2]
        if ends.any() and mode == "SAME_STEP":
            row = int(np.flatnonzero(ends)[0])
            wanted = [x[row].numpy() for x in leaves(info["final_obs"])]
            assert all(np.array_equal(x, y) for x, y in zip(leaves(told["final_obs"][row]), wanted, strict=True))
            assert told["_final_obs"].tolist() == ends.tolist() == told["_is_success"].tolist()
        assert ("final_obs" in told) == (mode == "SAME_STEP" and bool(ends.any()))


@pytest.mark.parametrize("task", ["merlin/Memory-v0", "merlin/MemoryGame-v0", "merlin/RepeatPrevious-v0"])
def test_onehot_shows_the_same_in_boxes(task):
    own, onehot = make(task), make(task, observation="onehot")
    single = gymnasium.make(task, observation="onehot", **{**CUT, **TOGETHER}[task])
    assert single.observation_space == onehot.single_observation_space
    assert single.observation_space.contains(single.reset(seed=0)[0])
    assert single.observation_space.contains(single.step(single.action_space.sample())[0])
    assert not any(isinstance(x, gymnasium.spaces.MultiDiscrete | gymnasium.spaces.Discrete) for x in boxes(single))
    seen, shown = own.reset(seed=4)[0], onehot.reset(seed=4)[0]
    for action in actions_of(own, 6):
        for space, x, y in zip(boxes(own), leaves(seen), leaves(shown), strict=True):
            if isinstance(space, gymnasium.spaces.Box):
                assert torch.equal(x, y)
            elif isinstance(space, gymnasium.spaces.Discrete):
                assert torch.equal(y.argmax(-1), x.long()) and (y.sum(-1) == 1).all()
            else:
                sizes = np.asarray(space.nvec).reshape(-1, space.nvec.shape[-1])[0].tolist()
                parts = [part.argmax(-1) for part in y.split(sizes, -1)]
                assert torch.equal(torch.stack(parts, -1), x.long()) and (y.sum(-1) == len(sizes)).all()
        (seen, *_), (shown, *_, info) = own.step(action), onehot.step(action)
        assert all(len(x) == B for x in leaves(info.get("final_obs", {})))


def boxes(env):
    space = getattr(env, "single_observation_space", env.observation_space)
    return list(space.values()) if isinstance(space, gymnasium.spaces.Dict) else [space]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"autoreset_mode": "LATER"}, "autoreset_mode must be one of NEXT_STEP, SAME_STEP, DISABLED, but is 'LATER'"),
        ({"arrays": "jax"}, "arrays must be 'torch' or 'numpy', but is 'jax'"),
        ({"observation": "flat"}, "observation must be one of own, onehot, but is 'flat'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, but is 0"),
    ],
)
def test_what_is_no_option_is_told(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("merlin/TMaze-v0", **options)


def test_what_a_task_cannot_is_told():
    with pytest.raises(ValueError, match="ends all of its episodes together"):
        make("merlin/MemoryGame-v0", max_episode_steps=3)
    with pytest.raises(ValueError, match="autoreset_mode must be SAME_STEP, as the players of CaptureTheFlag"):
        gymnasium.make_vec(
            "merlin/CaptureTheFlag-v0", num_envs=4, vectorization_mode="vector_entry_point", autoreset_mode="DISABLED"
        )


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_takes_them(task):
    env = gymnasium.make_vec(
        task, num_envs=4, vectorization_mode="vector_entry_point", arrays="numpy", observation="onehot"
    )
    assert env.observation_space.contains(env.reset(seed=0)[0])
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and reward.dtype == np.float64


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@needs("torchrl")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["DISABLED", "SAME_STEP"])
def test_torchrl_resets_where_episodes_end(mode):
    from torchrl.envs import GymWrapper

    env = GymWrapper(make("merlin/TMaze-v0", arrays="numpy", autoreset_mode=mode, max_episode_steps=4))
    seen = env.rollout(20, break_when_any_done=False)
    done = seen["next", "done"][..., 0]
    cues = (seen["observation"][..., :2] > 0).any(-1)  # which the start of an episode shows
    assert cues[:, 0].all() and cues[:, 1:][done[:, :-1]].all() and not cues.all()
    assert done.unfold(1, 4, 1).any(-1).all(), "no episode is longer than its limit"


@needs("stable_baselines3")
@pytest.mark.filterwarnings("ignore")
def test_stable_baselines3_takes_a_grid_of_categories_as_onehot():
    from stable_baselines3 import PPO

    env = gymnasium.make("merlin/Memory-v0", observation="onehot", agent_view_size=3)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8)
    assert env.action_space.contains(int(model.predict(env.reset(seed=0)[0])[0]))
