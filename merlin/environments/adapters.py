"""Adapters of one gymnasium environment before it is batched: its agent's view, and the worker that runs it."""

import copy
import itertools
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.queues import SimpleQueue
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.async_vector_env import _async_worker

from merlin.errors import describe
from merlin.networks.spaces import Tokens, flatten_space, shape_of

# BabyAI declares any string to be a mission. These are the words of its grammar and the length of its longest mission:
# four times "put the red box in front of you next to the red box in front of you", joined by "and", "after you", "and".
BABYAI_WORDS = (
    "a after and ball behind blue box door front go green grey in key left next object of on open pick purple put red "
    "right the then to up yellow you your"
)
BABYAI_LENGTH = 72

View = Callable[[Any], Any]


@runtime_checkable
class _MissionSpace(Protocol):
    """MiniGrid's space of missions, which is known without importing minigrid."""

    mission_func: Callable[..., str]
    ordered_placeholders: Sequence[Sequence[str]] | None


class AgentView(gymnasium.Wrapper):
    """One environment as the batch and the agent need it.

    Texts become `Tokens`, a MiniGrid mission that never changes is left out, MiniGrid's symbolic view becomes a
    MultiDiscrete [Y, X, 3] of object, colour and state, and
    of all infos only `is_success` at an episode's end is passed on (MiniGrid: whether the goal was reached).
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        symbols = _minigrid_view(env)
        self.defines_success = symbols is not None
        self.observation_space, self._view = _view_of(env.observation_space, symbols)
        flatten_space(self.observation_space)  # an unsupported entry is told here, not by a worker
        self._takes_int = isinstance(env.action_space, spaces.Discrete)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        observation, _ = self.env.reset(seed=seed, options=options)
        return self._observe(observation), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        # Comparing a numpy integer with MiniGrid's enumeration of actions costs more than the rest of this method.
        action = int(action) if self._takes_int else action
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation = self._observe(observation)
        if not (terminated or truncated):
            return observation, reward, terminated, truncated, {}
        # An environment that returns its own buffer would overwrite the final observation in the reset that follows.
        observation = copy.deepcopy(observation)
        if self.defines_success:
            info = {"is_success": bool(terminated) and float(reward) > 0}
        info = {"is_success": float(info["is_success"])} if "is_success" in info else {}
        return observation, reward, terminated, truncated, info

    def _observe(self, observation: Any) -> Any:
        return observation if self._view is None else self._view(observation)


def _view_of(space: spaces.Space, symbols: spaces.Space | None) -> tuple[spaces.Space, View | None]:
    """Return the space that the agent sees and the function that takes observations there (None: as they are)."""
    if space is symbols:
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        # A door is open, closed or locked; 4 states also hold the direction in which an agent looks.
        sizes = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX) + 1)
        return spaces.MultiDiscrete(np.broadcast_to(sizes, shape_of(space)), dtype=np.uint8), None
    if isinstance(space, spaces.Text):
        return _tokenise(sorted(space.character_set), space.max_length, list)
    if type(space).__name__ == "BabyAIMissionSpace":
        return _tokenise(BABYAI_WORDS.split(), BABYAI_LENGTH, _words)
    if isinstance(space, _MissionSpace):
        fillings = itertools.product(*space.ordered_placeholders or ())
        missions = [_words(space.mission_func(*filling)) for filling in fillings]
        return _tokenise(sorted({word for words in missions for word in words}), max(map(len, missions)), _words)
    if isinstance(space, spaces.Dict):
        views = {key: _view_of(entry, symbols) for key, entry in space.spaces.items() if not _says_one_thing(entry)}
        seen = spaces.Dict({key: entry for key, (entry, _) in views.items()})
        if all(view is None for _, view in views.values()) and len(seen) == len(space):
            return seen, None
        items = tuple(views.items())
        return seen, lambda entries: {key: view(entries[key]) if view else entries[key] for key, (_, view) in items}
    if isinstance(space, spaces.Tuple):
        views = [_view_of(entry, symbols) for entry in space.spaces]
        seen = spaces.Tuple([entry for entry, _ in views])
        if all(view is None for _, view in views):
            return seen, None
        return seen, lambda entries: tuple(v(x) if v else x for (_, v), x in zip(views, entries, strict=True))
    return space, None


def _says_one_thing(space: spaces.Space) -> bool:
    """Return whether a MiniGrid mission is always the same: a sentence that tells nothing, and costs time to encode."""
    is_fixed = isinstance(space, _MissionSpace) and not space.ordered_placeholders
    return is_fixed and type(space).__name__ == "MissionSpace"


def _words(mission: str) -> list[str]:
    return mission.replace(",", " ").split()


def _tokenise(vocabulary: Sequence[str], length: int, split: Callable[[str], list[str]]) -> tuple[Tokens, View]:
    """Return the space of texts of at most `length` tokens, and the function from a text to its token ids."""
    space = Tokens(("", *vocabulary), length)
    return space, text_reader(space, split)


def text_reader(space: Tokens, split: Callable[[str], list[str]] | None = None) -> View:
    """Return the function from a text to its token ids.

    Args:
        split: Into tokens; None splits into characters where every token is one, otherwise into words.
    """
    length, ids = len(space.nvec), {token: index for index, token in enumerate(space.vocabulary)}
    if split is None:
        split = list if all(len(token) == 1 for token in space.vocabulary[1:]) else _words

    @lru_cache(maxsize=1024)  # a mission is repeated at every step of its episode
    def tokens(text: str) -> np.ndarray:
        pieces = split(text)
        unknown = [piece for piece in pieces if piece not in ids]
        if unknown or len(pieces) > length:
            problem = f"has {unknown[0]!r}" if unknown else f"has {len(pieces)} tokens"
            raise ValueError(f"the text {text!r} {problem}, which its space does not declare (at most {length} tokens)")
        padded = np.zeros(length, dtype=space.dtype)
        padded[: len(pieces)] = [ids[piece] for piece in pieces]
        padded.flags.writeable = False
        return padded

    return tokens


def _minigrid_view(env: gymnasium.Env) -> spaces.Space | None:
    """Return the space of a MiniGrid's own symbolic view, or None. (A wrapper that draws brings another space.)"""
    minigrid = sys.modules.get("minigrid.minigrid_env")
    if minigrid is None or not isinstance(env.unwrapped, minigrid.MiniGridEnv):
        return None
    observation_space = env.unwrapped.observation_space
    assert isinstance(observation_space, spaces.Dict), "a MiniGrid's observation has an image, a direction, a mission"
    return observation_space["image"]


def run_worker(
    failures: SimpleQueue, index: int, env_fn: Any, pipe: Any, parent_pipe: Any, memory: Any, _: Any, *rest: Any
) -> None:
    """Run one environment in a process of its own, as `AsyncVectorEnv` does.

    A failure goes to `failures` as (index, one line, traceback), and the worker ends: whatever ends a worker, the
    other side sees its pipe close. (gymnasium's own worker waits for ever with an exception that cannot be pickled.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which closes the workers in its own time
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler inherited from the trainer would keep the worker alive
    torch.set_num_threads(1)  # the workers share the cores
    try:
        # of the queue that gymnasium's annotation asks for, it uses only `put`
        _async_worker(index, env_fn, pipe, parent_pipe, memory, _RaisedAgain(), *rest)  # pyright: ignore[reportArgumentType]
    except Exception as error:
        failures.put((index, describe(error), traceback.format_exc()[-8000:]))


class _RaisedAgain:
    """Stands in for the queue in which gymnasium's worker puts the exception that it is handling."""

    def put(self, failure: tuple) -> None:
        raise
