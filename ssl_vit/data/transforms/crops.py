"""Geometry on one uint8 image, by uniform numbers that come in. Letters: H W pixels of the image, h w of the crop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.models.preprocess import BICUBIC, normalize

TRIES = 10  # Boxes that RandomCrop tries, as torchvision; then the largest central box with a legal ratio.


@runtime_checkable
class Transform(Protocol):
    """What a method makes of an image: one tensor, or a list of them (several crops). It never writes into it.

    It may also have color(images, u [B, num_random], normalized), which changes a whole batch on the device.
    """

    num_random: int  # Uniform numbers that one call takes.

    def __call__(
        self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]
    ) -> UInt8[Tensor, "C h w"] | list[Tensor]: ...


@dataclass
class RandomCrop:
    """A random box of the image, resized to size (h, w): torchvision's RandomResizedCrop, then a flip of half of them.

    scale: area of the box, as a fraction of the image. ratio: width / height of the box, uniform in its logarithm, as a
    multiple of the crop's own w / h, so that a crop that is no square is stretched no more than one that is.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    num_random = 2 * TRIES + 3

    def box(self, height: int, width: int, u: Float64[np.ndarray, " num_random"]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the box, in pixels."""
        (low, high), aspect = self.scale, self.size[1] / self.size[0]
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_u, ratio_u in u[: 2 * TRIES].reshape(-1, 2).tolist():
            area = height * width * (low + (high - low) * area_u)
            ratio = math.exp(log_low + (log_high - log_low) * ratio_u) * aspect
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = u[-3] * (height - h + 1), u[-2] * (width - w + 1)
                return int(top), int(left), h, w
        w = min(width, round(height * (self.ratio[1] * aspect)))
        h = min(height, round(width / (self.ratio[0] * aspect)))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(
        self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]
    ) -> UInt8[Tensor, "C {self.size[0]} {self.size[1]}"]:
        top, left, h, w = self.box(image.shape[-2], image.shape[-1], u)
        box = image[None, :, top : top + h, left : left + w]
        crop = interpolate(box, self.size, mode=BICUBIC.value, antialias=True)[0]  # what torchvision's resize calls
        return crop.flip(-1) if self.flip and u[-1] < 0.5 else crop


class MultiCrop:
    """Several crops of each image, each with colors of its own: DINO (Caron et al., 2021, arXiv:2104.14294).

    The random numbers of the crops come first, crop by crop, then those of their colors.
    """

    def __init__(self, crops: Sequence[tuple[RandomCrop, ColorAugmentation]]) -> None:
        self.crops = list(crops)
        counts = [crop.num_random for crop, _ in crops] + [color.num_random for _, color in crops]
        self.num_random, self._ends = sum(counts), np.cumsum(counts)[:-1]  # where the columns of each end

    def __call__(self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]) -> list[Tensor]:
        """The crops: uint8 [C, h, w], each of its own size; colors are those of the image."""
        return [crop(image, numbers) for (crop, _), numbers in zip(self.crops, np.split(u, self._ends), strict=False)]

    def color(
        self,
        crops: list[UInt8[Tensor, "B C _ _"]],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> list[Float32[Tensor, "B C _ _"]]:
        """The crops, colors changed, in 0 .. 255 or normalized; crops of one size and augmentation become one batch."""
        alike: dict[tuple[torch.Size, ColorAugmentation], list[int]] = {}
        for place, (crop, (_, color)) in enumerate(zip(crops, self.crops, strict=True)):
            alike.setdefault((crop.shape, color), []).append(place)
        changed, numbers = dict[int, Tensor](), np.split(u, self._ends, axis=1)[len(crops) :]
        for (_, color), places in alike.items():
            random_numbers = np.concatenate([numbers[place] for place in places])
            batch = torch.cat([crops[place] for place in places]) if len(places) > 1 else crops[places[0]]
            changed |= zip(places, color(batch, random_numbers, normalized).chunk(len(places)), strict=True)
        return [changed[place] for place in range(len(crops))]


class TokenCrop:
    """One random crop, twice: for an encoder, and at token_size (h, w) for the tokenizer (BEiT), colors alike."""

    def __init__(self, crop: RandomCrop, token_size: tuple[int, int], color: ColorAugmentation) -> None:
        self.crop, self.colors = crop, color
        self.token_crop = RandomCrop(token_size, crop.scale, crop.ratio, crop.flip)
        self.num_random = crop.num_random + color.num_random

    def __call__(self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]) -> list[Tensor]:
        """uint8 [C, h, w]: the encoder's, and the tokenizer's where that is of another size."""
        crops = [self.crop] + [self.token_crop] * (self.token_crop.size != self.crop.size)
        return [crop(image, u[: crop.num_random]) for crop in crops]

    def color(
        self,
        crops: list[UInt8[Tensor, "B C _ _"]],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]],
    ) -> list[Float32[Tensor, "B C _ _"]]:
        """The encoder's image normalized by mean and std, the tokenizer's in [0, 1]."""
        changed = [self.colors(crop, u[:, self.crop.num_random :]) for crop in crops]
        return [normalize(changed[0], *normalized), changed[-1] / 255]
