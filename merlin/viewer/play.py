"""`merlin play`: a person plays a task from the keyboard of a terminal.

Keys may also come through a pipe, one character each; then every step is a line of text:

    printf 123321q | merlin play merlin/MemoryGame-v0 --seed 1
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from io import TextIOBase
from typing import Any, TextIO

from merlin.viewer.game import VIEWS, Game
from merlin.viewer.terminal import BOLD, PLAIN, Block, beside, keyboard, pressed_keys, show

TEXT_WIDTH = 31  # columns beside the picture
SHOWN_KEYS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def play(
    task: str,
    env_kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    view: str | None = None,
    summary: str = "",
    wrappers: Sequence[str] = (),
    keys: int = 0,
    screen: TextIOBase | TextIO | None = None,
) -> None:
    """Let a person play episode after episode.

    Args:
        seed: The same one shows the same episodes.
        view: "agent" shows what an agent sees, "above" the picture that the task draws of itself; unless told, what
            the agent sees, or the picture where there is nothing to remember and the agent sees only numbers.
        summary: A description of the task for the player.
        wrappers: Put around the environment, `module:Wrapper`, the first innermost.
        keys: The descriptor that they come from, a terminal or a pipe.
        screen: Standard output unless told. Where this or `keys` is no terminal, steps are lines of text.

    Raises:
        MerlinError: There is no such task, or it is none for a keyboard.
    """
    output: TextIOBase | TextIO = sys.stdout if screen is None else screen
    game = Game(task, env_kwargs or {}, seed, wrappers)
    with game.env:
        is_screen = os.isatty(keys) and output.isatty()
        player = (_Screen if is_screen else _Lines)(game, view or game.default_view, summary, output)
        with keyboard(keys, output if is_screen else None):
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

    def __init__(self, game: Game, view: str, summary: str, screen: TextIOBase | TextIO):
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
        if self.view == "above" or game.sees_pictures:  # otherwise they are the picture
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
