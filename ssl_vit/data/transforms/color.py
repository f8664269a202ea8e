"""ColorAugmentation: what happens to colors, batched on the device where the images are.

The chain of color changes is that of DINO (Caron et al., 2021, arXiv:2104.14294, from BYOL: Grill et al., 2020,
arXiv:2006.07733, appendix B). Randomness comes in as uniform numbers on the host, so nothing here waits for a GPU.
Our own, because torchvision draws one factor for a whole batch.

Letters: B images, C channels, H W pixels.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

from ssl_vit.data.transforms.color_ops import (
    Images,
    adjust_brightness,
    adjust_contrast,
    convolve,
    gaussian_band,
    hue_mix,
    mix,
    saturation_mix,
    solarize,
    to_gray,
    turn_hue,
)

ORDERS = np.array(list(itertools.permutations(range(4))))
"""Every order of the jitter's operations; 0 brightness, 1 contrast, 2 saturation, 3 hue."""
SMALL_BYTES = 2**16
"""A larger image (74 x 74 pixels in color) is changed alone on a CPU, where it stays in a core's cache."""


def normalize(
    images: Shaped[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """(images / 255 - mean) / std per channel, as one multiply-add on the device where the batch is.

    images: uint8, or floats in 0 .. 255. mean and std are of pixels in [0, 1].
    """
    gain, shift = _affine(mean, std, images.device)
    return torch.addcmul(shift, images.float(), gain)


class Strengths(NamedTuple):
    """What happens to each image of a batch, on the host."""

    jitter: Bool[np.ndarray, " B"]
    order: Int64[np.ndarray, "B 4"]
    """Row of ORDERS: the operation that comes first, second, third and last."""
    brightness: Float64[np.ndarray, " B"]
    contrast: Float64[np.ndarray, " B"]
    saturation: Float64[np.ndarray, " B"]
    hue: Float64[np.ndarray, " B"]
    gray: Bool[np.ndarray, " B"]
    blur: Bool[np.ndarray, " B"]
    sigma: Float64[np.ndarray, " B"]
    """Standard deviation of the blur, pixels."""
    solarize: Bool[np.ndarray, " B"]


Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From images [B, C, H, W] and a factor for each [B, ...] to images, written into the third, which may be the first."""


Step = tuple[Operation, Bool[np.ndarray, " B"], Shaped[Tensor, "B ..."]]
"""An operation, the images of the batch that it changes, and by how much: the factors, on the images' device."""


@dataclass(frozen=True, kw_only=True)
class ColorAugmentation:
    """Color jitter, then gray, Gaussian blur and solarization, each with its probability, drawn for each image.

    Strengths mean what they do in torchvision's ColorJitter, order of the four included. Defaults are DINO's
    (appendix B, "BYOL data augmentation"); blur_p and solarize_p differ from crop to crop and have none.
    """

    brightness: float = 0.4
    """The factor is uniform in max(0, 1 - brightness) .. 1 + brightness."""
    contrast: float = 0.4
    """The factor is uniform in max(0, 1 - contrast) .. 1 + contrast."""
    saturation: float = 0.2
    """The factor is uniform in max(0, 1 - saturation) .. 1 + saturation."""
    hue: float = 0.1
    """The shift is uniform in -hue .. hue, a fraction of the color circle; at most 0.5."""
    jitter_p: float = 0.8
    """Probability of the four operations above."""
    gray_p: float = 0.2
    """Probability of gray."""
    blur_p: float
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """The blur's standard deviation is uniform in this range, pixels; the kernel ends at three of the largest."""
    solarize_p: float
    """Probability of solarization."""

    @property
    def num_random(self) -> int:
        """Uniform numbers that one image takes."""
        return len(Strengths._fields)

    @property
    def blur_radius(self) -> int:
        """Pixels from the middle of the blur's kernel to its end; 6 for the default, a kernel of 13."""
        return math.ceil(3 * self.blur_sigma[1])

    def strengths(self, u: Float64[np.ndarray, "B num_random"]) -> Strengths:
        """What these uniform numbers mean: one column a field of Strengths, in that order."""
        jitter, order, brightness, contrast, saturation, hue, gray, blur, sigma, solarization = u.T
        low, high = self.blur_sigma
        return Strengths(
            jitter=jitter < self.jitter_p,
            order=ORDERS[(order * len(ORDERS)).astype(np.int64)],
            brightness=_between(max(0.0, 1 - self.brightness), 1 + self.brightness, brightness),
            contrast=_between(max(0.0, 1 - self.contrast), 1 + self.contrast, contrast),
            saturation=_between(max(0.0, 1 - self.saturation), 1 + self.saturation, saturation),
            hue=_between(-self.hue, self.hue, hue),
            gray=gray < self.gray_p,
            blur=blur < self.blur_p,
            sigma=_between(low, high, sigma),
            solarize=solarization < self.solarize_p,
        )

    def __call__(
        self,
        images: UInt8[Tensor, "B C H W"],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Float32[Tensor, "B C H W"]:
        """The images with their colors changed, in 0 .. 255. Row b of u belongs to image b, whatever else is there.

        normalized: mean and std, for what normalize would make of the result; a CPU does that faster here, while an
        image is in its cache.

        Raises:
            ValueError: colors are to change that these channels do not have, or the images are too small for the blur.
        """
        self._check(images.shape[1:])
        steps = self._steps(self.strengths(u), images.device)
        affine = normalized and _affine(*normalized, images.device)
        changed = torch.empty(images.shape, device=images.device)
        alone = images.device.type == "cpu" and 4 * math.prod(images.shape[1:]) > SMALL_BYTES
        together = 1 if alone else max(1, len(images))
        for start in range(0, len(images), together):
            chunk = slice(start, start + together)
            floats = changed[chunk].copy_(images[chunk])
            _change(floats, [(operation, chosen[chunk], factors[chunk]) for operation, chosen, factors in steps])
            if affine:
                floats.mul_(affine[0]).add_(affine[1])
        return changed

    def _steps(self, strengths: Strengths, device: torch.device) -> list[Step]:
        """In order. An operation of the jitter stands once at each place, with the images that it changes there."""
        brightness, contrast, saturation, hue, sigma = (
            _on(device, getattr(strengths, name)).float()
            for name in ("brightness", "contrast", "saturation", "hue", "sigma")
        )
        jitters = (
            (adjust_brightness, self.brightness, brightness),
            (adjust_contrast, self.contrast, contrast),
            (mix, self.saturation, saturation_mix(saturation)),
            (turn_hue, self.hue, hue_mix(hue)),
        )
        steps: list[Step] = [
            (operation, strengths.jitter & (strengths.order[:, place] == number), factor)
            for place in range(4)
            for number, (operation, strength, factor) in enumerate(jitters)
            if strength > 0
        ]
        return [
            *steps,
            (lambda images, _, out: to_gray(images, out), strengths.gray, sigma),
            (convolve, strengths.blur, gaussian_band(sigma, self.blur_radius)),
            (lambda images, _, out: solarize(images, out), strengths.solarize, sigma),
        ]

    def _check(self, shape: torch.Size) -> None:
        channels, height, width = shape
        colored = self.jitter_p > 0 and max(self.contrast, self.saturation, self.hue) > 0
        if channels not in (1, 3) and (colored or self.gray_p > 0):
            raise ValueError(
                f"method.jitter_p={self.jitter_p} and method.gray_p={self.gray_p} change colors, which "
                f"encoder.channels={channels} does not have: set both to 0, or give images of 1 or 3 channels"
            )
        if self.blur_p > 0 and min(height, width) <= self.blur_radius:
            raise ValueError(
                f"crops of {height} x {width} pixels are too small for a blur of {self.blur_sigma[1]} pixels: "
                f"set method.blur_p=0, or make them larger than {self.blur_radius} pixels a side"
            )


def _between(low: float, high: float, u: np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def _affine(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Gain and shift per channel that normalize pixels in 0 .. 255."""
    gain = torch.tensor([1 / (255 * value) for value in std]).view(-1, 1, 1)
    shift = torch.tensor([-value / spread for value, spread in zip(mean, std, strict=True)]).view(-1, 1, 1)
    return gain.to(device, non_blocking=True), shift.to(device, non_blocking=True)


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _change(images: Images, steps: list[Step]) -> None:
    """All steps, in place. Which images a step changes is known on the host: no mask indexes on a device."""
    for operation, chosen, factors in steps:
        index = np.flatnonzero(chosen)
        if len(index) == len(images):
            operation(images, factors, images)
        elif len(index):
            places = _on(images.device, index)
            some = images.index_select(0, places)
            images.index_copy_(0, places, operation(some, factors.index_select(0, places), some))
