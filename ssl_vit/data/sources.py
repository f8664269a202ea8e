"""Where pictures lie: digits (embedded), folder, parquet, torchvision; each a Source that reads one picture at a time.

Needs numpy and PIL only, so that a dry run can count pictures without torch. A source holds its file names or encoded
bytes in one array each: a Python object per picture would be copied into every worker, page by page, as it is touched.

Letters: n pictures, H W pixels, C channels.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data import pictures
from ssl_vit.data.draws import stratified, uniforms
from ssl_vit.data.pictures import PictureError

Split = Literal["train", "test"]
DIGITS_TRAIN, DIGITS_TEST = 1437, 360


class Source:
    """Pictures by index. A kind of source says how to open one and what to call it in a message."""

    labels: Int64[np.ndarray, "n"]
    """Class of each picture; -1 where it has none."""
    classes: list[str]
    """Names of the classes, in the order of the labels."""

    def __init__(self, data: DataConfig, channels: int, labels: Int64[np.ndarray, "n"], classes: list[str]) -> None:
        self.channels, self.white_16bit = channels, data.white_16bit
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """The picture, not yet decoded where the file format allows."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a person finds the picture by."""
        raise NotImplementedError

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Pixels; PictureError names the picture and what is wrong with it."""
        return self._guarded(index, lambda image: pictures.pixels(image, self.channels, self.white_16bit))

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) without decoding; PictureError as for read."""
        return self._guarded(index, pictures.size)

    def _guarded(self, index, look):
        try:
            with self.open(index) as image:
                return look(image)
        except Exception as error:  # broken files raise anything: OSError, SyntaxError, struct.error, ValueError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PictureError(f"{self.name(index)} cannot be used: {reason}; replace or delete it") from error


class Digits(Source):
    """scikit-learn's 1,797 real handwritten digits, each at a random size and place and in a random colour."""

    def __init__(self, data: DataConfig, channels: int, split: Split) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = np.asarray(digits.target, dtype=np.int64)
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[stratified(labels, DIGITS_TEST, seed=0)] = True
        self.numbers = np.flatnonzero(chosen if split == "test" else ~chosen)
        self.canvases = np.stack([draw_digit(digits.images[i], i) for i in self.numbers])
        super().__init__(data, channels, labels[self.numbers], [str(digit) for digit in range(10)])

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.canvases[index])

    def name(self, index: int) -> str:
        return f"digit {self.numbers[index]} of scikit-learn's load_digits"


def draw_digit(strokes: np.ndarray, number: int) -> UInt8[np.ndarray, "32 32 3"]:
    """One digit (8 x 8, 0 to 16) on a black canvas: 24 to 32 pixels a side, any place that holds it, any bright colour.

    A function of the digit and its number, so the data set is the same everywhere.
    """
    side_draw, top_draw, left_draw, *colour_draws = uniforms(0, 0, np.array([number]), 6)[0]
    side = 24 + int(side_draw * 9)
    top, left = int(top_draw * (33 - side)), int(left_draw * (33 - side))
    glyph = Image.fromarray((strokes * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    colour = 0.25 + 0.75 * np.array(colour_draws)
    colour /= colour.max()
    canvas = np.zeros((32, 32, 3), dtype=np.uint8)
    canvas[top : top + side, left : left + side] = (np.asarray(glyph)[:, :, None] * colour).astype(np.uint8)
    return canvas


def open_source(data: DataConfig, channels: int, split: Split) -> Source | None:
    """The training or the test pictures of data; None when there is no test part."""
    return Digits(data, channels, split)


def count(data: DataConfig) -> int | None:
    """Number of training pictures, without decoding any; None for torchvision, which cannot tell cheaply."""
    return DIGITS_TRAIN
