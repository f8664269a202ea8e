"""Views: geometry on one uint8 picture, on the CPU workers. Randomness comes in as uniform numbers, never from a state.

Letters: B pictures, C channels, H W pixels of the picture; h w pixels of the view.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_vit.data.transforms.color import Photometry, normalize

BICUBIC = InterpolationMode.BICUBIC


@runtime_checkable
class View(Protocol):
    """What a method asks of a picture: one tensor, or a list of them (several crops). It never writes into it.

    A view may also have photometry(images, u), which changes the colours of a whole batch on the device: images as its
    calls gave them, stacked; u float64 [B, draws], the numbers of those calls. MultiCrop has.
    """

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
        part = picture[None, :, top : top + h, left : left + w]
        view = interpolate(part, self.size, mode=BICUBIC.value, antialias=True)[0]  # what torchvision's resize calls
        return view.flip(-1) if self.flip and u[-1] < 0.5 else view


class MultiCrop:
    """Several crops of each picture, each with colours of its own: DINO (Caron et al., 2021, arXiv:2104.14294).

    crops: geometry and photometry of each, in the order of the result. The crops' draws come first, crop by crop, then
    those of their photometry.
    """

    def __init__(self, crops: Sequence[tuple[RandomCrop, Photometry]]) -> None:
        self.crops = list(crops)
        counts = [crop.draws for crop, _ in crops] + [photometry.draws for _, photometry in crops]
        ends = np.cumsum(counts).tolist()
        columns = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        self._crop_draws, self._photometry_draws = columns[: len(self.crops)], columns[len(self.crops) :]
        self.draws = sum(counts)

    def __call__(self, picture: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " draws"]) -> list[Tensor]:
        """The crops: uint8 [C, h, w], each of its own size; colours are those of the picture."""
        return [crop(picture, u[draws]) for (crop, _), draws in zip(self.crops, self._crop_draws, strict=True)]

    def photometry(
        self,
        crops: list[UInt8[Tensor, "B C _ _"]],
        u: Float64[np.ndarray, "B draws"],
        normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> list[Float32[Tensor, "B C _ _"]]:
        """The crops with their colours changed, on the device where they are.

        In 0 .. 255, or normalised by mean and std, both of pixels in [0, 1].
        Crops of one size and one photometry become one batch: fewer launches on a GPU, larger pages of memory on a CPU.
        """
        alike: dict[tuple[torch.Size, Photometry], list[int]] = {}
        for place, (crop, (_, photometry)) in enumerate(zip(crops, self.crops, strict=True)):
            alike.setdefault((crop.shape, photometry), []).append(place)
        changed = dict[int, Tensor]()
        for (_, photometry), places in alike.items():
            draws = np.concatenate([u[:, self._photometry_draws[place]] for place in places])
            batch = torch.cat([crops[place] for place in places]) if len(places) > 1 else crops[places[0]]
            changed |= zip(places, photometry(batch, draws, normalized).chunk(len(places)), strict=True)
        return [changed[place] for place in range(len(crops))]


class TokenCrop:
    """One random part of the picture, twice: for an encoder, and for the tokenizer whose tokens it predicts (BEiT).

    crop: geometry of both. token_size: (h, w) of the tokenizer's, in pixels. photometry: the colours of both, changed
    alike. The crop's draws come first.
    """

    def __init__(self, crop: RandomCrop, token_size: tuple[int, int], photometry: Photometry) -> None:
        self.crop, self.colours = crop, photometry
        self.token_crop = RandomCrop(token_size, crop.scale, crop.ratio, crop.flip)
        self.draws = crop.draws + photometry.draws

    def __call__(self, picture: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " draws"]) -> list[Tensor]:
        """uint8 [C, h, w]: the encoder's, and the tokenizer's where that is of another size."""
        crops = [self.crop] + [self.token_crop] * (self.token_crop.size != self.crop.size)
        return [crop(picture, u[: crop.draws]) for crop in crops]

    def photometry(
        self,
        crops: list[UInt8[Tensor, "B C _ _"]],
        u: Float64[np.ndarray, "B draws"],
        normalized: tuple[Sequence[float], Sequence[float]],
    ) -> list[Float32[Tensor, "B C _ _"]]:
        """The encoder's picture normalised by mean and std, the tokenizer's in [0, 1]."""
        changed = [self.colours(crop, u[:, self.crop.draws :]) for crop in crops]
        return [normalize(changed[0], *normalized), changed[-1] / 255]


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
