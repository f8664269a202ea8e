"""From an open picture file to uint8 pixels; whatever is wrong with a file becomes one line. PIL and numpy only.

Letters: H W pixels, C channels.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


class PictureError(ValueError):
    """A picture that cannot be read: which, why, what to do, in one line."""

    def __init__(self, text: str) -> None:
        # A loader's worker hands an error over as the text of its traceback, which ends in the line wanted.
        super().__init__(text.rsplit("PictureError: ", 1)[-1].strip())


def size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of the picture once upright, from its header alone."""
    sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def pixels(image: Image.Image, channels: int, white_16bit: int) -> UInt8[np.ndarray, "H W C"]:
    """Decode, turn upright (EXIF) and convert: 3 channels to RGB, 1 to grey, others must be the file's own bands.

    Transparency is dropped, as PIL's convert does. 16-bit values are scaled so that white_16bit becomes 255, and
    clipped; PIL's own convert clips at 255 without scaling, which turns such a picture white.

    Raises ValueError when the bands do not fit; OSError and others from PIL when the file is broken.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels are more than PIL's limit of {limit}; cut it up")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _SIXTEEN_BIT:
        scaled = np.asarray(image).astype(np.float32) * (255 / white_16bit)
        image = Image.fromarray(np.clip(scaled + 0.5, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed white; save it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if channels in (1, 3):
        image = image.convert("L" if channels == 1 else "RGB")
    elif len(image.getbands()) != channels:
        bands = len(image.getbands())
        raise ValueError(f"{bands} bands ({image.mode}) where encoder.channels={channels} are asked for")
    array = np.asarray(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]
