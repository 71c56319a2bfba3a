"""`merlin play`: a person plays a task from the keyboard of a terminal.

Keys may also come through a pipe, one character each; then every step is a line of text:

    printf 123321q | merlin play merlin/MemoryGame-v0 --seed 1
"""

import os
import shutil
import string
import sys
import textwrap
from collections.abc import Sequence
from functools import reduce
from typing import IO, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import ImageColor

from merlin.analysis.canvas import INK, category_colour
from merlin.analysis.episodes import action_names
from merlin.analysis.observations import NEUTRAL, as_picture, coloured_entry, is_picture, label
from merlin.analysis.terminal import BOLD, PLAIN, Block, beside, keyboard, picture_block, pressed_keys, show, tile_block
from merlin.errors import MerlinError
from merlin.networks.spaces import Tokens, flatten_observation, flatten_space, kind
from merlin.training.registry import find_spec, make_env
from merlin.training.wrappers import AgentView

VIEWS = ("agent", "above")
TEXT_WIDTH = 31  # columns beside the picture
MOST_NUMBERS = 16  # of an entry that are shown
SHOWN_KEYS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}
PREFERRED_KEYS = {
    "left": ("left", "a"),
    "right": ("right", "d"),
    "up": ("up", "w"),
    "forward": ("up", "w"),
    "down": ("down", "s"),
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


class Game:
    """A task that a person plays: its present episode, and what there is to show of it."""

    def __init__(self, task: str, env_kwargs: dict[str, Any], seed: int | None):
        self.env = AgentView(make_env(find_spec(task), env_kwargs, "rgb_array"))
        if not isinstance(self.env.action_space, spaces.Discrete):
            raise MerlinError(
                f"A person plays tasks whose action space is Discrete, but {task} has a "
                f"{type(self.env.action_space).__name__}: choose another."
            )
        self.task, self.unwrapped = task, self.env.unwrapped
        self.spaces = flatten_space(self.env.observation_space)
        self.first_action = int(self.env.action_space.start)
        numbers = range(self.first_action, self.first_action + int(self.env.action_space.n))
        self.names = action_names(self.unwrapped, self.env.action_space) or [f"action {number}" for number in numbers]
        self.keys = choose_keys(self.names)
        self.can_draw = self.env.render_mode == "rgb_array"
        self.episode = 0
        self.start(seed)

    @property
    def default_view(self) -> str:
        """What a player should see: what an agent does, unless it sees numbers and nothing hangs on hiding the rest."""
        shows_much = any(is_picture(space) or kind(space) == "text" for space in self.spaces.values())
        return "agent" if shows_much or hasattr(self.unwrapped, "scores") or not self.can_draw else "above"

    def start(self, seed: int | None = None) -> None:
        """Begin the next episode."""
        self._see(self.env.reset(seed=seed)[0])
        self.episode += 1
        self.steps, self.reward, self.total = 0, 0.0, 0.0
        self.action: int | None = None
        self.outcome = ""

    def act(self, action: int) -> None:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(self.first_action + action)
        self._see(observation)
        self.action, self.reward, self.steps = action, float(reward), self.steps + 1
        self.total += self.reward
        if terminated or truncated:
            ended = "the end" if terminated else "time is up"
            self.outcome = {1: "success", 0: "no success"}.get(info.get("is_success"), ended)

    def _see(self, observation: Any) -> None:
        self.observation = flatten_observation(observation)
        self.observation = {name: self.observation[name] for name in self.spaces}

    def small_entries(self) -> dict[str, str]:
        """Return the entries of the observation that are no pictures, as text."""
        values = ((name, space, self.observation[name]) for name, space in self.spaces.items() if not is_picture(space))
        return {label(name) or "shown": _in_text(space, value, self.unwrapped) for name, space, value in values}

    def block(self, view: str, columns: int, rows: int) -> Block:
        """Return what the agent sees, or the task from above, to fit into a rectangle."""
        if view == "above":
            return picture_block(self.env.render(), columns, rows)
        pictures = [name for name, space in self.spaces.items() if is_picture(space)]
        if not pictures:
            return reduce(beside, self._tiles())
        each = columns // len(pictures) - 2 * (len(pictures) > 1)
        drawn = [as_picture(self.spaces[name], self.observation[name]) for name in pictures]
        return reduce(beside, [picture_block(picture, each, rows) for picture in drawn])

    def _tiles(self) -> list[Block]:
        tiles, coloured = [], coloured_entry(self.spaces)
        for (words, text), (name, space) in zip(self.small_entries().items(), self.spaces.items(), strict=True):
            index = int(self.observation[name]) - int(space.start) if name == coloured else -1
            ground = category_colour(index) if index >= 0 else NEUTRAL
            ink = "#ffffff" if index > 0 else INK
            tiles.append(tile_block(words, text, ImageColor.getrgb(ink), ImageColor.getrgb(ground)))
        return tiles

    def scores(self) -> dict[str, float]:
        """Return the returns of reference players, where the task knows them."""
        return getattr(self.unwrapped, "scores", {})


def _in_text(space: gymnasium.Space, value: np.ndarray, task: Any) -> str:
    if isinstance(space, Tokens):
        joint = "" if all(len(word) <= 1 for word in space.vocabulary) else " "
        return joint.join(space.vocabulary[token] for token in value if token)
    numbers = np.asarray(value).reshape(-1)
    words = getattr(task, "words", ())
    if isinstance(space, spaces.MultiDiscrete) and words and (space.nvec == len(words)).all():
        return " ".join(words[number] for number in numbers if words[number])
    more = " …" if len(numbers) > MOST_NUMBERS else ""
    return " ".join(f"{number:.4g}" for number in numbers[:MOST_NUMBERS].tolist()) + more


def play(
    task: str,
    env_kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    view: str | None = None,
    summary: str = "",
    keys: int = 0,
    screen: IO[str] | None = None,
) -> None:
    """Let a person play episode after episode.

    Args:
        seed: The same one shows the same episodes.
        view: "agent" shows what an agent sees, "above" the picture that the task draws of itself; unless told, what
            the agent sees, or the picture where there is nothing to remember and the agent sees only numbers.
        summary: What the task is, for the player.
        keys: The descriptor that they come from, a terminal or a pipe.
        screen: Standard output unless told. Where this or `keys` is no terminal, steps are lines of text.

    Raises:
        MerlinError: There is no such task, or it is none for a keyboard.
    """
    screen = screen or sys.stdout
    game = Game(task, env_kwargs or {}, seed)
    with game.env:
        is_screen = os.isatty(keys) and screen.isatty()
        player = (_Screen if is_screen else _Lines)(game, view or game.default_view, summary, screen)
        with keyboard(keys, screen if is_screen else None):
            player.draw()
            for key in pressed_keys(keys):
                if key == "q":
                    break
                if key == "?":
                    player.help()
                elif key == "tab":
                    player.turn()
                elif game.outcome:
                    game.start()
                    player.draw()
                elif key in game.keys:
                    game.act(game.keys[key])
                    player.draw()


class _Lines:
    """A line of text for every step."""

    def __init__(self, game: Game, view: str, summary: str, screen: IO[str]):
        self.game, self.view, self.screen = game, view, screen
        self.summary = summary or str(getattr(game.unwrapped, "mission", ""))
        self.known_scores: str | None = None

    def help(self) -> None:
        """Tell what the task is, and the keys."""
        print(f"{self.game.task}: {self.summary}".rstrip(": "), file=self.screen)
        print("  ".join(_keys_of_actions(self.game)), file=self.screen)

    def turn(self) -> None:
        """Change the view."""

    def draw(self) -> None:
        game = self.game
        seen = "; ".join(f"{name} {text}" for name, text in game.small_entries().items())
        if game.action is None:
            print(f"episode {game.episode} of {game.task}: {seen}".rstrip(": "), file=self.screen)
            return
        step = f"step {game.steps}: {game.names[game.action]}, reward {game.reward:g}; {seen}".rstrip("; ")
        print(step, file=self.screen)
        if game.outcome:
            self._find_scores()
            scores = f" ({self.known_scores})" if self.known_scores else ""
            print(f"{game.outcome}, return {game.total:g}{scores}", file=self.screen)

    def _find_scores(self) -> None:
        self.known_scores = ", ".join(f"{name} {score:.2f}" for name, score in self.game.scores().items())


class _Screen(_Lines):
    """The picture, and what there is to say beside or below it."""

    has_help = False

    def help(self) -> None:
        self.has_help = not self.has_help
        self.draw()

    def turn(self) -> None:
        if self.game.can_draw:
            self.view = VIEWS[1 - VIEWS.index(self.view)]
            self.draw()

    def draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        show(self.screen, self.lines(columns, rows - 1))
        if self.game.outcome and self.known_scores is None:  # the first time this may take a few seconds
            self._find_scores()
            show(self.screen, self.lines(columns, rows - 1))

    def lines(self, columns: int, rows: int) -> list[str]:
        """Return a screen: the picture where it is larger, with the text on its right or below."""
        text = self._help_text() if self.has_help else self._text()
        right = self.game.block(self.view, max(columns - TEXT_WIDTH - 3, 8), rows)
        below = self.game.block(self.view, columns, max(rows - len(text) - 1, 4))
        fits = right.width + TEXT_WIDTH + 3 <= columns
        if fits and right.width * len(right.lines) >= below.width * len(below.lines):
            return beside(right, Block(text, TEXT_WIDTH), 3).lines[:rows]
        return [*below.lines, "", *text][:rows]

    def _text(self) -> list[str]:
        game = self.game
        lines = [f"{BOLD}{game.task}{PLAIN}", f"episode {game.episode}, step {game.steps}", ""]
        for name, text in game.small_entries().items():
            lines += _wrapped(f"{name}: {text or '-'}")
        if game.action is not None:
            colour = "\x1b[32m" if game.reward > 0 else "\x1b[31m" if game.reward < 0 else ""
            lines += [f"{game.names[game.action]}: {colour}reward {game.reward:g}{PLAIN}"]
        lines += [f"return {game.total:g}", ""]
        if not game.outcome:
            return [*lines, *_wrapped_whole([*_keys_of_actions(game), "? help", "q quit"])]
        lines += [f"{BOLD}{game.outcome}, return {game.total:g}{PLAIN}"]
        lines += self.known_scores.split(", ") if self.known_scores else []
        return [*lines, "", *_wrapped_whole(["any key: next episode", "q quit"])]

    def _help_text(self) -> list[str]:
        others = ["tab   change the view"] * self.game.can_draw + ["?   back to the game", "q   quit"]
        keys = [line.replace(" ", "   ", 1) for line in _keys_of_actions(self.game)]
        return [f"{BOLD}{self.game.task}{PLAIN}", *_wrapped(self.summary), "", *keys, "", *others]


def _keys_of_actions(game: Game) -> list[str]:
    """Return the keys of each action, and its name."""
    by_action: dict[int, list[str]] = {}
    for key, action in game.keys.items():
        by_action.setdefault(action, []).append(SHOWN_KEYS.get(key, key))
    return [f"{'/'.join(keys)} {game.names[action]}" for action, keys in sorted(by_action.items())]


def _wrapped(text: str) -> list[str]:
    return [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, TEXT_WIDTH)]


def _wrapped_whole(phrases: list[str]) -> list[str]:
    """Return lines that break between phrases only."""
    unbroken = "  ".join(phrase.replace(" ", "\u00a0") for phrase in phrases)
    return [line.replace("\u00a0", " ") for line in _wrapped(unbroken)]
