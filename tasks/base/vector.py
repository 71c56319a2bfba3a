"""Base class of the batched tasks: spaces, seeding, exact state, rendering."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Num
from torch import Tensor

from .arguments import check_types
from .views import VIEWS, Arrays, Onehot
from .window import Window

STAGGER = "merlin.stagger"


class TaskType(ABCMeta):
    """What lets every task take the arguments that `TensorVectorEnv` lists, beside its own."""

    def __call__(
        cls,
        *args: Any,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        arrays: str = "torch",
        observation: str = "own",
        **settings: Any,
    ) -> Any:
        if arrays not in ("torch", "numpy"):
            raise ValueError(f"arrays must be 'torch' or 'numpy', but is {arrays!r}: choose one of them.")
        if observation not in VIEWS:
            raise ValueError(f"observation must be one of {', '.join(VIEWS)}, but is {observation!r}: choose one.")
        check_types(cls, *args, max_episode_steps=max_episode_steps, **settings)
        device_type = torch.device(settings.get("device", "cpu")).type
        with torch.device("cpu"), undisturbed(device_type):  # whatever default device a program has set
            env = super().__call__(*args, **settings)
            env.set_episodes(_autoreset_mode(autoreset_mode), max_episode_steps)
        if observation == "onehot":
            env = Onehot(env)
        return Arrays(env) if arrays == "numpy" else env


def _autoreset_mode(named: AutoresetMode | str) -> AutoresetMode:
    for mode in AutoresetMode:
        if named in (mode, mode.value, mode.name):
            return mode
    names = ", ".join(mode.name for mode in AutoresetMode)
    raise ValueError(f"autoreset_mode must be one of {names}, but is {named!r}: choose one of them.")


@contextmanager
def undisturbed(device_type: str) -> Iterator[None]:
    """Compute as ever where a caller has autocast or inference mode on, or another type of floats as the default.

    Autocast would round the numbers that views are looked up by; what is made in inference mode cannot be written
    later; in float64 other numbers are drawn, and so other episodes.
    """
    with ExitStack() as stack:
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.is_autocast_enabled(device_type):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


class TensorVectorEnv(VectorEnv, metaclass=TaskType):
    """A batch of environments whose observations, rewards and flags are torch tensors on one device.

    The observation that follows an episode's end already belongs to the next episode (gymnasium's SAME_STEP autoreset);
    the one that ended it is in `info["final_obs"]`, valid where `info["_final_obs"]`. `info["is_success"]` is 1 or 0
    where an episode ended, 1/2 after a draw, and NaN elsewhere. What `step` returns is never written again; it may be
    part of the state, so write to a copy. There is no Python loop over environments and no host synchronisation in
    `step`, but for that of the modes NEXT_STEP and DISABLED.

    `scores` holds the exact expected returns of reference policies.

    A task defines `_start()` (begin an episode everywhere), `_observe()`, `_step()`, `draw(index)`, and names the
    tensors that make up its state in `state_names`. With `autoreset = False` it stays where an episode ended. A task
    that shows words as numbers names them in `words`.

    Where `can_be_cut`, a step also ends (truncates) the episodes of the environments in `cut`, and clears it. Where
    `can_stagger`, a reset with the option `STAGGER` begins episodes at different points of their time.

    Every task takes these arguments besides its own:

    autoreset_mode: one of gymnasium's; NEXT_STEP and DISABLED leave the observation that ends an episode in its place.
    max_episode_steps: truncates longer episodes, of tasks that `can_be_cut`.
    arrays: "numpy" returns arrays as gymnasium's own batches do, rather than tensors.
    observation: "onehot" shows categories as numbers 0 and 1 along the last axis.

    With render_mode="human", every reset and step shows environment 0 in a window.
    """

    metadata = {  # noqa: RUF012 (gymnasium's own form)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "tensors": True,
        "render_modes": ["rgb_array", "human"],
        "render_fps": 4,
    }
    can_truncate = False
    can_be_cut = False
    can_stagger = False
    cut: Bool[Tensor, " B"] | None = None
    autoreset = True
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] | tuple[tuple[str, ...], ...] | None = None
    """Of the choices of a Discrete, or of those of each part of a MultiDiscrete; None where they have none."""
    words: tuple[str, ...] = ()
    window: Window | None = None
    scores: dict[str, float]

    def __init__(
        self,
        num_envs: int,
        observation_space: Space,
        action_space: Space,
        device: str | torch.device,
        render_mode: str | None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, but is {num_envs}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None, 'rgb_array' or 'human', but is {render_mode!r}.")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.render_mode = render_mode
        self.window = Window(type(self).__name__, self.metadata["render_fps"]) if render_mode == "human" else None
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._action_dtype = torch.float32 if isinstance(action_space, Box) else torch.int64
        self.generator = torch.Generator(self.device)
        self.generator.seed()
        self._is_reset = False
        self.autoreset_mode, self.max_episode_steps = AutoresetMode.SAME_STEP, None

    def set_episodes(self, autoreset_mode: AutoresetMode, max_episode_steps: int | None) -> None:
        """Let episodes begin anew as a mode says, and end after so many steps if not before.

        Raises:
            ValueError: The task cannot.
        """
        name = type(self).__name__
        if max_episode_steps is not None and not self.can_be_cut:
            raise ValueError(
                f"max_episode_steps is for tasks whose episodes can be cut, but {name} ends all of its episodes "
                "together: set its own length."
            )
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, but is {max_episode_steps}: raise it.")
        if autoreset_mode is not AutoresetMode.SAME_STEP and type(self).rows_per_game() > 1:
            raise ValueError(
                f"autoreset_mode must be SAME_STEP, as the players of {name} begin together, but is "
                f"{autoreset_mode.name}: leave it out."
            )
        self.autoreset_mode, self.max_episode_steps = autoreset_mode, max_episode_steps
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self.autoreset = autoreset_mode is AutoresetMode.SAME_STEP
        self.num_taken = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.has_ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def _more_state(self) -> tuple[str, ...]:
        """Return the names of what belongs to the state besides `state_names`."""
        limit = () if self.max_episode_steps is None else ("num_taken",)
        return (*limit, "has_ended") if self.autoreset_mode is AutoresetMode.NEXT_STEP else limit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with undisturbed(self.device.type):
            mask = self._mask((options or {}).get("reset_mask"))
            super().reset(seed=seed)
            if seed is not None:
                self.generator.manual_seed(seed)
            if mask is None:
                self._start()
                self.num_taken, self.has_ended = torch.zeros_like(self.num_taken), torch.zeros_like(self.has_ended)
                self.cut = None
            else:
                if seed is not None:
                    self._start_anew()
                self._start_where(mask)
                self.cut = None if self.cut is None else self.cut & ~mask
            self._is_reset = True
            self._show_window()
            return self._observe(), {}

    def _mask(self, mask: Any) -> Bool[Tensor, " B"] | None:
        """Return which environments a reset is of, None being all."""
        if mask is None:
            return None
        mask = torch.as_tensor(mask, device=self.device)
        if mask.dtype is not torch.bool or mask.shape != (self.num_envs,):
            raise ValueError(
                f"reset_mask must be {self.num_envs} booleans, one for each environment, but came as {mask.dtype} of "
                f"shape {tuple(mask.shape)}: say True where an episode is to begin."
            )
        return mask

    def _start_anew(self) -> None:
        """Draw what comes from the generator, which was just seeded."""

    @classmethod
    def rows_per_game(cls, **settings: Any) -> int:
        """Return how many rows of the batch are players of one game, with these arguments of the constructor."""
        return 1

    def step(
        self, actions: Any
    ) -> tuple[Any, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        """Return observation, reward, terminated, truncated and info once these actions, [B, ...], were taken.

        Raises:
            ValueError: An action is not in the action space; nothing has changed then.
            gymnasium.error.ResetNeeded: `reset` was never called, or not where an episode ended in the mode DISABLED.
            gymnasium.error.ClosedEnvironmentError: `close` was called.
        """
        if self.closed:
            raise ClosedEnvironmentError("an environment that was closed cannot be stepped: make a new one.")
        if not self._is_reset:
            raise ResetNeeded("an environment must be reset before its first step: call reset().")
        with undisturbed(self.device.type):
            actions = self._read(actions)
            ended = self.has_ended
            if self.autoreset_mode is AutoresetMode.SAME_STEP or not bool(ended.any()):
                outcome = self._take(actions)
            elif self.autoreset_mode is AutoresetMode.NEXT_STEP:
                outcome = self._begin_next(actions, ended)
            else:
                raise ResetNeeded(
                    "an episode that has ended must be reset before the next step in the mode DISABLED, but "
                    f"{int(ended.sum())} of {self.num_envs} were not: call reset(), with options={{'reset_mask': ...}}."
                )
            if self.autoreset_mode is not AutoresetMode.SAME_STEP:
                self.has_ended = outcome[2] | outcome[3]
                outcome = (*outcome[:4], _without_final(outcome[4]))
            self._show_window()
            return outcome

    def _read(self, actions: Any) -> Num[Tensor, " B *A"]:
        """Return actions as tensors of the right type and shape, wherever they come from."""
        dtype = self._action_dtype
        if not isinstance(actions, Tensor) or actions.dtype is not dtype or actions.device != self.device:
            came = torch.as_tensor(actions, device=self.device)
            if came.is_floating_point() and dtype is torch.int64 and bool((part := came != came.round()).any()):
                raise ValueError(
                    f"actions must be whole numbers, but {came[part][0]:g} came: give those of action_space."
                )
            actions = came.to(dtype)
        shape = (self.num_envs, *(self.single_action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions must have shape {shape}, but have {tuple(actions.shape)}: give one to each.")
        return actions

    def _take(self, actions: Num[Tensor, " B *A"]) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return the outcome of `_step`, with the limit of steps."""
        if self.max_episode_steps is not None:
            late = self.num_taken + 1 >= self.max_episode_steps
            self.cut = late if self.cut is None else self.cut | late
        try:
            outcome = self._step(actions)
        except (IndexError, RuntimeError) as error:  # in looking up what an action leads to
            self._check(actions, error)
            raise
        self.cut = None
        if self.max_episode_steps is not None:
            self.num_taken = (self.num_taken + 1).masked_fill(outcome[2] | outcome[3], 0)
        return outcome

    def _check(self, actions: Num[Tensor, " B *A"], error: Exception | None = None) -> None:
        """Refuse actions that are not in the action space; of a Box, all are in it."""
        if self._action_dtype is not torch.int64:
            return
        space = self.single_action_space
        highest = torch.as_tensor((space.nvec if isinstance(space, MultiDiscrete) else space.n) - 1, device="cpu")
        came = actions.cpu()
        if (came < 0).any() or (came > highest).any():
            raise ValueError(
                f"an action must be from 0 to {highest.tolist()}, but {came.amin(0).tolist()} to "
                f"{came.amax(0).tolist()} came: take those of the action space."
            ) from error

    def _begin_next(
        self, actions: Num[Tensor, " B *A"], ended: Bool[Tensor, " B"]
    ) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return a step's outcome in the mode NEXT_STEP: what had ended before begins, and its action is ignored."""
        if bool(ended.all()):
            self._start_where(ended)
            zero, no = torch.zeros(self.num_envs, device=self.device), torch.zeros_like(ended)
            return self._observe(), zero, no, no, {"is_success": torch.full_like(zero, torch.nan)}
        self._check(actions)  # before anything is changed
        self._start_where(ended)
        begun = {name: getattr(self, name).clone() for name in self.state_names}
        _, reward, terminated, truncated, info = self._take(actions)  # a task knows no way to leave some alone
        for name, x in begun.items():
            setattr(self, name, torch.where(ended.view(-1, *[1] * (x.ndim - 1)), x, getattr(self, name)))
        self.num_taken = self.num_taken.masked_fill(ended, 0)
        info = {name: _nothing_where(ended, x) for name, x in info.items()}
        return self._observe(), reward.masked_fill(ended, 0.0), terminated & ~ended, truncated & ~ended, info

    def _start_some(self, begins: Bool[Tensor, " B"]) -> None:
        """Begin an episode in these environments; the others may be left as anything."""
        self._start()

    def _start_where(self, begins: Bool[Tensor, " B"]) -> None:
        """Begin an episode in these environments, and change nothing in the others."""
        before = {name: getattr(self, name) for name in self.state_names}
        if any(len(x) != self.num_envs for x in before.values() if x.ndim) or (
            not all(x.ndim for x in before.values()) and not bool(begins.all())
        ):
            raise ValueError(
                f"the episodes of {type(self).__name__} begin and end together, so all must be reset: reset all."
            )
        self._start_some(begins)
        for name, old in before.items():
            new = getattr(self, name)
            setattr(self, name, torch.where(begins.view(-1, *[1] * (new.ndim - 1)), new, old) if new.ndim else new)
        self.num_taken, self.has_ended = (
            self.num_taken.masked_fill(begins, 0),
            self.has_ended.masked_fill(begins, False),
        )

    def _show_window(self) -> None:
        if self.window is not None:
            self.window.show(self.draw(0))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window, if there is one; called by `close`."""
        if self.window is not None:
            self.window.close()

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of everything that the future depends on."""
        state = {name: getattr(self, name).clone() for name in (*self.state_names, *self._more_state())}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken; the settings and `num_envs` must be the same."""
        names = (*self.state_names, *self._more_state())
        if state.keys() != {*names, "generator"}:
            raise ValueError(f"the state must hold {', '.join(names)}, generator, but holds {', '.join(state)}.")
        current = self.state_dict()
        for name, value in state.items():
            if name != "generator" and value.shape != current[name].shape:
                raise ValueError(
                    f"{name} must have shape {tuple(current[name].shape)}, but has {tuple(value.shape)}: "
                    "load the state into a task with the settings that it came from."
                )
        self._is_reset = True
        self.has_ended = torch.zeros_like(self.has_ended)  # unless the state says otherwise
        self.generator.set_state(state["generator"].cpu())
        with undisturbed(self.device.type):
            for name in names:
                setattr(self, name, torch.empty_like(current[name]).copy_(state[name]))  # of the type that kernels read

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return one picture uint8 [Y, X, 3] per environment, or None without render_mode="rgb_array"."""
        return tuple(map(self.draw, range(self.num_envs))) if self.render_mode == "rgb_array" else None

    @abstractmethod
    def _start(self) -> None:
        """Begin an episode in every environment."""

    @abstractmethod
    def _observe(self) -> Any:
        """Return what is seen now."""

    @abstractmethod
    def _step(
        self, actions: Num[Tensor, " B *A"]
    ) -> tuple[Any, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        """Do what `step` says; an impossible action fails in a lookup, before anything is changed."""

    def _end_together(
        self, reward: Float[Tensor, " B"], is_end: bool, is_success: Callable[[], Bool[Tensor, " B"]]
    ) -> tuple[Any, Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], dict[str, Any]]:
        """Return what `_step` does where all episodes have the same length; `is_success` is asked at their end."""
        terminated = torch.full_like(reward, is_end, dtype=torch.bool)
        info = {"is_success": torch.full_like(reward, torch.nan)}
        if is_end:
            info["is_success"] = is_success().to(torch.float32)
            info |= {"final_obs": self._observe(), "_final_obs": terminated}
            if self.autoreset:
                self._start()
        return self._observe(), reward, terminated, torch.zeros_like(terminated), info

    def shows_cue(self) -> Bool[Tensor, " B"]:
        """Return where the present observation shows what must be remembered; everywhere unless a task knows better."""
        return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)

    @abstractmethod
    def draw(self, index: int) -> np.ndarray:
        """Return a picture of one environment as uint8 [Y, X, 3]."""


def _nothing_where(ended: Bool[Tensor, " B"], told: Any) -> Any:
    """Return an entry of an info, [B], with 0 or NaN where there is nothing to tell; others as they are."""
    if not isinstance(told, Tensor) or told.shape != ended.shape:
        return told
    return told.masked_fill(ended, torch.nan if told.is_floating_point() else 0)


def _without_final(info: dict[str, Any]) -> dict[str, Any]:
    """Return an info without the final observations, which the mode has in the observations' place."""
    return {name: x for name, x in info.items() if name not in ("final_obs", "_final_obs")}
