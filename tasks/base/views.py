"""Other views of a task for other people's agents: categories as one-hot numbers, tensors as numpy arrays."""

from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.nn import functional as F

VIEWS = ("own", "onehot")


def onehot_space(space: Space) -> Space:
    """Return the space of `onehot`: categories are numbers 0 and 1 along the last axis, all else is as it was."""
    if isinstance(space, Dict):
        return Dict({name: onehot_space(entry) for name, entry in space.spaces.items()})
    if isinstance(space, Discrete):
        return Box(0.0, 1.0, (int(space.n),))
    if isinstance(space, MultiDiscrete):
        cell = _categories(space)
        return Box(0.0, 1.0, (*space.nvec.shape[:-1], sum(cell)))
    return space


def onehot(space: Space, value: Any) -> Any:
    """Return an observation of the space, or a batch of them, in `onehot_space`: tensors stay tensors."""
    if isinstance(space, Dict):
        return {name: onehot(entry, value[name]) for name, entry in space.spaces.items()}
    if not isinstance(space, Discrete | MultiDiscrete):
        return value
    codes = torch.as_tensor(value).long()
    if isinstance(space, Discrete):
        found = F.one_hot(codes - int(space.start), int(space.n)).float()
    else:
        parts = zip(codes.unbind(-1), _categories(space), strict=True)
        found = torch.cat([F.one_hot(part, size) for part, size in parts], -1).float()
    return found if isinstance(value, Tensor) else found.numpy()


def _categories(space: MultiDiscrete) -> list[int]:
    """Return how many categories each number of a cell has, which must be alike in all cells."""
    cells = space.nvec.reshape(-1, space.nvec.shape[-1])
    assert (cells == cells[0]).all() and not np.any(space.start), "tasks of ours have cells alike, from 0"
    return cells[0].tolist()


class View(VectorWrapper):
    """A batch seen in another way; its autoreset mode is where TorchRL looks for it, as that of gymnasium's batches."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.autoreset_mode = env.metadata["autoreset_mode"]


class Onehot(View):
    """A batch whose observations, final ones included, are one-hot."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._own = env.single_observation_space
        self.single_observation_space = onehot_space(self._own)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return onehot(self._own, observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            info = {**info, "final_obs": onehot(self._own, info["final_obs"])}
        return onehot(self._own, observation), reward, terminated, truncated, info


class Arrays(View):
    """A batch of numpy arrays, as gymnasium's own are: rewards float64, final observations one by one, infos masked."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "tensors": False}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options and isinstance(options.get("reset_mask"), np.ndarray):
            options = {**options, "reset_mask": torch.from_numpy(options["reset_mask"])}
        observation, info = self.env.reset(seed=seed, options=options)
        return _array(observation), _array(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ends, told = _array(terminated | truncated), _array(info)
        final = told.pop("final_obs", None)
        told.pop("_final_obs", None)
        told = {name: x for name, x in told.items() if name != "is_success" or ends.any()}
        told |= {f"_{name}": ends for name in told if name == "is_success"}
        if final is not None and ends.any():
            rows = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ends).tolist():
                rows[row] = _row(final, row)
            told |= {"final_obs": rows, "_final_obs": ends}
        return _array(observation), _array(reward).astype(np.float64), _array(terminated), _array(truncated), told


def _array(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _array(branch) for name, branch in tree.items()}
    return tree.cpu().numpy().copy() if isinstance(tree, Tensor) else tree  # a copy: it may be the state itself


def _row(tree: Any, row: int) -> Any:
    return {name: _row(branch, row) for name, branch in tree.items()} if isinstance(tree, dict) else tree[row]
