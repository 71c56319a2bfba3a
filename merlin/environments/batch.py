"""The one way in which environments reach agents: any gymnasium environment, batched, as flat dicts of tensors."""

import multiprocessing.connection
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import concatenate, create_empty_array
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from merlin.environments.actions import ActionMasks, EnvironmentActions
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec, make_vector_env
from merlin.errors import MerlinError, describe
from merlin.networks.spaces import ACTION_MASK, flatten_observation, flatten_space


class Timestep(NamedTuple):
    """One row of a batch of environments, after a reset or a step.

    An episode of two actions ends with o2 by truncation; o0' starts the next one:

        autoreset    SAME_STEP, DISABLED        NEXT_STEP
        after        reset  1     2     3       reset  1     2     3     4
        observation  o0     o1    o0'   o1'     o0     o1    o2    o0'   o1'
        is_first     1      0     1     0       1      0     0     1     0
        is_last      0      0     0     0       0      0     1     0     0      no action follows from o2: mask the row
        reward       0      r0    r1    r0'     0      r0    r1    0     r0'
        truncated    0      0     1     0       0      0     1     0     0
        final        -      -     o2    -       -      -     o2    -     -
    """

    observation: dict[str, Shaped[Tensor, "B ..."]]  # to act on next
    is_first: Bool[Tensor, " B"]  # this observation starts an episode
    is_last: Bool[Tensor, " B"]  # this observation ends an episode, and the action on it is ignored (NEXT_STEP only)
    reward: Float[Tensor, " B"]  # earned by the action just taken; 0 at a reset and for ignored actions
    terminated: Bool[Tensor, " B"]  # by the action just taken
    truncated: Bool[Tensor, " B"]
    final_observation: dict[str, Shaped[Tensor, "B ..."]] | None  # valid where truncated; None if nothing was
    success: Float[Tensor, " B"]  # 1 or 0 where an episode ended and the task defines success, NaN elsewhere

    @property
    def is_end(self) -> Bool[Tensor, " B"]:
        """Episodes that the action just taken ended, in either way."""
        return self.terminated | self.truncated


