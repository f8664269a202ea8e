"""The embedded default: scikit-learn's 1,797 real handwritten digits, made harder."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.rng import stratified, uniforms
from ssl_vit.data.sources.base import Source, Split

NUM_TRAIN, NUM_TEST = 1437, 360
CLASSES = [str(digit) for digit in range(10)]


class Digits(Source):
    """scikit-learn's digits, each at a random size and place and in a random color; no digit is in both splits."""

    def __init__(self, data: DataConfig, channels: int, split: Split) -> None:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        labels = np.asarray(digits.target, dtype=np.int64)
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[stratified(labels, NUM_TEST, seed=0)] = True
        self.numbers = np.flatnonzero(chosen if split == "test" else ~chosen)
        self.canvases = np.stack([draw_digit(digits.images[i], i) for i in self.numbers.tolist()])
        super().__init__(data, channels, labels[self.numbers], CLASSES, "scikit-learn")

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Digits":
        return cls(data, channels, split)

    @classmethod
    def count(cls, data: DataConfig) -> int:
        return NUM_TRAIN

    @classmethod
    def open_labels(cls, data: DataConfig, split: Split) -> Source:
        """As many labels, in another order: scikit-learn, which has them, takes a second to import."""
        labels = np.arange(NUM_TRAIN if split == "train" else NUM_TEST) % len(CLASSES)
        return Source(data, len(data.mean), labels, CLASSES, "scikit-learn")

    def open_image(self, index: int) -> Image.Image:
        return Image.fromarray(self.canvases[index])

    def name(self, index: int) -> str:
        return f"digit {self.numbers[index]} of scikit-learn's load_digits"


def draw_digit(strokes: np.ndarray, number: int) -> UInt8[np.ndarray, "32 32 3"]:
    """A digit (8 x 8, 0 to 16) on black, 24 to 32 pixels a side, any place and bright color, by its number."""
    side_u, top_u, left_u, *color_u = uniforms(0, 0, np.array([number]), 6)[0]
    side = 24 + int(side_u * 9)
    top, left = int(top_u * (33 - side)), int(left_u * (33 - side))
    glyph = Image.fromarray((strokes * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    color = 0.25 + 0.75 * np.array(color_u)
    color /= color.max()
    canvas = np.zeros((32, 32, 3), dtype=np.uint8)
    canvas[top : top + side, left : left + side] = (np.asarray(glyph)[:, :, None] * color).astype(np.uint8)
    return canvas
