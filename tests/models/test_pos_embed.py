"""Position embeddings against their plainest form."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from ssl_vit.models.pos_embed import geometric_spline, resample, resample_relations, sincos_2d
from ssl_vit.models.vit import VisionTransformer


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


def cubic(t: float) -> float:
    """Keys' kernel with a = -.75, as PyTorch has it."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


@pytest.mark.parametrize(("way", "more"), [("dino", 0.1), ("beit", 0.0)])
def test_the_authors_resampling_of_learned_positions_point_by_point(way, more):
    """Neither is antialiased; DINO's takes the step between points from a grid of .1 patches more."""
    old, new = 14, 6
    line = torch.randn(old, dtype=torch.float64)
    table = line.view(1, old, 1, 1).expand(1, old, old, 1).reshape(1, old * old, 1).float()  # constant along a row
    found = resample(table, (old, old), (new, new), way).view(new, new)
    for i in range(new):
        place = (i + 0.5) * old / (new + more) - 0.5
        around = range(math.floor(place) - 1, math.floor(place) + 3)
        expected = sum(cubic(place - k) * line[min(max(k, 0), old - 1)].item() for k in around)
        assert found[i].tolist() == pytest.approx([expected] * new, abs=1e-5)


def authors_table(table: np.ndarray, new: int) -> np.ndarray:
    """BEiT's way for one head, [old, old] to [new, new]: a spline in two directions over places found by bisection."""
    count, span, low, high = len(table) // 2, new // 2, 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**i for i in range(count)) > span else (q, high)
    places = np.cumsum([q**i for i in range(count)])
    known, wanted = [*-places[::-1], 0, *places], np.arange(-span, span + 1)
    return RectBivariateSpline(known, known, table, s=0)(wanted, wanted)


@pytest.mark.parametrize("new", [12, 16, 24, 32])
def test_relative_positions_of_beits_authors(new):
    """Their bisection stops at 1e-6; smooth tables hardly depend on it."""
    offset = np.arange(-13, 14)
    smooth = np.exp(-np.add.outer(offset**2, (offset - 2) ** 2) / 40)
    table = torch.cat([torch.from_numpy(smooth).flatten()[:, None], torch.tensor([[5.0], [6.0], [7.0]])]).float()
    found = resample_relations(table, (14, 14), (new, new), "beit")
    expected = torch.from_numpy(authors_table(smooth, 2 * new - 1)).float()
    torch.testing.assert_close(found[:-3].view_as(expected), expected, rtol=0, atol=1e-5)
    assert found[-3:, 0].tolist() == [5, 6, 7]


def test_near_offsets_stay_and_the_farthest_falls_on_the_farthest():
    matrix = geometric_spline(27, 47)
    for new, old in ((23, 13), (24, 14), (22, 12), (0, 0), (46, 26)):
        expected = torch.eye(27, dtype=torch.float64)[old]
        torch.testing.assert_close(matrix[new], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pos_embed", ["relative", "relative_per_block"])
def test_an_encoder_resamples_its_positions_as_it_is_told(pos_embed):
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 32, "pos_embed": pos_embed}
    encoder = VisionTransformer(**shape, resample="beit").eval()
    tables = [p for name, p in encoder.named_parameters() if name.endswith("relative_position_bias_table")]
    with torch.no_grad():
        tables[0].normal_()
    small, large = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 48, 48)
    ours = encoder(small), encoder(large)
    encoder.config.resample = "timm"
    theirs = encoder(small), encoder(large)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[1], theirs[1])
    with pytest.raises(ValueError, match=r"encoder\.resample=dino must be timm or beit with encoder\.pos_embed=rel"):
        VisionTransformer(**shape, resample="dino")
