"""Position embeddings against their plainest form."""

import math

import pytest
import torch

from ssl_vit.models.pos_embed import resample, sincos_2d


@pytest.mark.parametrize(("h", "w"), [(14, 14), (16, 16), (3, 5)])
def test_sincos_table_against_the_formula_point_by_point(h, w):
    width = 16
    table = sincos_2d(h, w, width)[0]
    for row in range(h):
        for column in range(w):
            for i in range(width // 4):
                frequency = 10_000 ** (-i / (width / 4))
                expected = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos)]
                found = table[row * w + column, i :: width // 4]
                assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, not 30"):
        sincos_2d(4, 4, 30)


def test_resampling_to_the_same_grid_changes_nothing_and_keeps_constants():
    table = torch.randn(1, 12, 8)
    assert resample(table, (3, 4), (3, 4)) is table
    torch.testing.assert_close(resample(torch.ones(1, 12, 8), (3, 4), (7, 5)), torch.ones(1, 35, 8))
