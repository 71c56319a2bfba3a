"""One environment of a batched task, as an ordinary gymnasium environment with numpy observations."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded

from .vector import TensorVectorEnv
from .views import VIEWS, onehot, onehot_space


class SingleEnv(gymnasium.Env):
    """A batch of one without its batch axis; subclasses name the batched task in `batched`.

    With observation="onehot", categories are numbers 0 and 1 along the last axis. The info is the batch's, without what
    is NaN there, as there is nothing to tell.

    After reset(seed), equal actions give the episode of a batch with num_envs=1 and that seed.
    """

    batched: ClassVar[type[TensorVectorEnv]]
    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 4}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, render_mode: str | None = None, observation: str = "own", **kwargs):
        if observation not in VIEWS:
            raise ValueError(f"observation must be one of {', '.join(VIEWS)}, but is {observation!r}: choose one.")
        self.batch = self.batched(num_envs=1, render_mode=render_mode, **kwargs).unwrapped  # of tensors
        self.is_onehot = observation == "onehot"
        self.batch.autoreset = False
        self.render_mode = render_mode
        self.observation_space = self.batch.single_observation_space
        if self.is_onehot:
            self.observation_space = onehot_space(self.observation_space)
        self.action_space = self.batch.single_action_space
        self.action_names, self.words = self.batch.action_names, self.batch.words

    @property
    def scores(self) -> dict[str, float]:
        return self.batch.scores

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, _ = self.batch.reset(seed=seed, options=options)
        return self._view(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if bool(self.batch.has_ended):
            raise ResetNeeded("an episode that has ended must be reset before the next step: call reset().")
        observation, reward, terminated, truncated, info = self.batch.step(np.asarray(action)[None])
        self.batch.has_ended = terminated | truncated
        of_batch = {"final_obs", "_final_obs"}
        rows = {k: _first_row(x) for k, x in info.items() if isinstance(x, torch.Tensor) and k not in of_batch}
        told = {k: x.item() if x.ndim == 0 else x for k, x in rows.items() if not np.isnan(x).all()}
        return self._view(observation), float(reward), bool(terminated), bool(truncated), told

    def _view(self, observation: Any) -> Any:
        row = _first_row(observation)
        return onehot(self.batch.single_observation_space, row) if self.is_onehot else row

    def render(self) -> np.ndarray | None:
        """Return a picture, or None without render_mode="rgb_array"; "human" shows it in a window as it comes."""
        return self.batch.draw(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.batch.close()


def _first_row(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree[:1].cpu().contiguous().numpy()[0]
    return {name: _first_row(branch) for name, branch in tree.items()}
