"""A task as a person plays it: keys, views, the state of the episode."""

import copy
import inspect
import string
from collections.abc import Sequence
from functools import reduce
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import ImageColor

from merlin.environments.batch import reference_scores
from merlin.environments.make import find_spec, make_env
from merlin.errors import MerlinError
from merlin.networks.spaces import Tokens, flatten_observation, flatten_space, kind
from merlin.viewer.canvas import INK, category_colour
from merlin.viewer.episodes import action_names
from merlin.viewer.observations import NEUTRAL, as_picture, coloured_entry, is_picture, label
from merlin.viewer.terminal import Block, beside, picture_block, tile_block

VIEWS = ("agent", "above")
MOST_NUMBERS = 16  # of an entry that are shown
PREFERRED_KEYS = {
    "left": ("left", "a"),
    "right": ("right", "d"),
    "up": ("up", "w"),
    "forward": ("up", "w"),
    "down": ("down", "s"),
    "back": ("down", "s"),
    "stepleft": ("a",),
    "stepright": ("d",),
    "tag": ("space",),
    "stay": ("enter",),
    "pickup": ("p",),
    "drop": ("d",),
    "toggle": ("space",),
    "done": ("enter",),
}
"""Of actions by their names; the first of each come before the second of any."""
OTHER_KEYS = [key for key in string.digits[1:] + string.ascii_letters if key != "q"]


def choose_keys(names: Sequence[str]) -> dict[str, int]:
    """Return which action each key stands for. Actions without a preferred key get digits, then letters."""
    plain = [name.lower().replace(" ", "").replace("_", "") for name in names]
    keys: dict[str, int] = {}
    for rank in (0, 1):
        for action, name in enumerate(plain):
            if len(preferred := PREFERRED_KEYS.get(name, ())) > rank:
                keys.setdefault(preferred[rank], action)
    free = (key for key in OTHER_KEYS if key not in keys)
    for action in sorted({*range(len(names))} - {*keys.values()}):
        if (key := next(free, None)) is None:
            raise MerlinError(f"At most {len(OTHER_KEYS)} actions have a key each, but this task has {len(names)}.")
        keys[key] = action
    return keys


def simple_actions(
    space: spaces.MultiDiscrete, names: Sequence[Sequence[str]] | None
) -> tuple[list[np.ndarray], list[str]]:
    """Return the actions of one choice at a time, all others being their first, and what they are called.

    Args:
        names: Of the choices of each part of the space; the first one of the first names the action of no choice.
    """
    lowest = space.start
    actions, called = [lowest.copy()], ["action 0" if names is None else names[0][0]]
    for part in np.ndindex(space.shape):
        for number in range(1, int(space.nvec[part])):
            action = lowest.copy()
            action[part] += number
            actions.append(action)
            where = " ".join(map(str, part))
            called.append(f"action {where}: {action[part]}" if names is None else names[int(part[0])][number])
    return actions, called


