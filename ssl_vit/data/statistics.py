"""What a source's images are like, by a sample: size, channels, white, mean and std. Letters: H W pixels, S bands."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import Source, UnreadableImageError
from ssl_vit.models.decode import bands_of, decode, is_deep

SAMPLE = 256  # images that are read: the standard error of a mean is a sixteenth of the images' std
SIDE = 256  # pixels of a side that are looked at, evenly spread


class ImageStatistics(NamedTuple):
    """Images of a source, and the settings that suit them."""

    images: int  # all of them
    sampled: int  # of these the rest is known
    height: int  # in pixels, the median
    width: int
    channels: int  # 1 where all are gray, 3 where some have colors, else the bands that each of them has
    white_16bit: int | None  # the largest value of 16 bits, rounded up to whole bits; None where all have 8 bits
    mean: list[float]  # of each channel, of pixels in [0, 1]
    std: list[float]


def image_statistics(data: DataConfig | None = None, *, channels: int | None = None, **options: Any) -> ImageStatistics:
    """What the training images of a DataConfig, or of its fields as keywords, are like; 256 of them are read.

    Which ones follows from their number. channels: what they are read as; None: what suits them.

    ValueError: they come as a remote stream, no image of the sample can be read, or they differ in their bands.
    """
    data = data or DataConfig(**options)
    source = open_source(data, 3, "train")
    if source is None:
        line = f"data.path={data.path} is a remote stream, whose images cannot be read by number"
        raise ValueError(f"{line}: give data.mean, data.std, data.white_16bit and encoder.channels instead of auto")
    numbers = sorted(permutation(0, 0, len(source))[:SAMPLE])
    found = [look for number in numbers if (look := _look(source, int(number)))]
    if not found:
        raise ValueError(
            f"data.path={data.path}: of {len(source):,} images {len(numbers)} were tried, none can be read"
        )
    channels = channels or _channels(found, data.path)
    brightest = max(look.brightest for look in found)
    white = 2 ** brightest.bit_length() - 1 if brightest else None
    source = open_source(replace(data, white_16bit=white or data.white_16bit), channels, "train")
    moments = np.zeros((2, channels))
    for look in found:
        values = _spread(source.read(look.number)).reshape(-1, channels) / 255  # pyright: ignore[reportOptionalMemberAccess]
        moments += [values.mean(0), (values**2).mean(0)]
    mean, square = moments / len(found)
    std = np.sqrt(np.maximum(square - mean**2, 1 / 255**2))  # of images of one color
    height, width = (int(side) for side in np.median([look.size for look in found], axis=0))
    rounded = ([round(float(value), 4) for value in values] for values in (mean, std))
    return ImageStatistics(len(source), len(found), height, width, channels, white, *rounded)  # pyright: ignore


@dataclass(frozen=True)
class _Look:
    number: int
    size: tuple[int, int]
    bands: int  # 1: gray, 3: colors, others: the file's own
    brightest: int  # of 16 bits; 0 of an image of 8 bits


def _look(source: Source, number: int) -> _Look | None:
    """None of an image that cannot be read, which says so in its turn."""

    def seen(image: Image.Image) -> _Look:
        count, nameless = bands_of(image), not image.mode
        values = decode(image, is_deep(image))
        size = values.shape[:2] if isinstance(values, np.ndarray) else (values.height, values.width)
        brightest = int(values.max()) if isinstance(values, np.ndarray) and values.dtype == np.uint16 else 0
        if nameless and count not in (1, 3):
            return _Look(number, size, count, brightest)
        colors = values if isinstance(values, np.ndarray) else np.asarray(values.convert("RGB"))
        return _Look(number, size, 1 if _is_gray(_spread(colors)) else 3, brightest)

    try:
        return source.inspect(number, seen)
    except UnreadableImageError:
        return None


def _spread(values: Shaped[np.ndarray, "H W S"]) -> Shaped[np.ndarray, "_ _ S"]:
    """Pixels in even distances, at most SIDE by SIDE."""
    return values[:: -(-len(values) // SIDE), :: -(-values.shape[1] // SIDE)]


def _is_gray(values: Shaped[np.ndarray, "H W S"]) -> bool:
    return values.shape[2] < 3 or bool((values[:, :, :1] == values[:, :, 1:3]).all())


def _channels(found: list[_Look], path: str) -> int:
    counts = sorted({look.bands for look in found})
    if len(counts) > 1 and counts != [1, 3]:
        known = ", ".join(map(str, counts))
        raise ValueError(f"data.path={path} has images of {known} bands: give encoder.channels=, or sort them apart")
    return counts[-1]
