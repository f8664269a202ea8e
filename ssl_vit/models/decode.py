"""From an image file to upright uint8 pixels, the same by every road.

PIL decodes; what it hands over in part (16 bits of a color, more bands than it has modes for) others decode in full.
Letters: H W pixels, C channels, S bands of a file.
"""

import logging
from collections.abc import Callable
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from ssl_vit.models.dicom import is_dicom, read_dicom

# PIL chooses by content, not by name; some of its other formats start outside programs (EPS) or are slow to rule out.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TIFF, _NPY, _ZIP = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x93NUMPY", b"PK\x03\x04"
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 262, 277, 284  # tags of a TIFF
_MODES = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}  # of a TIFF, by its photometric interpretation
WHITE = 65535  # of 16 bits
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: "More samples" not in record.msg)  # it raises, too
SLIMMEST = 100  # largest ratio of sides: evaluation would enlarge 1 x 60,000 pixels, of few bytes, to 256 x 15,360,000


class Bands(Image.Image):
    """An image that PIL cannot read: its header read, its values not. mode: names of the first bands, or ""."""

    def __init__(
        self, file: Any, kind: str, shape: tuple[int, ...], dtype: Any, values: Callable[[], np.ndarray]
    ) -> None:
        """shape: [H, W] or [H, W, S]. ValueError for other shapes, and values that are not uint8 or uint16."""
        super().__init__()
        dtype = np.dtype(dtype).newbyteorder("=")
        if len(shape) not in (2, 3) or not all(shape) or dtype not in (np.uint8, np.uint16):
            raise ValueError(f"it holds {dtype} {list(shape)}, but must hold uint8 or uint16 [height, width, bands]")
        self.fp, self.format, self.count, self.photometric = file, kind, (*shape, 1)[2], 1
        self._size, self._mode, self._values, self._dtype = (shape[1], shape[0]), "", values, dtype
        self.tile_size: tuple[int, int] = (1, 1)

    def getbands(self) -> tuple[str, ...]:
        """None has a name."""
        return ("",) * self.count

    def __exit__(self, *error: object) -> None:
        self.fp.close()

    def values(self) -> Shaped[np.ndarray, "H W S"]:
        """The values of every band, uint8 or uint16, upright."""
        values = self._values().astype(self._dtype, copy=False)
        return values if values.ndim == 3 else values[:, :, None]


def open_encoded(file: str | bytes) -> Image.Image:
    """An image by its path or its bytes: its header read, its pixels not. .npy, .npz: [H, W] or [H, W, S]."""
    try:
        return Image.open(file if isinstance(file, str) else BytesIO(file), formats=_FORMATS)
    except UnidentifiedImageError:
        stream = open(file, "rb") if isinstance(file, str) else BytesIO(file)  # noqa: SIM115  # Bands closes it
        head = stream.read(132)
        stream.seek(0)
        if is_dicom(head):
            shape, values = read_dicom(stream)
            return Bands(stream, "DICOM", shape, np.uint8, values)
        if head[:4] in _TIFF:
            return _tiff(stream)
        if head.startswith(_NPY):
            return _array(stream, stream, "NPY")
        if head[:4] == _ZIP:
            names = (archive := ZipFile(stream)).namelist()
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} arrays, an image is one") from None
            return _array(stream, archive.open(names[0]), "NPZ")
        stream.close()
        raise


def _array(file: Any, member: Any, kind: str) -> Bands:
    """An array in NumPy's format; objects are not unpickled."""
    version = np.lib.format.read_magic(member)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(member)
    member.seek(0)
    return Bands(file, kind, shape, dtype, lambda: np.lib.format.read_array(member, allow_pickle=False))


def _tiff(file: Any) -> Bands:
    """A TIFF by tifffile: the bands of its first page, or of pages that have one each. ValueError without tifffile."""
    try:
        from tifffile import TiffFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        head = file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if head[2:3] in b"+" else head)
        file.seek(tags.next)
        tags.load(file)
        if _BITS not in tags:
            raise UnidentifiedImageError from error
        line = f"{tags.get(_SAMPLES, 1)} bands of {max(tags[_BITS])} bits in a TIFF take tifffile to be read in full"
        raise ValueError(f"{line}, pip install 'ssl_vit[tiff]'") from error
    tiff = TiffFile(file, is_ome=False)  # OME's metadata may name other files, which would be opened
    page: Any = tiff.pages[0]
    stack = tiff.series[0]
    held = stack if page.axes == "YX" and stack.axes[1:] == "YX" else page
    order = [held.axes.find("Y"), held.axes.find("X"), *(i for i, axis in enumerate(held.axes) if axis not in "YX")]
    sideways = page.tags.valueof(ExifTags.Base.Orientation, 1)

    def values() -> np.ndarray:
        return _turned(held.asarray().transpose(order), sideways)

    image = Bands(file, "TIFF", tuple(held.shape[i] for i in order), page.dtype, values)
    image.photometric, image.tile_size = int(page.photometric), (page.tilewidth, page.tilelength)
    image._mode = "" if image.photometric < 2 < image.count else _MODES.get(image.photometric, "")
    return image


