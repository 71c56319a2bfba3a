"""Environments that do what real ones do, registered as test/...-v0, and batches of them."""

import random

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

import tests.environments.misbehaving  # noqa: F401 (registers test/Misbehaving-v0)


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


class BufferBatch(TensorBatch):
    """A batch of tensors that writes what it returns into the same tensors, and its actions over."""

    def __init__(self, numpy_env):
        super().__init__(numpy_env)
        self.kept = {}

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return self._keep("observation", observation), info

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        actions.fill_(-1)
        names = ("observation", "reward", "terminated", "truncated", "info")
        return tuple(map(self._keep, names, (observation, reward, terminated, truncated, info)))

    def _keep(self, name, x):
        if isinstance(x, dict):
            return {key: self._keep(f"{name}.{key}", child) for key, child in x.items()}
        if isinstance(x, tuple):
            return tuple(self._keep(f"{name}.{i}", child) for i, child in enumerate(x))
        return self.kept.setdefault(name, torch.empty_like(x)).copy_(x)


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


class Gambler(gymnasium.Env):
    """Shows numbers from Python's and NumPy's global generators."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.array([random.random(), np.random.random()], np.float32), {}


class NotFiniteAtLast(gymnasium.Env):
    """Three steps, after which time is up and nothing more is seen."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        is_last = self.num_steps == 3
        return np.full(2, np.nan if is_last else 0.5, np.float32), 0.0, False, is_last, {}


class Doubled(gymnasium.RewardWrapper):
    """Twice the reward."""

    def reward(self, reward):
        return 2 * reward


class Incremented(gymnasium.RewardWrapper):
    """One more than the reward."""

    def reward(self, reward):
        return reward + 1


NO_WRAPPER = 7


def needs_more(env, size):
    return env


def returns_nothing(env):
    return None


def picture_minigrid(**kwargs):
    from minigrid.envs import EmptyEnv
    from minigrid.wrappers import RGBImgPartialObsWrapper

    return RGBImgPartialObsWrapper(EmptyEnv(size=5, **kwargs), tile_size=1)


for name, entry_point in {
    "Episodes": Episodes,
    "Speaker": Speaker,
    "NotFiniteAtLast": NotFiniteAtLast,
    "Gambler": Gambler,
    "PictureMiniGrid": picture_minigrid,
}.items():
    gymnasium.register(f"test/{name}-v0", entry_point=entry_point)

gymnasium.register("test/OnlyBatches-v0", vector_entry_point=lambda **kwargs: TensorBatch(episodes("SameStep")))


def episodes(mode, vectorization="sync", num_envs=3):
    return gymnasium.make_vec(
        "test/Episodes-v0",
        num_envs=num_envs,
        vectorization_mode=vectorization,
        vector_kwargs={"autoreset_mode": mode},
        disable_env_checker=True,
    )


class Masked(Episodes):
    """Episodes whose actions are masked by what `allowed` says of the episode and the step.

    Args:
        where: The mask is in the "info", or in the "observation".
        at_end: What the mask of an episode's last observation is: "mask" as any, "zeros", or "none".
    """

    def __init__(self, where="info", at_end="mask", misdeed=None, action_space=None):
        super().__init__()
        self.where, self.at_end, self.misdeed, self.steps = where, at_end, misdeed, 0
        self.action_space = action_space or self.action_space
        if where == "observation":
            entries = self.observation_space.spaces | {"action_mask": spaces.MultiBinary(3)}
            self.observation_space = spaces.Dict(entries)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self.masked(observation, info, False)

    def step(self, action):
        assert self.mask[action + 1] == 1, "only what is allowed is done"
        self.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        observation, info = self.masked(observation, info, terminated or truncated)
        return observation, reward, terminated, truncated, info

    def masked(self, observation, info, is_end):
        self.mask = allowed(self.clock[None])[0].astype(np.int8)
        mask = self.mask
        if is_end and self.at_end != "mask":
            mask = np.zeros(3, np.int8) if self.at_end == "zeros" else None
        if self.steps == 3 and self.misdeed and not is_end:
            mask = {"nothing": 0 * self.mask, "size": np.ones(4), "value": 2 * self.mask, "missing": None}[self.misdeed]
        if mask is None:
            return observation, info
        if self.where == "info":
            return observation, info | {"action_mask": mask}
        return observation | {"action_mask": mask}, info


def allowed(clock):
    """Return the mask [B, 3] of each row's episode and step, with at least one 1 in each."""
    episode, step = np.asarray(clock).astype(int).T
    number = 1 + (5 * episode + 3 * step) % 7
    return (number[:, None] >> np.arange(3)) & 1 == 1


class MaskedTensors(TensorBatch):
    """A batch of tensors, whose masks are in the infos, or in the observations."""

    def _tensors(self, observation):
        tensors = super()._tensors(observation)
        if "action_mask" in observation:
            tensors["action_mask"] = torch.tensor(np.asarray(observation["action_mask"]))
        return tensors

    def reset(self, *, seed=None, options=None):
        if options:
            options = {"reset_mask": options["reset_mask"].numpy()}
        observation, info = self.numpy_env.reset(seed=seed, options=options)
        return self._tensors(observation), masks_of(info)

    def step(self, actions):
        observation, reward, terminated, truncated, info = self.numpy_env.step(actions.numpy())
        tensor_info = masks_of(info) | {"is_success": torch.full((self.num_envs,), torch.nan)}
        if "final_obs" in info:
            rows = [row if row is not None else self.single_observation_space.sample() for row in info["final_obs"]]
            final = {
                "clock": np.stack([row["clock"] for row in rows]),
                "inner": [np.stack([r["inner"][0] for r in rows])],
            }
            if "action_mask" in self.single_observation_space.spaces:
                final["action_mask"] = np.stack([row["action_mask"] for row in rows])
            tensor_info |= {"final_obs": self._tensors(final), "final_info": masks_of(info["final_info"])}
            tensor_info["final_info"]["is_success"] = tensor_info["is_success"]
        flags = torch.tensor(terminated), torch.tensor(truncated)
        return self._tensors(observation), torch.tensor(reward, dtype=torch.float32), *flags, tensor_info


def masks_of(info):
    return {name: torch.tensor(info[name]) for name in ("action_mask", "_action_mask") if name in info}


gymnasium.register("test/Masked-v0", entry_point=Masked)


def masked_batch(mode, vectorization="sync", num_envs=3, **settings):
    vector_env = gymnasium.make_vec(
        "test/Masked-v0",
        num_envs=num_envs,
        vectorization_mode="async" if vectorization == "async" else "sync",
        vector_kwargs={"autoreset_mode": mode},
        disable_env_checker=True,
        **settings,
    )
    return MaskedTensors(vector_env) if vectorization == "tensors" else vector_env
