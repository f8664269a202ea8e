"""Images under titles: large enough, of whole squares, whatever the titles are."""

import pytest
import torch

from ssl_vit.evaluate.legend import NARROWEST, titled_grid


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "count", "columns"), [(4, 4, 1, 1), (32, 32, 6, 3), (5, 300, 3, 4), (900, 2, 1, 4)]
)
def test_every_grid_is_wide_enough_to_see(height, width, count, columns):
    grid = titled_grid([image(height, width)] * count, ["title"] * count, columns)
    assert grid.shape[2] >= NARROWEST
    assert grid.dtype == torch.uint8
    assert grid.shape[1] < 10_000


def test_pixels_become_squares_and_keep_their_values():
    pixels = image(64, 64)
    grid = titled_grid([pixels], [""], 1)
    assert torch.equal(grid[:, 2:258, 2:258], pixels.repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert grid.shape == (3, 260, 260)


def test_a_title_makes_room_for_itself():
    """Of eight pixels, as of 4,096, it can be read to its end."""
    title = "a long title of an image"
    grid = titled_grid([image(8, 8)] * 9, [title] * 9, 9)
    cell = (grid.shape[2] - 2) // 9 - 2
    assert cell > 24 * 5  # so many letters
    dark = (grid[:, 2:18, 2:].amin(0) < 128).any(0)
    assert not bool(dark[cell - 4 : cell + 2].any())


@pytest.mark.parametrize("title", ["Zug\u00fcge", "\u5199\u771f", "\x1b[2J", "a\nb", "\udcff"])
def test_strange_titles_are_escaped(title):
    assert titled_grid([image(4, 4)], [title], 1, caption=title).shape[2] >= NARROWEST
