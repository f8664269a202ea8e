"""From an image file to upright uint8 pixels, the same by every road, with PIL. Letters: H W pixels, C channels."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # makes WEBP known

# PIL chooses by content, not by name; some of its other formats start outside programs (EPS) or are slow to rule out.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
SLIMMEST = 100  # largest ratio of sides: evaluation would enlarge 1 x 60,000 pixels, of few bytes, to 256 x 15,360,000
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def open_encoded(file: str | bytes) -> Image.Image:
    """PIL's image of a file, by its path or its bytes: its header read, its pixels not."""
    return Image.open(file if isinstance(file, str) else BytesIO(file), formats=_FORMATS)


def require_sane(image: Image.Image) -> None:
    """ValueError for an image of more pixels than PIL's limit, or far longer than wide, by its header alone."""
    (width, height), limit = image.size, Image.MAX_IMAGE_PIXELS
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose tiles are decoded whole, however large
        tile = [image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if limit is not None and tile[0] * tile[1] > limit:
            raise ValueError(f"tiles of {tile[0]} x {tile[1]} pixels are more than PIL's limit of {limit}")
    if limit is not None and width * height > limit:
        raise ValueError(f"{width} x {height} pixels are more than PIL's limit of {limit}, cut it up")
    if max(width, height) > SLIMMEST * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {SLIMMEST} times the other, cut it up")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of the image once upright, from its header alone; but for a TIFF that lies on its side."""
    sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    if sideways and image.format == "TIFF":
        ImageOps.exif_transpose(image, in_place=True)  # PIL turns these while decoding, some versions the size before
        sideways = False
    return (image.width, image.height) if sideways else (image.height, image.width)


def pixels(image: Image.Image, channels: int, white_16bit: int) -> UInt8[np.ndarray, "H W C"]:
    """Decode, turn upright (EXIF) and convert: 3 channels to RGB, 1 to gray, others must be the file's own bands.

    Transparency is dropped. 16-bit values are scaled so that white_16bit becomes 255, and clipped. ValueError for
    floating-point pixels or bands that do not fit; PIL's own where a file is damaged.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _SIXTEEN_BIT:
        scaled = np.asarray(image).astype(np.float32) * (255 / white_16bit)
        image = Image.fromarray((np.clip(scaled, 0, 255) + 0.5).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed white, save it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is not None:
        image = image if image.mode == mode else image.convert(mode)  # convert copies what is in that mode already
    elif len(image.getbands()) != channels:
        bands = len(image.getbands())
        raise ValueError(f"it has {bands} bands ({image.mode}), encoder.channels={channels} needs {channels}")
    array = np.asarray(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]