class Game:
    """A task that a person plays: its present episode, and what there is to show of it."""

    def __init__(self, task: str, env_kwargs: dict[str, Any], seed: int | None, wrappers: Sequence[str] = ()):
        self.task, self.env = task, make_env(find_spec(task), env_kwargs, "rgb_array", wrappers)
        space = self.env.action_space
        if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            raise MerlinError(
                f"A person plays tasks whose action space is Discrete or MultiDiscrete, but {task} has a "
                f"{type(space).__name__}: choose another."
            )
        self.unwrapped = self.env.unwrapped
        self.spaces = flatten_space(self.env.observation_space)
        count = int(space.n) if isinstance(space, spaces.Discrete) else 1 + int((space.nvec - 1).sum())
        if count > len(OTHER_KEYS):
            raise MerlinError(f"At most {len(OTHER_KEYS)} actions have a key each, but {task} has {count:,}.")
        if isinstance(space, spaces.MultiDiscrete):
            self.actions, self.names = simple_actions(space, getattr(self.unwrapped, "action_names", None))
        else:
            self.actions = [*range(int(space.start), int(space.start) + count)]
            self.names = action_names(self.unwrapped, space) or [f"action {number}" for number in self.actions]
        self.keys = choose_keys(self.names)
        self.sees_pictures = any(map(is_picture, self.spaces.values()))
        self.can_draw = self.env.render_mode == "rgb_array"
        self.episode = 0
        self.start(seed)

    @property
    def default_view(self) -> str:
        """The view of the agent, unless it sees only numbers and nothing hangs on hiding the rest."""
        sees_much = self.sees_pictures or any(kind(space) == "text" for space in self.spaces.values())
        has_scores = inspect.getattr_static(self.unwrapped, "scores", None) is not None
        return "agent" if sees_much or has_scores or not self.can_draw else "above"

    def start(self, seed: int | None = None) -> None:
        """Begin the next episode."""
        self._see(self.env.reset(seed=seed)[0])
        self.episode += 1
        self.steps, self.reward, self.total = 0, 0.0, 0.0
        self.action: int | None = None
        self.outcome = ""

    def act(self, action: int) -> None:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(copy.copy(self.actions[action]))
        self._see(observation)
        self.action, self.reward, self.steps = action, float(reward), self.steps + 1
        self.total += self.reward
        if terminated or truncated:
            ended = "the end" if terminated else "time is up"
            outcomes: dict[float | None, str] = {1.0: "success", 0.0: "no success"}
            self.outcome = outcomes.get(info.get("is_success"), ended)

    def _see(self, observation: Any) -> None:
        entries = flatten_observation(observation)
        self.observation = {name: np.asarray(entries[name]) for name in self.spaces}

    def small_entries(self) -> dict[str, str]:
        """Return the entries of the observation that are no pictures, as text."""
        values = ((name, space, self.observation[name]) for name, space in self.spaces.items() if not is_picture(space))
        return {label(name) or "shown": _in_text(space, value, self.unwrapped) for name, space, value in values}

    def block(self, view: str, columns: int, rows: int) -> Block:
        """Return what the agent sees, or the task from above, to fit into a rectangle."""
        if view == "above":
            draw = getattr(self.unwrapped, "draw_above", self.env.render)  # of a task whose picture has more beside it
            picture = draw()
            assert isinstance(picture, np.ndarray), "the render mode is rgb_array"
            return picture_block(picture, columns, rows)
        if not self.sees_pictures:
            return reduce(beside, self._tiles())
        pictures = [name for name, space in self.spaces.items() if is_picture(space)]
        each = columns // len(pictures) - 2 * (len(pictures) > 1)
        drawn = [as_picture(self.spaces[name], self.observation[name]) for name in pictures]
        return reduce(beside, [picture_block(picture, each, rows) for picture in drawn])

    def _tiles(self) -> list[Block]:
        tiles, coloured = [], coloured_entry(self.spaces)
        for (words, text), (name, space) in zip(self.small_entries().items(), self.spaces.items(), strict=True):
            index = -1
            if name == coloured and isinstance(space, spaces.Discrete):
                index = int(self.observation[name]) - int(space.start)
            ground = category_colour(index) if index >= 0 else NEUTRAL
            ink = "#ffffff" if index > 0 else INK
            tiles.append(tile_block(words, text, ImageColor.getrgb(ink), ImageColor.getrgb(ground)))
        return tiles

    def scores(self) -> dict[str, float]:
        """Return the returns of reference players, where the task knows them."""
        return reference_scores(self.unwrapped)


def _in_text(space: gymnasium.Space, value: np.ndarray, task: Any) -> str:
    if isinstance(space, Tokens):
        joint = "" if all(len(word) <= 1 for word in space.vocabulary) else " "
        return joint.join(space.vocabulary[token] for token in value if token)
    numbers = value.reshape(-1)
    words = getattr(task, "words", ())
    if isinstance(space, spaces.MultiDiscrete) and words and (space.nvec == len(words)).all():
        return " ".join(words[number] for number in numbers if words[number])
    more = " …" if len(numbers) > MOST_NUMBERS else ""
    return " ".join(f"{number:.4g}" for number in numbers[:MOST_NUMBERS].tolist()) + more
