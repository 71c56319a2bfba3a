import numpy as np
import pytest

from merlin.tasks.paper.glyphs import MIN_DIFFERENT_CELLS, make_glyphs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 8, 200])
def test_glyphs_are_distinct_by_a_margin(count, seed):
    glyphs = make_glyphs(count, seed)
    assert glyphs.shape == (count + 1, 28, 28, 1) and glyphs.dtype == np.uint8
    assert not glyphs[0].any()
    is_different = (glyphs[:, None] != glyphs[None]).sum((2, 3, 4))[~np.eye(count + 1, dtype=bool)]
    assert is_different.min() >= 16 * MIN_DIFFERENT_CELLS == 192


def test_glyphs_follow_the_seed():
    assert np.array_equal(make_glyphs(4, 1), make_glyphs(4, 1))
    assert not np.array_equal(make_glyphs(4, 1), make_glyphs(4, 2))
