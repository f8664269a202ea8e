"""image_statistics: what a sample says of images, on files of every kind."""

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.statistics import SAMPLE, image_statistics

RNG = np.random.default_rng(0)


def save(folder, name, values, mode=None):
    """An array as an image file."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values, mode).save(folder / name)


def test_mean_and_std_are_those_of_the_pixels(tmp_path):
    images = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        save(tmp_path, f"{number}.png", image)
    found = image_statistics(source="folder", path=str(tmp_path))
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(0), atol=1e-4)  # four digits are kept
    np.testing.assert_allclose(found.std, pixels.std(0), atol=1e-4)
    assert (found.images, found.sampled, found.height, found.width) == (5, 5, 12, 10)
    assert (found.channels, found.white_16bit) == (3, None)


def test_gray_images_are_of_one_channel_also_where_a_file_repeats_it_three_times(tmp_path):
    gray = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    save(tmp_path, "l.png", gray)
    save(tmp_path, "rgb.png", np.stack([gray] * 3, axis=2))
    Image.fromarray(gray).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "p.png")
    save(tmp_path, "q.jpg", np.stack([gray] * 3, axis=2))
    assert image_statistics(source="folder", path=str(tmp_path)).channels == 1
    assert len(image_statistics(source="folder", path=str(tmp_path), channels=3).mean) == 3  # as asked for
    save(tmp_path, "color.png", RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    assert image_statistics(source="folder", path=str(tmp_path)).channels == 3


@pytest.mark.parametrize(("largest", "white"), [(4095, 4095), (4011, 4095), (1023, 1023), (60000, 65535), (200, 255)])
def test_white_is_the_largest_value_of_16_bits_rounded_up_to_whole_bits(tmp_path, largest, white):
    save(tmp_path, "a.png", np.full((6, 6), largest, dtype=np.uint16))
    save(tmp_path, "b.png", np.zeros((6, 6), dtype=np.uint16))
    found = image_statistics(source="folder", path=str(tmp_path))
    assert found.white_16bit == white
    assert found.mean == pytest.approx([largest / white / 2], abs=0.5 / 255)  # it becomes one of 255 values


def test_unreadable_images_of_the_sample_are_passed_over_but_not_all(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 were tried, none can be read"):
        image_statistics(source="folder", path=str(tmp_path))
    save(tmp_path, "good.png", np.full((6, 6), 51, dtype=np.uint8))
    found = image_statistics(source="folder", path=str(tmp_path))
    assert (found.images, found.sampled, found.mean) == (2, 1, [0.2])


def test_bands_are_the_files_own_and_have_to_agree(tmp_path):
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (6, 6, 5), dtype=np.uint8))
    assert image_statistics(source="folder", path=str(tmp_path)).channels == 5
    np.save(tmp_path / "b.npy", RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"has images of 4, 5 bands: give encoder.channels="):
        image_statistics(source="folder", path=str(tmp_path))


def test_images_of_one_color_have_a_std_that_can_be_divided_by(tmp_path):
    save(tmp_path, "a.png", np.full((6, 6), 10, dtype=np.uint8))
    assert image_statistics(source="folder", path=str(tmp_path)).std == [round(1 / 255, 4)]


def test_the_sample_of_many_images_is_bounded_and_always_the_same(tmp_path):
    for number in range(SAMPLE + 20):
        save(tmp_path, f"{number}.png", np.full((2, 2), number % 256, dtype=np.uint8))
    found = image_statistics(source="folder", path=str(tmp_path))
    assert (found.images, found.sampled) == (SAMPLE + 20, SAMPLE)
    assert found == image_statistics(source="folder", path=str(tmp_path))
