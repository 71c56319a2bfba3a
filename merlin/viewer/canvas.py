"""A sheet to draw on, in Pillow: a frame takes tens of milliseconds, where a plotting library takes hundreds.

Everything is placed in points from the top left corner, and drawn at `SCALE` pixels a point.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from merlin.errors import MerlinError, obstacle

SCALE = 2
INK, GREY, FAINT, LINE, EMPTY = "#1d2430", "#6b7482", "#aab2bd", "#d8dde4", "#f1f3f6"
BLUE, ORANGE, GREEN, RED = "#2463a8", "#d9682b", "#2c8c57", "#c43d3d"
# Of categories; the first is often "nothing". Dark enough for white letters, except the first.
CATEGORIES = ("#c6ccd5", "#3a78b8", "#db7c28", "#3d9863", "#b9486a", "#7e61ad", "#94684c", "#3498a6", "#8c8a2c")

Number = int | float


def category_colour(value: int) -> str:
    """Return the colour of a category, the same wherever it is drawn; after the ninth they come again."""
    return CATEGORIES[value] if value < len(CATEGORIES) else CATEGORIES[1 + (value - 1) % (len(CATEGORIES) - 1)]


def mix(colour: str, share: Number, ground: str = "#ffffff") -> str:
    """Return `share` of a colour on a ground, share from 0 to 1."""
    parts = zip(ImageColor.getrgb(colour), ImageColor.getrgb(ground), strict=True)
    return "#" + "".join(f"{round(share * top + (1 - share) * bottom):02x}" for top, bottom in parts)


class Canvas:
    """A white sheet of `width` by `height` points."""

    def __init__(self, width: Number, height: Number):
        self.width, self.height = width, height
        self.image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self,
        x: Number,
        y: Number,
        words: str,
        size: Number = 11,
        colour: str = INK,
        anchor: str = "lm",
        bold: bool = False,
        width: Number | None = None,
    ) -> float:
        """Write one line, shortened to `width`, and return how wide it is. The anchor is Pillow's: left, middle, ..."""
        font = _font(size, bold)
        if width is not None and font.getlength(words) > width * SCALE:
            while words and font.getlength(words + "…") > width * SCALE:
                words = words[:-1]
            words = words.rstrip() + "…"
        self.pen.text((x * SCALE, y * SCALE), words, fill=colour, font=font, anchor=anchor)
        return font.getlength(words) / SCALE

    def box(
        self,
        x: Number,
        y: Number,
        width: Number,
        height: Number,
        fill: str | None = None,
        outline: str | None = None,
        line: Number = 1,
        radius: Number = 0,
    ) -> None:
        """Draw a rectangle, its outline inside it."""
        left, top, right, bottom = (round(side * SCALE) for side in (x, y, x + width, y + height))
        corners = (left, top, max(right - 1, left), max(bottom - 1, top))
        radius = radius if min(width, height) >= 14 else 0  # of a small box nobody sees it, and it takes time
        self.pen.rounded_rectangle(corners, radius * SCALE, fill, outline, round(line * SCALE) if outline else 0)

    def hatched(self, x: Number, y: Number, width: Number, height: Number) -> None:
        """Draw a place that holds nothing."""
        self.box(x, y, width, height, EMPTY, radius=2)
        if min(width, height) < 16:
            return
        step, bottom = 7, y + height
        for start in np.arange(x - height + step, x + width, step):
            ends = max(start, x), min(start + height, x + width)
            self.pen.line([(end * SCALE, (bottom - end + start) * SCALE) for end in ends], "#e0e4ea", SCALE)

    def line(self, points: Sequence[tuple[Number, Number]], colour: str, width: Number = 1) -> None:
        """Draw straight lines from point to point."""
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], colour, max(1, round(width * SCALE)), joint="curve")

    def disc(self, x: Number, y: Number, radius: Number, fill: str, outline: str | None = None) -> None:
        """Draw a filled circle around a point."""
        self.pen.circle((x * SCALE, y * SCALE), radius * SCALE, fill, outline, SCALE if outline else 0)

    def triangle(self, x: Number, y: Number, size: Number, colour: str) -> None:
        """Draw an arrowhead that points up to (x, y)."""
        corners = [(x, y), (x - 0.6 * size, y + size), (x + 0.6 * size, y + size)]
        self.pen.polygon([(a * SCALE, b * SCALE) for a, b in corners], colour)

    def picture(
        self, x: Number, y: Number, width: Number, height: Number, pixels: np.ndarray, centred: bool = False
    ) -> None:
        """Draw a picture [Y, X, 3] as large as it fits, to the left or centred, in a frame: it may be white."""
        rows, columns = pixels.shape[:2]
        factor = min(width * SCALE / columns, height * SCALE / rows)
        how = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
        if factor >= 3:
            factor, how = int(factor), Image.Resampling.NEAREST  # square pixels, all of one size
        size = max(1, round(columns * factor)), max(1, round(rows * factor))
        left = round((x + (width - size[0] / SCALE) / 2 if centred else x) * SCALE)
        top = round(y * SCALE)
        self.image.paste(Image.fromarray(pixels).resize(size, how), (left, top))
        self.pen.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=FAINT)

    def strip(self, x: Number, y: Number, width: Number, height: Number, colours: Sequence[str]) -> None:
        """Draw colours side by side, as when there are too many for boxes."""
        pixels = np.array([[ImageColor.getrgb(colour) for colour in colours]], np.uint8)
        size = round(width * SCALE), round(height * SCALE)
        # Boxes that are averaged, rather than pixels left out, where there are more colours than pixels.
        how = Image.Resampling.NEAREST if len(colours) <= size[0] else Image.Resampling.BOX
        self.image.paste(Image.fromarray(pixels).resize(size, how), (round(x * SCALE), round(y * SCALE)))

    def save(self, path: Path) -> None:
        """Write the sheet as a picture, at `SCALE` pixels a point.

        Raises:
            MerlinError: The file cannot be written.
        """
        try:
            self.image.save(path)
        except OSError as error:
            raise MerlinError(f"{path} must be writable, but {obstacle(error)}: choose another file.") from error

    def small(self) -> Image.Image:
        """Return the sheet at one pixel a point, its edges smoothed."""
        return self.image.reduce(SCALE)


def width_of(words: str, size: Number, bold: bool = False) -> float:
    """Return how wide one line is, in points."""
    return _font(size, bold).getlength(words) / SCALE


@lru_cache
def _font(size: Number, bold: bool) -> ImageFont.FreeTypeFont:
    # The font that plots are written in, which comes with the plotting library.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), round(size * SCALE))
