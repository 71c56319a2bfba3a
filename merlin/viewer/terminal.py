"""A terminal as a screen and a keyboard: pictures in half-block characters, keys as they are pressed."""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOBase
from itertools import zip_longest
from typing import NamedTuple, TextIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from merlin.errors import MerlinError

PLAIN, BOLD = "\x1b[0m", "\x1b[1m"
_OWN_SCREEN, _OLD_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # without a cursor, and with it again
_KEY = re.compile(r"\x1b[\[O]([A-D])|(\x1b\[[0-9;]*[~a-zA-Z])|(.)", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b[\[O]?$")
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
_NAMED = {" ": "space", "\r": "enter", "\n": "enter", "\t": "tab"}

Colour = Sequence[int]


class Block(NamedTuple):
    """A rectangle of text, each line of it `width` characters wide."""

    lines: list[str]
    width: int


def colours(ink: Colour, ground: Colour | None) -> str:
    """Return what makes the text that follows have these colours, until `PLAIN`; None is the terminal's own ground."""
    behind = "49" if ground is None else "48;2;{};{};{}".format(*ground)
    return "\x1b[38;2;{};{};{};{}m".format(*ink, behind)


def picture_block(picture: UInt8[np.ndarray, "Y X 3"], columns: int, rows: int) -> Block:
    """Return a picture as large as fits, two pixels to a character: the upper in its ink, the lower in its ground."""
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    if scale >= 1:
        picture = picture.repeat(int(scale), 0).repeat(int(scale), 1)
    else:
        size = max(1, int(width * scale)), max(1, int(height * scale))
        picture = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    lines = []
    for upper, lower in zip_longest(picture[::2].tolist(), picture[1::2].tolist()):
        line, before = "", None
        for pixels in zip(upper, lower or [None] * len(upper), strict=True):
            line += "▀" if pixels == before else colours(*pixels) + "▀"
            before = pixels
        lines.append(line + PLAIN)
    return Block(lines, picture.shape[1])


def tile_block(label: str, text: str, ink: Colour, ground: Colour) -> Block:
    """Return a few words on a coloured tile under their label."""
    width, colour = max(len(label), len(text) + 2, 11), colours(ink, ground)
    edge = [colour + " " * width + PLAIN] * 2
    return Block([label.center(width), *edge, f"{colour}{BOLD}{text:^{width}}{PLAIN}", *edge], width)


def beside(left: Block, right: Block, gap: int = 2) -> Block:
    """Return both, one beside the other, at the top."""
    rows = zip_longest(
        left.lines + [" " * left.width] * (len(right.lines) - len(left.lines)), right.lines, fillvalue=" " * right.width
    )
    return Block([one + " " * gap + other for one, other in rows], left.width + gap + right.width)


def pressed_keys(descriptor: int) -> Iterator[str]:
    """Yield keys as they are pressed, until the input ends: characters, up, down, left, right, space, enter, tab."""
    text = ""
    while chunk := _read(descriptor):
        text += chunk.decode("utf-8", "ignore")
        rest = _UNFINISHED.search(text)
        text, rest = (text[: rest.start()], rest.group()) if rest else (text, "")
        for arrow, _, character in _KEY.findall(text):
            if arrow or character:
                yield _ARROWS[arrow] if arrow else _NAMED[character] if character in _NAMED else character
        text = rest


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1024)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""  # the terminal was closed


@contextmanager
def keyboard(descriptor: int, screen: TextIOBase | TextIO | None) -> Iterator[None]:
    """Let keys come one by one and unseen, where they come from a terminal, and take over its screen.

    However this ends, by Ctrl-C or a signal too, the terminal is as it was before.

    Args:
        screen: None leaves it alone.
    """
    if not os.isatty(descriptor):
        yield
        return
    try:
        import termios
        import tty
    except ImportError as error:
        raise MerlinError(
            "Keys are read from a terminal of Unix, and this is none: send them through a pipe."
        ) from error
    before = termios.tcgetattr(descriptor)
    with _terminated():
        try:
            tty.setcbreak(descriptor)
            attributes = termios.tcgetattr(descriptor)
            attributes[6][termios.VSUSP] = b"\x00"  # Ctrl-Z would leave the terminal like this
            termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
            if screen is not None:
                print(_OWN_SCREEN, end="", file=screen, flush=True)
            yield
        finally:
            with suppress(termios.error, OSError):  # a terminal that was closed needs nothing
                termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
                if screen is not None:
                    print(_OLD_SCREEN, end="", file=screen, flush=True)


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as an exception does, so that it cleans up."""
    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            previous[number] = signal.signal(number, lambda number, _: sys.exit(128 + number))
    except ValueError:
        pass  # not in the main thread: whoever is there handles signals
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def show(screen: TextIOBase | TextIO, lines: list[str]) -> None:
    """Write a whole screen."""
    print("\x1b[H" + "".join(f"{line}{PLAIN}\x1b[K\r\n" for line in lines) + "\x1b[J", end="", file=screen, flush=True)
