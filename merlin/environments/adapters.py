"""The adapter of one gymnasium environment before it is batched: its agent's view, held to what it declares."""

import copy
import inspect
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces

from merlin.environments.actions import row_view
from merlin.environments.validation import (
    STEP,
    Reader,
    dict_reader,
    failed,
    join,
    number_of,
    parts_of,
    reader_of,
    success_of,
    text_reader,
    tuple_reader,
    what_came,
)
from merlin.errors import EnvironmentFailure, MerlinError, place_of
from merlin.networks.action_spaces import num_choices, open_action_space
from merlin.networks.spaces import ACTION_MASK, ROOT, Tokens, check_supported, leaves, shape_of

# BabyAI declares any string to be a mission. These are the words of its grammar and the length of its longest mission:
# four times "put the red box in front of you next to the red box in front of you", joined by "and", "after you", "and".
BABYAI_WORDS = (
    "a after and ball behind blue box door front go green grey in key left next object of on open pick purple put red "
    "right the then to up yellow you your"
)
BABYAI_LENGTH = 72

UNDECLARED = "merlin.undeclared"
"""Key of an info of resets: sentences about observed keys that the space does not have, one a line."""
STAGGER = "merlin.stagger"
"""Option of a reset: cut one episode, whichever it is in after a random number of steps up to this many."""


@runtime_checkable
class _MissionSpace(Protocol):
    """MiniGrid's space of missions, which is known without importing minigrid."""

    mission_func: Callable[..., str]
    ordered_placeholders: Sequence[Sequence[str]] | None