@runtime_checkable
class NativeEnv(Protocol):
    """What a vector environment of tensors has besides."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the future depends on."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """Continue exactly where `state_dict` was taken."""


class Environment:
    """A batch of environments, of numpy arrays or of tensors (`metadata["tensors"]`), in any autoreset mode.

    Actions are those of `ActionDistribution`; here they take the form of the action space, and a Box's are clipped.
    Where the environments give masks of actions, by infos or observations, each observation has one, `action_mask`
    [B, C], which is no part of `spaces`. Close it, or use it in a `with` statement, so that no worker process outlives
    it.

    Attributes:
        spaces: Of one environment's observation, flat.
        is_native: Its arrays are tensors on `device`; it has `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        vector_env: VectorEnv,
        device: str | torch.device = "cpu",
        *,
        task: str | None = None,
        truncation_ends: bool = False,
        failures: SimpleQueue | None = None,
    ):
        """
        Args:
            truncation_ends: Report truncations as terminations: see `TrainingConfig`.
            failures: Where the workers of an `AsyncVectorEnv` tell what ended them (`run_worker`).
        """
        self.vector_env = vector_env
        self.device = torch.device(device)
        self.task = task or (vector_env.spec.id if vector_env.spec else type(vector_env.unwrapped).__name__)
        self.num_envs = vector_env.num_envs
        self.is_native = bool(vector_env.metadata.get("tensors"))
        self.spaces = flatten_space(vector_env.single_observation_space)
        self.action_space = vector_env.single_action_space
        self._actions = EnvironmentActions(self.action_space, self.num_envs, self.device, self.is_native, self.task)
        self._masks = ActionMasks(vector_env.single_observation_space, self.action_space, self.is_native, self.task)
        if "autoreset_mode" not in vector_env.metadata:
            raise MerlinError(
                "A vector environment must declare when it resets; "
                f"{self.task} does not: put an AutoresetMode into its metadata as 'autoreset_mode'."
            )
        self._autoreset = AutoresetMode(vector_env.metadata["autoreset_mode"])
        self._dtypes = {name: _dtype_of(space) for name, space in self.spaces.items()}
        if self._masks.space is not None:
            self._dtypes[ACTION_MASK] = _dtype_of(self._masks.space)
        self._no = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._no_success = torch.full((self.num_envs,), torch.nan, device=self.device)
        self._is_last = self._no
        self._truncation_ends = truncation_ends
        self._failures = failures

    @property
    def scores(self) -> dict[str, float]:
        """The returns of reference policies ("random", "memoryless", "oracle"), where the task knows them."""
        return getattr(self.vector_env.unwrapped, "scores", {})

    def reset(self, seed: int) -> Timestep:
        """Begin an episode everywhere, each environment with a seed of its own, drawn from `seed`."""
        seeds: int | list[int] = seed
        if isinstance(self.vector_env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            seeds = spread_seed(seed, self.num_envs)
        observation, info = self._ask("reset", self.vector_env.reset, seed=seeds)
        observation = self._masks.begin(self._tensors(observation), info)
        self._is_last = no = self._no
        return Timestep(observation, ~no, no, no.float(), no, no, None, self._no_success)

    def step(self, action: Shaped[Tensor, "B ..."]) -> Timestep:
        """Act everywhere."""
        answer = self._ask("step", self.vector_env.step, self._actions(action))
        observation, reward, terminated, truncated, info = answer
        if not self.is_native and not np.isfinite(reward).all():
            index = int(np.argmin(np.isfinite(reward)))
            raise MerlinError(
                f"Rewards must be finite, but {self.task} returned {reward[index]} in environment {index}: "
                "correct the task."
            )
        observation = self._tensors(observation)
        terminated, truncated = self._tensor(terminated, torch.bool), self._tensor(truncated, torch.bool)
        if self._truncation_ends:
            terminated, truncated = terminated | truncated, self._no
        is_first, is_last, final_observation = terminated | truncated, self._no, None
        success = self._success(info, is_first)
        if self._autoreset is AutoresetMode.NEXT_STEP:
            is_first, is_last = self._is_last, is_first
            self._is_last = is_last
        # in another mode than SAME_STEP it is the last of an episode that has just ended
        is_over = None if self._autoreset is AutoresetMode.SAME_STEP else terminated | truncated
        observation = self._masks.read(observation, info, is_over)
        # On a GPU the host would have to wait for the flags: there whatever may be a final observation is handed on.
        if self.device.type != "cpu" or bool(truncated.any()):
            final_observation = self._final_observation(observation, info, truncated)
        if self._autoreset is AutoresetMode.DISABLED and bool(is_first.any()):
            mask = is_first if self.is_native else is_first.cpu().numpy()
            begun, info = self._ask("reset", self.vector_env.reset, options={"reset_mask": mask})
            begun = self._masks.read(self._tensors(begun), info, ~is_first)
            observation = self._masks.merge(observation, begun, is_first)
        reward = self._tensor(reward, torch.float32)
        return Timestep(observation, is_first, is_last, reward, terminated, truncated, final_observation, success)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of everything that the future depends on (native environments only)."""
        return {**self._native().state_dict(), "environment.is_last": self._is_last.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._is_last = state["environment.is_last"].to(self.device)
        state = {name: value for name, value in state.items() if name != "environment.is_last"}
        self._native().load_state_dict(state)

    def _native(self) -> "NativeEnv":
        vector_env = self.vector_env.unwrapped
        assert isinstance(vector_env, NativeEnv), "a batch of tensors has state_dict and load_state_dict"
        return vector_env

    def render(self, index: int) -> UInt8[np.ndarray, "Y X 3"] | None:
        """Return a picture of one environment, or None where it draws none (or was made without a render mode)."""
        vector_env = self.vector_env.unwrapped
        if vector_env.render_mode != "rgb_array":
            return None
        if isinstance(vector_env, SyncVectorEnv):  # whose render would draw all of them
            return self._ask("render", vector_env.envs[index].render)
        frames = self._ask("render", self.vector_env.render)
        return None if frames is None else frames[index]

    def close(self) -> None:
        """End the environments and their worker processes; again is harmless."""
        vector_env = self.vector_env.unwrapped
        if not isinstance(vector_env, AsyncVectorEnv):
            self.vector_env.close()
            return
        try:
            if vector_env._state is AsyncState.DEFAULT:
                self.vector_env.close()
        except (EOFError, OSError):
            pass  # a worker is dead
        # gymnasium's own close would wait for ever for the answers to a step that was interrupted
        vector_env._state = AsyncState.DEFAULT
        self.vector_env.close(terminate=True)

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; whatever it raises becomes one sentence."""
        try:
            return function(*args, **kwargs)
        except MerlinError:
            raise
        except Exception as error:
            reason, cause = describe(error), error
            if isinstance(self.vector_env.unwrapped, AsyncVectorEnv):
                reason, cause = self._worker_failure(error)
                self.close()
            raise MerlinError(f"{self.task} failed in {what}: {reason}.") from cause

    def _worker_failure(self, error: Exception) -> tuple[str, Exception]:
        """Return what ended a worker, in a line and as an exception with the worker's traceback."""
        if self._failures is not None and not self._failures.empty():
            index, reason, trace = self._failures.get()
            return f"{reason} (environment {index})", RuntimeError(f"in the worker of environment {index}:\n{trace}")
        vector_env = self.vector_env.unwrapped
        if isinstance(error, EOFError | OSError) and isinstance(vector_env, AsyncVectorEnv):
            processes = vector_env.processes
            closed = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=2)
            for index, process in enumerate(processes):
                if process.sentinel in closed:
                    process.join(2)  # a dying process closes its files a moment before it has an exit code
                    code = process.exitcode or 0
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                    return f"the worker process of environment {index} {how}", error
        return describe(error), error

    def _tensors(self, observation: Any) -> dict[str, Tensor]:
        entries = flatten_observation(observation if self.is_native else _torch(observation))
        return {name: self._tensor(value, self._dtypes[name]) for name, value in entries.items()}

    def _tensor(self, value: Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        # A copy, because vector environments of numpy arrays write the next observation into the same array.
        value = value if isinstance(value, Tensor) else torch.from_numpy(value)
        return value.to(self.device, dtype, copy=not self.is_native)

    def _final_observation(
        self, observation: dict[str, Tensor], info: dict[str, Any], truncated: Tensor
    ) -> dict[str, Tensor] | None:
        """Return the observations that ended episodes, valid in the rows that were truncated."""
        if self._autoreset is not AutoresetMode.SAME_STEP:
            return observation
        final = info.get("final_obs")
        if isinstance(final, np.ndarray) and final.dtype == object:  # one per ended episode, None elsewhere
            rows = truncated.nonzero()[:, 0].tolist()
            if not rows:
                return None
            final = [final[rows[0]] if entry is None else entry for entry in final]
            space = self.vector_env.single_observation_space
            final = concatenate(space, final, create_empty_array(space, self.num_envs))
        if final is None:
            return None
        return self._masks.read(self._tensors(final), info.get("final_info", {}), torch.ones_like(truncated))

    def _success(self, info: dict[str, Any], is_end: Tensor) -> Tensor:
        info = info.get("final_info", info)
        success = info.get("is_success")
        if success is None:
            return self._no_success
        success = self._tensor(np.asarray(success, np.float32) if not self.is_native else success, torch.float32)
        known = is_end if "_is_success" not in info else is_end & self._tensor(info["_is_success"], torch.bool)
        return torch.where(known, success, self._no_success)


def spread_seed(seed: int, count: int) -> list[int]:
    """Return a seed for each of `count` environments.

    Counting on from `seed`, as gymnasium does, would let neighbouring seeds share all environments but one.
    """
    return np.random.SeedSequence(seed).generate_state(count).tolist()


def make_environment(
    task: str,
    num_envs: int,
    *,
    device: str | torch.device = "cpu",
    env_kwargs: dict[str, Any] | None = None,
    vectorization: str = "sync",
    render_mode: str | None = None,
    truncation_ends: bool = False,
    config: EnvironmentConfig | None = None,
) -> Environment:
    """Return a batch of a task.

    Args:
        task: A gymnasium id, or "module:Id", which imports the module first.
        env_kwargs: For the constructor of the task.
        vectorization: "sync" steps all environments in this process, "async" each in a worker process of its own.
            A task that is a batch of tensors has no need of either.
        truncation_ends: Report truncations as terminations: see `TrainingConfig`.
        config: How environments are wrapped, read and waited for.

    Raises:
        MerlinError: Unknown id, unsupported spaces, or a task that does not take `env_kwargs`.
    """
    if num_envs < 1:
        raise MerlinError(f"The number of environments must be at least 1, but is {num_envs}.")
    if vectorization not in ("sync", "async"):
        raise MerlinError(f"The vectorization must be 'sync' or 'async', but is {vectorization!r}.")
    failures = multiprocessing.SimpleQueue() if vectorization == "async" else None
    vector_env = make_vector_env(
        find_spec(task),
        num_envs,
        device=device,
        env_kwargs=env_kwargs or {},
        vectorization=vectorization,
        render_mode=render_mode,
        failures=failures,
    )
    try:
        return Environment(vector_env, device, task=task, truncation_ends=truncation_ends, failures=failures)
    except BaseException:
        vector_env.close()
        raise


def _torch(observation: Any) -> Any:
    """Return the same structure with tensors that share the arrays' memory."""
    if isinstance(observation, dict):
        return {key: _torch(entry) for key, entry in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_torch(entry) for entry in observation)
    return torch.from_numpy(observation)


def _dtype_of(space: spaces.Space) -> torch.dtype:
    """Return how the agent's networks take the values of an entry."""
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8:
            return torch.uint8
        return torch.float32 if np.issubdtype(space.dtype, np.floating) else torch.int64
    return torch.int8 if isinstance(space, spaces.MultiBinary) else torch.int64
