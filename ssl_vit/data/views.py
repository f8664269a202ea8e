"""Views: geometry on one uint8 picture, on the CPU workers. Randomness comes in as uniform numbers, never from a state.

Letters: C channels, H W pixels of the picture; h w pixels of the view.
"""

import math
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

BICUBIC = InterpolationMode.BICUBIC


@runtime_checkable
class View(Protocol):
    """What a method asks of a picture: one tensor, or a list of them (several crops). It never writes into it."""

    draws: int
    """Uniform numbers that one call takes."""

    def __call__(
        self, picture: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " draws"]
    ) -> UInt8[Tensor, "C h w"] | list[Tensor]: ...


class RandomCrop:
    """A random part of the picture, resized: torchvision's RandomResizedCrop followed by a random flip.

    size: (h, w) in pixels. scale: area of the part, as a share of the picture. ratio: width / height of the part,
    uniform in its logarithm. flip: mirror half of the views left to right.
    """

    TRIES = 10  # as torchvision; then the largest central part with a legal ratio

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip
        self.draws = 2 * self.TRIES + 3

    def box(self, height: int, width: int, u: Float64[np.ndarray, " draws"]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part, in pixels."""
        low, high = self.scale
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw in u[: 2 * self.TRIES].reshape(-1, 2).tolist():
            area = height * width * (low + (high - low) * area_draw)
            ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = u[-3] * (height - h + 1), u[-2] * (width - w + 1)
                return int(top), int(left), h, w
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(
        self, picture: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " draws"]
    ) -> UInt8[Tensor, "C {self.size[0]} {self.size[1]}"]:
        top, left, h, w = self.box(picture.shape[-2], picture.shape[-1], u)
        view = F.resized_crop(picture, top, left, h, w, list(self.size), interpolation=BICUBIC, antialias=True)
        return view.flip(-1) if self.flip and u[-1] < 0.5 else view


class CenterCrop:
    """The middle of the picture, for evaluation: resize it to cover size / crop, then cut out size.

    size: (h, w) in pixels. crop: share of the resized picture that is kept, per side; 224 / 256 = 0.875.
    A picture that already covers size / crop exactly is not resampled; a small one is enlarged.
    """

    draws = 0

    def __init__(self, size: tuple[int, int], crop: float) -> None:
        self.size = size
        self.cover = tuple(round(side / crop) for side in size)

    def __call__(
        self, picture: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " draws"] | None = None
    ) -> UInt8[Tensor, "C {self.size[0]} {self.size[1]}"]:
        height, width = picture.shape[-2:]
        h, w = self.cover
        resized = [h, h * width // height] if h * width >= w * height else [w * height // width, w]
        if resized != [height, width]:
            picture = F.resize(picture, resized, interpolation=BICUBIC, antialias=True)
        top, left = (resized[0] - self.size[0]) // 2, (resized[1] - self.size[1]) // 2
        return picture[:, top : top + self.size[0], left : left + self.size[1]]