class AgentView(gymnasium.Wrapper):
    """One environment as the batch and the agent need it.

    Texts become `Tokens`, a MiniGrid mission that never changes is left out, MiniGrid's symbolic view becomes a
    MultiDiscrete [Y, X, 3] of object, colour and state, and
    of all infos only `action_mask`, and `is_success` at an episode's end, are passed on (MiniGrid: whether the goal was
    reached).
    Observations are arrays of the space's own shapes and types, rewards floats and flags bools, or an
    `EnvironmentFailure` names what came instead.

    Attributes:
        step_seconds: What the environment took for its last step, by the clock of the process that it is in.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        _check_has_spaces(env)
        symbols = _minigrid_view(env)
        spec = env.unwrapped.spec
        self.defines_success = symbols is not None
        self.task = spec.id if spec else type(env.unwrapped).__name__
        self._undeclared: set[str] = set()
        self.observation_space, self._view = _view_of(
            env.observation_space, symbols, self.task, note=self._undeclared.add
        )
        for name, leaf in leaves(self.observation_space):
            check_supported(name, leaf)  # told here, not by a worker
        self._act = row_view(env.action_space)
        self._steps_to_cut = 0  # beyond which nothing is cut
        self.step_seconds = 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        if seed is not None:  # not the reset that only follows an episode's end
            longest = (options or {}).get(STAGGER)
            self._steps_to_cut = 0 if longest is None else first_cut(seed, longest)
        if options and STAGGER in options:
            options = {name: option for name, option in options.items() if name != STAGGER} or None
        answer = self._ask("reset", self.env.reset, seed=seed, options=options)
        observation, info = parts_of(answer, ("observation", "info"), self.task, "reset")
        observation = self._view(observation)
        told = {UNDECLARED: "\n".join(sorted(self._undeclared))} if self._undeclared else {}
        return observation, told | self._masks(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        # Comparing a numpy integer with MiniGrid's enumeration of actions costs more than the rest of this method.
        action = action if self._act is None else self._act(action)
        begin = time.perf_counter()
        answer = self._ask("step", self.env.step, action)
        self.step_seconds = time.perf_counter() - begin
        answer = parts_of(answer, STEP, self.task, "step")
        observation, (reward, terminated, truncated), info = self._view(answer[0]), answer[1:4], answer[4]
        reward = float(reward) if isinstance(reward, float | int) else number_of(reward, "reward", self.task)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated = bool(number_of(terminated, "flag terminated", self.task))
            truncated = bool(number_of(truncated, "flag truncated", self.task))
        if self._steps_to_cut > 0:
            self._steps_to_cut -= 1
            truncated |= self._steps_to_cut == 0 and not terminated
        if not (terminated or truncated):
            return observation, reward, terminated, truncated, self._masks(info)
        # An environment that returns its own buffer would overwrite the final observation in the reset that follows.
        observation = copy.deepcopy(observation)
        if self.defines_success:
            success = float(terminated and reward > 0)
        else:
            success = success_of(info.get("is_success"), self.task)
        told = {} if math.isnan(success) else {"is_success": success}
        return observation, reward, terminated, truncated, told | self._masks(info)

    def _masks(self, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the mask of actions in an info, flat; nothing where there is none."""
        if info.get(ACTION_MASK) is None:
            return {}
        mask = np.asarray(info[ACTION_MASK]).reshape(-1)
        if self._num_choices not in (0, mask.size):  # told here, for a batch cannot hold masks of different sizes
            raise EnvironmentFailure(
                f"An action mask must have {self._num_choices} numbers, one for each choice, but {self.task} gave "
                f"{mask.size}: correct the environment."
            )
        return {ACTION_MASK: mask}

    @cached_property
    def _num_choices(self) -> int:
        return num_choices([part for _, part in open_action_space(self.env.action_space)])

    def render(self) -> Any:
        return self._ask("render", self.env.render)

    def close(self) -> None:
        # An environment that cannot close itself is no reason to lose what was done with it.
        with suppress(Exception, SystemExit):
            self.env.close()

    def _ask(self, what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; whatever it raises becomes one sentence."""
        try:
            return function(*args, **kwargs)
        except (MerlinError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() too
            raise failed(self.task, what, error, self.env) from error


def _check_has_spaces(env: gymnasium.Env) -> None:
    """Raise a MerlinError unless an environment has both spaces."""
    told = []
    for name in ("observation_space", "action_space"):
        try:
            space = getattr(env, name)
            came = None if isinstance(space, spaces.Space) else what_came(space)
        except AttributeError:
            if inspect.getattr_static(env.unwrapped, name, None) is not None:  # a property, which failed
                raise
            came = "missing"
        if came is not None:
            told.append(f"the {name} is {came}")
    if told:
        kind = type(env.unwrapped)
        raise MerlinError(
            "An environment must have an observation_space and an action_space of gymnasium's, but of "
            f"{kind.__name__}{place_of(kind)} {' and '.join(told)}: set them in __init__ or in the class."
        )


def first_cut(seed: int, longest: int) -> int:
    """Return after how many steps, from 1 to `longest`, an environment that was reset with this seed is cut."""
    return int(np.random.default_rng([seed, longest]).integers(1, longest + 1))


def _view_of(
    space: spaces.Space, symbols: spaces.Space | None, task: str, path: str = "", *, note: Callable[[str], object]
) -> tuple[spaces.Space, Reader]:
    """Return the space that the agent sees and the function that takes observations there.

    Args:
        note: Is given the sentence about keys that a Dict does not have.
    """
    if space is symbols:
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        # A door is open, closed or locked; 4 states also hold the direction in which an agent looks.
        sizes = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX) + 1)
        seen = spaces.MultiDiscrete(np.broadcast_to(sizes, shape_of(space)), dtype=np.uint8)
        return seen, reader_of(seen, task, path=path)
    if isinstance(space, spaces.Text):
        return _tokenise(sorted(space.character_set), space.max_length, list, task, path)
    if type(space).__name__ == "BabyAIMissionSpace":
        return _tokenise(BABYAI_WORDS.split(), BABYAI_LENGTH, _words, task, path)
    if isinstance(space, _MissionSpace):
        fillings = itertools.product(*space.ordered_placeholders or ())
        missions = [_words(space.mission_func(*filling)) for filling in fillings]
        vocabulary = sorted({word for words in missions for word in words})
        return _tokenise(vocabulary, max(map(len, missions)), _words, task, path)
    if isinstance(space, spaces.Dict):
        shown = {key: entry for key, entry in space.spaces.items() if not _says_one_thing(entry)}
        views = {key: _view_of(entry, symbols, task, join(path, key), note=note) for key, entry in shown.items()}
        seen = spaces.Dict({key: entry for key, (entry, _) in views.items()})
        return seen, dict_reader({key: views[key][1] for key in seen}, task, path, space.keys(), note)
    if isinstance(space, spaces.Tuple):
        views = [_view_of(entry, symbols, task, join(path, i), note=note) for i, entry in enumerate(space.spaces)]
        return spaces.Tuple([seen for seen, _ in views]), tuple_reader([view for _, view in views], task, path)
    if space.shape is None:  # a Sequence, a Graph: told by its name where spaces are made flat
        return space, lambda value: value
    return space, reader_of(space, task, path=path)


def _says_one_thing(space: spaces.Space) -> bool:
    """Return whether a MiniGrid mission is always the same: a sentence that tells nothing, and costs time to encode."""
    is_fixed = isinstance(space, _MissionSpace) and not space.ordered_placeholders
    return is_fixed and type(space).__name__ == "MissionSpace"


def _words(mission: str) -> list[str]:
    return mission.replace(",", " ").split()


def _tokenise(
    vocabulary: Sequence[str], length: int, split: Callable[[str], list[str]], task: str, path: str
) -> tuple[Tokens, Reader]:
    """Return the space of texts of at most `length` tokens, and the function from a text to its token ids."""
    space = Tokens(("", *vocabulary), length)
    read = token_reader(space, split)

    def tokens(text: str) -> np.ndarray:
        try:
            return read(text)
        except ValueError as error:
            raise EnvironmentFailure(
                f"A text must be of its space, of at most {length} tokens, but {task} returned {text[:60]!r} in entry "
                f"{path or ROOT!r}, with {error}: correct the environment or its space."
            ) from error

    return space, text_reader(task, path, tokens)


def token_reader(space: Tokens, split: Callable[[str], list[str]] | None = None) -> Callable[[str], np.ndarray]:
    """Return the function from a text to its token ids, which raises a ValueError for one that is not of the space.

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
            raise ValueError(f"{unknown[0]!r}, which is none of its tokens" if unknown else f"{len(pieces)} tokens")
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