def require_sane(image: Image.Image) -> None:
    """ValueError for an image of more pixels than PIL's limit, or far longer than wide, by its header alone."""
    (width, height), limit = image.size, Image.MAX_IMAGE_PIXELS
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    tile = [tags.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
    tile = image.tile_size if isinstance(image, Bands) else tile
    if limit is not None and tile[0] * tile[1] > limit:  # tiles are decoded whole, however large
        raise ValueError(f"tiles of {tile[0]} x {tile[1]} pixels are more than PIL's limit of {limit}")
    if limit is not None and width * height > limit:
        raise ValueError(f"{width} x {height} pixels are more than PIL's limit of {limit}, cut it up")
    if max(width, height) > SLIMMEST * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {SLIMMEST} times the other, cut it up")


def pixels(image: Image.Image, channels: int, white_16bit: int) -> UInt8[np.ndarray, "H W C"]:
    """Decode, turn upright (EXIF) and convert: 3 channels to RGB, 1 to gray, others must be the file's own bands.

    Transparency is dropped: the color stored below it counts. 16-bit values are scaled so that white_16bit becomes
    255, and clipped. ValueError for floating-point pixels or bands that do not fit; PIL's own where a file is damaged.
    """
    mode, inverted = {1: "L", 3: "RGB"}.get(channels), is_inverted(image)
    nameless = not image.mode and bands_of(image) not in (1, 3)
    if (mode is None or nameless) and (count := bands_of(image)) != channels:
        kind = image.mode or image.format
        raise ValueError(f"it has {count} bands ({kind}), encoder.channels={channels} needs {channels}")
    in_full = (white_16bit != WHITE and is_deep(image)) or (mode is None and bands_of(image) != bands_by_pil(image))
    decoded = decode(image, in_full)
    if isinstance(decoded, np.ndarray):
        values = _to_8_bits(decoded, white_16bit, inverted)
        if values.shape[2] == channels:
            return values
        names = {1: "L", 2: "LA", 3: "RGB"}.get(values.shape[2], image.mode)
        first = np.ascontiguousarray(values[:, :, : Image.getmodebands(names)])
        decoded = Image.frombytes(names, (values.shape[1], values.shape[0]), first.tobytes())
    if mode is not None and decoded.mode != mode:  # convert copies what is in that mode already
        decoded = decoded.convert(mode)
    array = np.asarray(decoded, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


def decode(image: Image.Image, in_full: bool) -> Image.Image | Shaped[np.ndarray, "H W S"]:
    """The image upright; gray of 16 bits, what PIL cannot read, and in_full all else as uint8 or uint16 values.

    in_full: not by PIL. ValueError for floating-point pixels, and where tifffile is missing.
    """
    if isinstance(image, Bands):
        return image.values()
    if in_full or _is_torn(image):
        return _in_full(image)
    image.load()  # before it the orientation of some is not known
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed white, save it with 8 or 16 bits a channel")
    if image.mode in _SIXTEEN_BIT:
        return np.clip(np.asarray(image), 0, WHITE).astype(np.uint16)[:, :, None]
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def bands_of(image: Image.Image) -> int:
    """Bands of the file, which may be more, or fewer, than PIL hands over. Pages of one band each count as bands."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode != "P":
        samples = image.tag_v2.get(_SAMPLES, 1)
        return samples if samples > 1 else getattr(image, "n_frames", 1)
    return 2 if _rawmode(image) == "LA;16B" else bands_by_pil(image)  # some versions of PIL make RGBA of it


def bands_by_pil(image: Image.Image) -> int:
    """Bands that decode hands over where not in_full."""
    return 4 if image.mode == "P" and "transparency" in image.info else len(image.getbands())


def is_inverted(image: Image.Image) -> bool:
    """Whether it is a TIFF whose zero is white, and not one of 8 bits that PIL inverts."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.mode in _SIXTEEN_BIT and image.tag_v2.get(_PHOTOMETRIC) == 0
    return isinstance(image, Bands) and image.photometric == 0


def is_deep(image: Image.Image) -> bool:
    """Whether it has 16-bit color, of which PIL hands over the high byte."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS, (1,))) > 8 and image.mode not in (*_SIXTEEN_BIT, "F")
    return image.format == "PNG" and ";16" in _rawmode(image) and image.mode not in _SIXTEEN_BIT


def _is_torn(image: Image.Image) -> bool:
    """Whether PIL would take the two bytes of a value for two values: of 16-bit color, band after band."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not is_deep(image) or not image.tile:
        return False
    return image.tag_v2.get(_PLANAR) == 2 and image.tile[0][0] == "raw"  # libtiff, which decompresses, does it right


def _rawmode(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile else ""


def _in_full(image: Image.Image) -> Shaped[np.ndarray, "H W S"]:
    file: Any = getattr(image, "fp", None)
    if file is None:
        raise ValueError("its 16 bits are 8 once PIL has loaded it: give it as Image.open gives it")
    place = file.tell()
    file.seek(0)
    encoded = file.read()
    file.seek(place)
    if image.format == "TIFF":
        return _tiff(BytesIO(encoded)).values()
    import torch
    from torchvision.io import ImageReadMode, decode_png

    image.load()  # before it the orientation of some is not known
    values = decode_png(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return _turned(values.permute(1, 2, 0).numpy(), image.getexif().get(ExifTags.Base.Orientation, 1))


def _turned(values: Shaped[np.ndarray, "H W ..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """Upright, by EXIF's number."""
    values = np.swapaxes(values, 0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    return np.ascontiguousarray(values[:, ::-1] if orientation in (2, 3, 6, 7) else values)


def _to_8_bits(
    values: Shaped[np.ndarray, "H W S"], white_16bit: int, inverted: bool = False
) -> UInt8[np.ndarray, "H W S"]:
    if values.dtype == np.uint16:
        values = (np.clip(values.astype(np.float32) * (255 / white_16bit), 0, 255) + 0.5).astype(np.uint8)
    return 255 - values if inverted else values
