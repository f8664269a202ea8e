"""Every kind of image file becomes the uint8 pixels it should, or one line that says what is wrong."""

import io
import pickle
import traceback

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import UnreadableImageError, pixels

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def reopened(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, kind, **options)
    return Image.open(io.BytesIO(stored.getvalue()))


def folder_of(tmp_path, channels=3, **options):
    return open_source(DataConfig(path=str(tmp_path), **options), channels, "train")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_rgb_comes_back_as_it_was(kind):
    assert np.array_equal(pixels(reopened(Image.fromarray(RGB), kind), 3, 65535), RGB)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_8_bit_modes_become_what_pil_makes_of_them(mode, channels):
    image = Image.fromarray(RGB).convert(mode)
    stored = reopened(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert stored.mode == mode
    expected = np.asarray(stored.convert("L" if channels == 1 else "RGB")).reshape(6, 9, channels)
    assert np.array_equal(pixels(stored, channels, 65535), expected)


def test_a_palette_with_transparency_keeps_its_colors():
    image = Image.fromarray(RGB).quantize(16)
    stored = reopened(image, transparency=bytes(range(0, 160, 10)))
    assert stored.mode == "P"
    assert np.array_equal(pixels(stored, 3, 65535), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_values_are_scaled_and_clipped(mode, channels):
    """PIL's convert clips at 255 without scaling: a 12-bit X-ray became a white image."""
    values = np.array([[0, 255, 2048], [4095, 4096, 65535]])
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        kind = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (3, 2), values.astype(kind).tobytes())
    image = reopened(image, "TIFF")
    assert image.mode == mode
    expected = np.array([[0, 16, 128], [255, 255, 255]], dtype=np.uint8)
    assert np.array_equal(pixels(image, channels, 4095), np.repeat(expected[:, :, None], channels, axis=2))


def test_16_bit_png_uses_the_whole_range_by_default():
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert pixels(reopened(Image.fromarray(values)), 1, 65535).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_other_channel_counts_are_the_bands_of_the_file(mode):
    image = reopened(Image.fromarray(RGB).convert(mode), "TIFF")
    assert np.array_equal(pixels(image, len(mode), 65535), np.asarray(image))


def test_bands_that_do_not_fit_are_said(tmp_path, write):
    write(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png .*it has 3 bands \(RGB\), encoder.channels=5 needs 5"):
        folder_of(tmp_path, channels=5).read(0)


def test_float_images_are_said_to_have_no_white(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="32-bit float pixels have no fixed white"):
        folder_of(tmp_path).read(0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright(tmp_path, orientation, ending):
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> PIL transposition that undoes it
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.fromarray(np.repeat(np.repeat(RGB, 16, 0), 16, 1))
    image.save(tmp_path / f"a.{ending}", exif=exif, quality=95)
    source = folder_of(tmp_path)
    upright = image if orientation == 1 else image.transpose(Image.Transpose(turns[orientation]))
    expected = np.asarray(upright, dtype=np.int64)
    found = source.read(0)
    assert sorted(source.size(0)) == sorted(found.shape[:2])  # its header may lie on its side
    assert found.shape == expected.shape
    assert abs(found - expected).mean() < (0.01 if ending in ("png", "tif") else 25)  # lossy ones are only near
    assert abs(found[:, ::-1] - expected).mean() > 40  # and a wrong turn is far


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_truncated_image_is_named(tmp_path, write, ending):
    path = write(tmp_path / f"half.{ending}", 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError) as caught:
        folder_of(tmp_path).read(0)
    assert one_line(caught.value).startswith(f"{path} ")
    assert one_line(caught.value).endswith("delete or replace it")


@pytest.mark.parametrize("content", [b"", b"not an image\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    source = folder_of(tmp_path)
    for look in (source.read, source.size):
        with pytest.raises(UnreadableImageError) as caught:
            look(0)
        assert one_line(caught.value) == f"{path} is no image that can be read: delete or replace it"


def test_a_file_deleted_meanwhile_is_named(tmp_path, write):
    path = write(tmp_path / "a.png")
    source = folder_of(tmp_path)
    path.unlink()
    with pytest.raises(UnreadableImageError, match=r"a\.png cannot be used: .*No such file"):
        source.read(0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [40, 63])  # PIL itself stops above twice its limit, and only warns below
def test_a_decompression_bomb_is_refused(tmp_path, write, monkeypatch, limit):
    path = write(tmp_path / "bomb.png", 8, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError) as caught:
        folder_of(tmp_path).read(0)
    assert one_line(caught.value).startswith(f"{path} cannot be used: ")
    assert "128 pixels" in str(caught.value) or "16 x 8 pixels are more than PIL's limit" in str(caught.value)


def test_an_error_stays_one_line_through_a_traceback():
    """A loader's worker sends the text of the traceback, from which the main process makes the error anew."""
    line = "a.png cannot be used: cut off: delete or replace it"
    with pytest.raises(UnreadableImageError) as caught:
        raise UnreadableImageError(line)
    text = "".join(traceback.format_exception(caught.value))
    assert str(UnreadableImageError(f"Caught UnreadableImageError in worker 0.\nOriginal {text}")) == line
    assert str(pickle.loads(pickle.dumps(caught.value))) == line


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)
