"""DICOM files, written by pydicom, against the standard's formulas."""

import numpy as np
import pytest
from dicom_files import dicom

from ssl_vit.models.decode import open_encoded, pixels

pytest.importorskip("pydicom")
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1

STORED = np.arange(6 * 8, dtype=np.uint16).reshape(6, 8) * 80  # 0 .. 3,760 of 12 bits


def gray(encoded: bytes) -> np.ndarray:
    with open_encoded(encoded) as image:
        return pixels(image, 1, 4095)[:, :, 0].astype(int)


def test_rescale_and_the_first_window_make_the_shades():
    """The window is one of rescaled values (PS3.3 C.11.2.1.2.1), and data.white_16bit has no say."""
    hounsfield = STORED * 2.0 - 1000
    center, width = 500, 1500
    expected = np.clip(((hounsfield - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    window = {"WindowCenter": [center, 3], "WindowWidth": [width, 7]}
    found = gray(dicom(STORED, bits=12, RescaleSlope=2, RescaleIntercept=-1000, **window))
    assert np.abs(found - expected).max() <= 0.51
    inverted = gray(dicom(STORED, "MONOCHROME1", bits=12, RescaleSlope=2, RescaleIntercept=-1000, **window))
    assert np.abs(inverted - (255 - expected)).max() <= 0.51
    smooth = gray(dicom(STORED, WindowCenter=2000, WindowWidth=900, VOILUTFunction="SIGMOID"))
    assert np.abs(smooth - 255 / (1 + np.exp(-4 * (STORED - 2000.0) / 900))).max() <= 0.51


def test_without_a_window_all_that_can_be_stored_is_seen():
    """The same for every image of a set, which its own least and largest value would not be."""
    assert np.abs(gray(dicom(STORED, bits=12)) - STORED / 4095 * 255).max() <= 0.51
    signed = STORED.astype(np.int16) - 2048
    assert np.abs(gray(dicom(signed, bits=12)) - STORED / 4095 * 255).max() <= 0.51


def test_color_of_any_kind_is_rgb():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with open_encoded(dicom(rgb, "RGB")) as image:
        assert (pixels(image, 3, 65535) == rgb).all()
    luma, blue, red = np.full((6, 8), 100), np.full((6, 8), 128), np.full((6, 8), 178)
    ybr = np.stack([luma, blue, red], axis=2).astype(np.uint8)
    with open_encoded(dicom(ybr, "YBR_FULL")) as image:  # red = Y + 1.402 (Cr - 128)
        assert np.abs(pixels(image, 3, 65535)[0, 0].astype(int) - [170, 64, 100]).max() <= 1
    names = ("Red", "Green", "Blue")
    palette = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in names}
    tables = {f"{name}PaletteColorLookupTableData": (np.arange(256) * 257 // k).astype("<u2").tobytes()
              for k, name in enumerate(names, 1)}  # fmt: skip
    index = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    with open_encoded(dicom(index, "PALETTE COLOR", **palette, **tables)) as image:
        found = pixels(image, 3, 65535).astype(int)
    assert np.abs(found - np.stack([index / 1, index / 2, index / 3], axis=2)).max() <= 1


@pytest.mark.parametrize(
    ("encoded", "wrong"),
    [
        (dicom(STORED, NumberOfFrames=3), "it holds 3 frames, an image is one: save each as a file of its own"),
        (
            dicom(STORED, syntax=JPEGLosslessSV1),
            "its compression, JPEG Lossless.*takes a plugin of pydicom: pip install",
        ),
        (dicom(STORED, syntax=DeflatedExplicitVRLittleEndian), "it is deflated as a whole, and may unpack to any size"),
        (dicom(STORED, WindowCenter=5, WindowWidth=0), "its window, 5 and 0 wide, makes no image"),
        (dicom(STORED.astype(np.uint32)), "its 32 bits have no fixed white"),
        (dicom(STORED)[:-40], "bytes of pixel data is less than expected|pixel data"),
        (dicom(STORED)[:300], "it holds no image|."),
    ],
)
def test_what_is_no_single_image_is_a_line(encoded, wrong):
    with pytest.raises(ValueError, match=f"^{wrong}" if wrong[0] == "i" else wrong) as caught:
        gray(encoded)
    assert "\n" not in str(caught.value)
