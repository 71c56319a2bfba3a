"""Procedural pictures that are easy to tell apart."""

import numpy as np

GLYPH_SIZE = 28
_CELLS = 7  # a glyph is a 7x7 pattern of 4x4-pixel cells
MIN_DIFFERENT_CELLS = 12  # between any two glyphs, and between a glyph and the blank


def make_glyphs(count: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [count + 1, 28, 28, 1]: a blank picture, then `count` glyphs of black and white cells.

    Any two of them, the blank included, differ in at least 12 of their 49 cells, i.e. 192 of 784 pixels.
    """
    random = np.random.default_rng(seed)
    patterns = np.zeros((1, _CELLS, _CELLS), bool)
    while len(patterns) <= count:
        pattern = random.random((_CELLS, _CELLS)) < 0.5
        if (patterns != pattern).sum((1, 2)).min() >= MIN_DIFFERENT_CELLS:
            patterns = np.concatenate([patterns, pattern[None]])
    pixels = patterns.repeat(GLYPH_SIZE // _CELLS, 1).repeat(GLYPH_SIZE // _CELLS, 2)
    return (pixels[..., None] * 255).astype(np.uint8)
