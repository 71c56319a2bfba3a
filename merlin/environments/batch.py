"""The one way in which environments reach agents: any gymnasium environment, batched, as flat dicts of tensors."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from merlin.environments.actions import ActionMasks, EnvironmentActions
from merlin.environments.adapters import STAGGER, AgentView, first_cut
from merlin.environments.border import Border, Entries
from merlin.environments.config import EnvironmentConfig
from merlin.environments.make import find_spec, make_vector_env
from merlin.environments.passed import Passed, name_of
from merlin.environments.validation import check_batch, failed, what_came
from merlin.environments.workers import WorkerFailure, Workers, end
from merlin.errors import EnvironmentFailure, MerlinError
from merlin.networks.spaces import ACTION_MASK, flatten_space


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
    is_cut: Bool[Tensor, " B"]  # the action just taken ended a first episode that was to be cut, to stagger episodes

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


@runtime_checkable
class DrawsOne(Protocol):
    """A batch of tensors that draws one of its environments without the others."""

    def draw(self, index: int, /) -> np.ndarray:
        """Return a picture."""
        ...


class Environment:
    """A batch of environments, of numpy arrays or of tensors (`metadata["tensors"]`), in any autoreset mode.

    Actions are those of `ActionDistribution`; a Box's are clipped here. Close it, or use it in a `with` statement, so
    that no worker process outlives it.

    Attributes:
        spaces: Of one environment's observation, flat.
        is_native: Its arrays are tensors on `device`; it has `state_dict` and `load_state_dict`.
        events: How often each of a game's events happened to each row in the last step, [B, V], of a task that tells
            as `info["events"]`; None before the first step, and of other tasks.
    """

    def __init__(
        self,
        vector_env: VectorEnv,
        device: str | torch.device = "cpu",
        *,
        task: str | None = None,
        truncation_ends: bool = False,
        config: EnvironmentConfig | None = None,
    ):
        """
        Args:
            truncation_ends: Report truncations as terminations: see `TrainingConfig`.
            config: How the observation is read.
        """
        config = config or EnvironmentConfig()
        check_batch(vector_env)
        self.vector_env = vector_env
        self.device = torch.device(device)
        self.task = task or (vector_env.spec.id if vector_env.spec else type(vector_env.unwrapped).__name__)
        self.num_envs = vector_env.num_envs
        self.is_native = bool(vector_env.metadata.get("tensors"))
        self.spaces = flatten_space(vector_env.single_observation_space, config.kinds, config.pictures_by_bounds)
        self.action_space = vector_env.single_action_space
        self._actions = EnvironmentActions(self.action_space, self.num_envs, self.device, self.is_native, self.task)
        self._masks = ActionMasks(vector_env.single_observation_space, self.action_space, self.is_native, self.task)
        self._border = Border(vector_env, self.task, self.is_native)
        self._dtypes = {name: _dtype_of(space) for name, space in self.spaces.items()}
        if self._masks.space is not None:
            self._dtypes[ACTION_MASK] = _dtype_of(self._masks.space)
        self._no = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._no_success = torch.full((self.num_envs,), torch.nan, device=self.device)
        self._is_last = self._no
        self._cuts: Cuts | None = None
        self._truncation_ends = truncation_ends
        self._cut_by = self._find_cutter()
        self._tells_success = False
        self.events: Float[Tensor, "B V"] | None = None

    @property
    def gives_masks(self) -> bool | None:
        """Whether masks of actions come with observations, as the first reset tells; None before."""
        return self._masks.are_given

    @property
    def scores(self) -> dict[str, float]:
        """The returns of reference policies ("random", "memoryless", "oracle"), where the task knows them."""
        return reference_scores(self.vector_env.unwrapped)

    @property
    def event_names(self) -> tuple[str, ...]:
        """What `events` count, as metrics are called: "I picked up" is `i_picked_up`. Empty where no task tells."""
        names = getattr(self.vector_env.unwrapped, "event_names", ())
        return tuple(name.lower().replace(" ", "_") for name in names)

    @property
    def is_self_play(self) -> bool:
        """Whether both teams of games are among the rows, as `game` and `team` of the batch say.

        One wins what the other loses, so that returns say nothing of the agent that plays both.
        """
        batch = self.vector_env.unwrapped
        game, team = (_of_rows(getattr(batch, name, None), self.num_envs) for name in ("game", "team"))
        return game is not None and team is not None and len(team.unique()) > 1

    @property
    def judged_by(self) -> dict[str, Any]:
        """The settings of the task with which an agent that trains in self-play is judged; none if it does not."""
        return dict(getattr(self.vector_env.unwrapped, "judged_by", {})) if self.is_self_play else {}

    @property
    def masked_by(self) -> str | None:
        """Where masks of actions are, in words; None where there are none, which of infos the first reset tells."""
        return self._masks.source

    def reset(self, seed: int, *, staggers: bool = False) -> Timestep:
        """Begin an episode everywhere, each environment with a seed of its own, drawn from `seed`.

        Args:
            staggers: Cut one episode of each environment (truncate it), whichever it is in after a random number of
                steps, so that environments do not stay at the same point of their episodes. A batch that can does so by
                itself. Batches that cannot end the episode of one environment alone are left as they are.
        """
        seeds: int | list[int] = seed
        options: dict[str, Any] = {}
        each, longest = spread_seed(seed, self.num_envs), longest_first_episode(self.vector_env)
        self._cuts, self.events = None, None
        if isinstance(self.vector_env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            seeds = each
        if staggers and self._cut_by == "itself":
            options = {"options": {STAGGER: True}}
        elif staggers and self._cut_by is not None:
            self._cuts = Cuts([first_cut(one, longest) for one in each], self.device)
            options = {"options": {STAGGER: longest}} if self._cut_by == "view" else {}
        entries, info = self._border.reset(self._ask("reset", self.vector_env.reset, seed=seeds, **options))
        observation = self._masks.begin(self._tensors(entries), info)
        self._is_last = no = self._no
        return Timestep(observation, ~no, no, no.float(), no, no, None, self._no_success, no)

    def _find_cutter(self) -> Literal["view", "task", "reset", "itself"] | None:
        """What can end the episode of one environment alone: its view, the batch of tensors, a reset of that one.

        "itself" is a batch whose episodes begin at different points of time if it is told to.
        """
        batch = self.vector_env.unwrapped
        if getattr(batch, "can_stagger", False):
            return "itself"
        if self._border.autoreset is AutoresetMode.DISABLED:
            return "reset"
        if self._border.autoreset is not AutoresetMode.SAME_STEP:
            return None
        if isinstance(batch, Workers) or (isinstance(batch, SyncVectorEnv) and isinstance(batch.envs[0], AgentView)):
            return "view"
        return "task" if getattr(batch, "can_be_cut", False) else None

    def step(self, action: Shaped[Tensor, "B ..."]) -> Timestep:
        """Act everywhere."""
        cuts_now = self._next_cuts()
        answer = self._ask("step", self.vector_env.step, self._actions(action))
        entries, reward, terminated, truncated, info = self._border.step(answer)
        observation, reward = self._tensors(entries), self._tensor(reward, torch.float32)
        self.events = self._events(info.get("events"))
        terminated, truncated = self._tensor(terminated, torch.bool), self._tensor(truncated, torch.bool)
        if self._border.autoreset is AutoresetMode.NEXT_STEP:  # a wrapper may give something for an ignored action too
            acted = ~self._is_last
            reward, terminated, truncated = reward.where(acted, 0.0), terminated & acted, truncated & acted
        if cuts_now is not None and self._cut_by == "reset":
            truncated = truncated | (cuts_now & ~terminated)
        is_cut = self._no if cuts_now is None else cuts_now & truncated
        if self._truncation_ends:
            terminated, truncated = terminated | (truncated & ~is_cut), is_cut
        is_first, is_last, final_observation = terminated | truncated, self._no, None
        success = self._success(self._border.success(info), is_first)
        if self._border.autoreset is AutoresetMode.NEXT_STEP:
            is_first, is_last = self._is_last, is_first
            self._is_last = is_last
        # in another mode than SAME_STEP it is the last of an episode that has just ended
        is_over = None if self._border.autoreset is AutoresetMode.SAME_STEP else terminated | truncated
        observation = self._masks.read(observation, info, is_over)
        # On a GPU the host would have to wait for the flags: there whatever may be a final observation is handed on.
        if self.device.type != "cpu" or bool(truncated.any()):
            final_observation = observation
            if self._border.autoreset is AutoresetMode.SAME_STEP:
                final = self._border.final_observation(info, truncated)
                final_observation = None if final is None else self._final(final, info, truncated)
        if self._border.autoreset is AutoresetMode.DISABLED and bool(is_first.any()):
            observation = self._begin(is_first, observation)
        return Timestep(
            observation, is_first, is_last, reward, terminated, truncated, final_observation, success, is_cut
        )

    def _next_cuts(self) -> Bool[Tensor, " B"] | None:
        """Return where the next step cuts the running episode, if there is anything left to cut, and have it done."""
        cuts = self._cuts
        if cuts is None:
            return None
        now = cuts.next()
        if cuts.are_done:
            self._cuts = None
        if self._cut_by == "task":
            self.vector_env.unwrapped.cut = now  # pyright: ignore[reportAttributeAccessIssue]
        return now

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of everything that the future depends on (native environments only)."""
        own = {"environment.is_last": self._is_last.clone()}
        if self._cuts is not None:
            own["environment.cuts"] = self._cuts.left()
        return {**self._native().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._is_last = state["environment.is_last"].to(self.device)
        cuts = state.get("environment.cuts")
        self._cuts = None if cuts is None else Cuts(cuts.tolist(), self.device)
        state = {name: value for name, value in state.items() if not name.startswith("environment.")}
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
            return self._frame(self._ask("render", vector_env.envs[index].render))
        if self.is_native and isinstance(vector_env, DrawsOne):
            return self._frame(self._ask("render", vector_env.draw, index))
        frames = self._ask("render", self.vector_env.render)
        return None if frames is None else self._frame(frames[index])

    def _frame(self, frame: Any) -> UInt8[np.ndarray, "Y X 3"] | None:
        if frame is None or (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,)):
            return frame
        raise EnvironmentFailure(
            f"Pictures must be arrays uint8 [Y, X, 3], but {self.task} drew {what_came(frame)}: correct its render."
        )

    def stop_waiting_when(self, is_interrupted: Callable[[], bool]) -> None:
        """Give up, within seconds, worker processes that do not answer once `is_interrupted` says that the run ends."""
        if isinstance(self.vector_env.unwrapped, Workers):
            self.vector_env.unwrapped.is_interrupted = is_interrupted

    def close(self) -> None:
        """End the environments and their worker processes; again is harmless."""
        vector_env = self.vector_env.unwrapped
        if isinstance(vector_env, AsyncVectorEnv) and vector_env._state is not AsyncState.DEFAULT:
            # gymnasium's own close would wait for ever for the answers to a step that was interrupted
            end(vector_env.processes)
            vector_env._state = AsyncState.DEFAULT
        # An environment that cannot close itself is no reason to lose what was done with it.
        with suppress(Exception, SystemExit):
            self.vector_env.close()

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; whatever it raises becomes one sentence."""
        try:
            return function(*args, **kwargs)
        except (MerlinError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() too
            failure: BaseException = error
            if isinstance(self.vector_env.unwrapped, Workers):
                failure = self.vector_env.unwrapped.failure(error)
            if isinstance(self.vector_env.unwrapped, AsyncVectorEnv):
                self.close()
            if isinstance(failure, MerlinError):
                raise failure from failure.__cause__
            if isinstance(failure, WorkerFailure):
                raise EnvironmentFailure(f"{self.task} failed in {what}: {failure}.") from failure.__cause__
            raise failed(self.task, what, failure, self.vector_env) from failure

    def _final(self, entries: Entries, info: Mapping[str, Any], truncated: Tensor) -> dict[str, Tensor]:
        """Return the observations that ended episodes, with their masks."""
        about = info.get("final_info")
        masks = about if isinstance(about, Mapping) else {}
        return self._masks.read(self._tensors(entries), masks, torch.ones_like(truncated))

    def _begin(self, is_first: Tensor, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the observation once an episode has begun where `is_first`, and nowhere else."""
        mask = is_first if self.is_native else is_first.cpu().numpy()
        answer = self._ask("reset", self.vector_env.reset, options={"reset_mask": mask})
        entries, info = self._border.reset(answer)
        begun = self._tensors(entries)
        if not self.is_native and any((observation[name] != begun[name])[~is_first].any() for name in self.spaces):
            raise EnvironmentFailure(
                "A batch whose autoreset_mode is DISABLED must reset where options['reset_mask'] says so and nowhere "
                f"else, but {self.task} changed other observations too: correct its reset."
            )
        return self._masks.merge(observation, self._masks.read(begun, info, ~is_first), is_first)

    def _tensors(self, entries: Entries) -> dict[str, Tensor]:
        return {name: self._tensor(entries[name], dtype) for name, dtype in self._dtypes.items()}

    def _tensor(self, value: Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        # A copy, because many batches write the next observation into the same array or tensor.
        value = value if isinstance(value, Tensor) else torch.from_numpy(value)
        return value.to(self.device, dtype, copy=True)

    def _events(self, told: Any) -> Float[Tensor, "B V"] | None:
        """Return how often each event happened to each row; None of anything else that an info calls events."""
        is_array = isinstance(told, Tensor) or (isinstance(told, np.ndarray) and told.dtype.kind in "biuf")
        return self._tensor(told, torch.float32) if is_array and told.ndim == 2 and len(told) == self.num_envs else None

    def _success(self, told: Any | None, is_end: Tensor) -> Tensor:
        """Return whether the episodes that ended have succeeded, NaN of others.

        Once an environment of the batch has told of one, an episode that does not tell has not succeeded: there are
        tasks that set `is_success` only when they are solved.
        """
        if told is None:
            return self._no_success.masked_fill(is_end, 0.0) if self._tells_success else self._no_success
        success = self._tensor(told, torch.float32)
        if self.is_native:  # which tells with every step, NaN where there is nothing to tell
            self._tells_success = True
        else:
            self._tells_success |= bool((is_end & ~success.isnan()).any())
            success = success.nan_to_num(0.0) if self._tells_success else success
        return torch.where(is_end, success, self._no_success)


class Cuts:
    """After how many steps each environment's running episode is cut, once, to stagger their episodes."""

    def __init__(self, steps: list[int], device: torch.device) -> None:
        """
        Args:
            steps: B of them, counted from here; 0 or less where it was done.
        """
        self._steps, self._last, self._taken = torch.tensor(steps, device=device), max(steps), 0

    def next(self) -> Bool[Tensor, " B"]:
        """Count a step, and return where it cuts."""
        self._taken += 1
        return self._steps == self._taken

    @property
    def are_done(self) -> bool:
        """Whether no later step cuts."""
        return self._taken >= self._last

    def left(self) -> Int[Tensor, " B"]:
        """Return the steps that are left, 0 or less where it was done."""
        return self._steps - self._taken


def reference_scores(task: Any) -> dict[str, float]:
    """Return a task's `scores`; nothing where that is something else, as it may be in an environment of others."""
    scores = getattr(task, "scores", None)
    if not isinstance(scores, Mapping) or not all(isinstance(score, Real) for score in scores.values()):
        return {}
    return dict(scores)


def longest_first_episode(vector_env: VectorEnv) -> int:
    """Return the steps before which staggering cuts: an episode's limit where it is known, but not beyond reason."""
    limits = [vector_env.spec.max_episode_steps if vector_env.spec else None]
    limits += [getattr(vector_env.unwrapped, name, None) for name in ("time_limit", "max_steps")]
    known = (limit for limit in limits if isinstance(limit, Real) and limit > 0)
    return int(max(2, min(next(known, 128), 1000)))


def _of_rows(value: Any, num_envs: int) -> Int[Tensor, " B"] | None:
    """Return what a batch says of each row by a whole number; None of anything else."""
    try:
        rows = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return rows if rows.shape == (num_envs,) and not rows.dtype.is_floating_point else None


def spread_seed(seed: int, count: int) -> list[int]:
    """Return a seed for each of `count` environments.

    Counting on from `seed`, as gymnasium does, would let neighbouring seeds share all environments but one.
    """
    return np.random.SeedSequence(seed).generate_state(count).tolist()


def make_environment(
    task: str | Passed,
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
        task: A gymnasium id, or "module:Id", which imports the module first; or an environment, or what makes one.
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
    task = name_of(task)
    vector_env = make_vector_env(
        find_spec(task),
        num_envs,
        device=device,
        env_kwargs=env_kwargs or {},
        vectorization=vectorization,
        render_mode=render_mode,
        config=config or EnvironmentConfig(),
    )
    try:
        return Environment(vector_env, device, task=task, truncation_ends=truncation_ends, config=config)
    except BaseException:
        vector_env.close()
        raise


def _dtype_of(space: spaces.Space) -> torch.dtype:
    """Return how the agent's networks take the values of an entry."""
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8:
            return torch.uint8
        return torch.float32 if np.issubdtype(space.dtype, np.floating) else torch.int64
    return torch.int8 if isinstance(space, spaces.MultiBinary) else torch.int64
