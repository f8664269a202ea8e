"""Photometry: what happens to colours, batched on the device where the pictures are.

The chain of colour changes is that of DINO (Caron et al., 2021, arXiv:2104.14294, from BYOL: Grill et al., 2020,
arXiv:2006.07733, appendix B). Randomness comes in as uniform numbers on the host, so nothing here waits for a GPU.

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

from ssl_vit.data.colours import (
    Images,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    convolve,
    gaussian_band,
    solarize,
    to_grey,
)

ORDERS = np.array(list(itertools.permutations(range(4))))
"""Every order of the jitter's operations; 0 brightness, 1 contrast, 2 saturation, 3 hue."""
CACHED_BYTES = 2**19
"""Floats that a CPU changes at a time: they stay in a core's L2 cache from one operation to the next."""


def normalize(
    images: Shaped[Tensor, "B C H W"],
    mean: Sequence[float],
    std: Sequence[float],
    out: Float32[Tensor, "B C H W"] | None = None,
) -> Float32[Tensor, "B C H W"]:
    """(images / 255 - mean) / std per channel, as one multiply-add on the device where the batch is.

    images: uint8, or floats in 0 .. 255. mean and std are of pixels in [0, 1]. out: where the result goes; float images
    may be overwritten so.
    """
    gain = torch.tensor([1 / (255 * value) for value in std]).view(-1, 1, 1)
    shift = torch.tensor([-value / spread for value, spread in zip(mean, std, strict=True)]).view(-1, 1, 1)
    gain, shift = (tensor.to(images.device, non_blocking=True) for tensor in (gain, shift))
    if images.is_floating_point() and images.device.type == "cpu":
        return torch.mul(images, gain, out=out).add_(shift)  # two fast passes; a CPU's addcmul is one slow one
    return torch.addcmul(shift, images.float(), gain, out=out)


class Strengths(NamedTuple):
    """What happens to each image of a batch, on the host."""

    jitter: Bool[np.ndarray, " B"]
    order: Int64[np.ndarray, "B 4"]
    """Row of ORDERS: the operation that comes first, second, third and last."""
    brightness: Float64[np.ndarray, " B"]
    contrast: Float64[np.ndarray, " B"]
    saturation: Float64[np.ndarray, " B"]
    hue: Float64[np.ndarray, " B"]
    grey: Bool[np.ndarray, " B"]
    blur: Bool[np.ndarray, " B"]
    sigma: Float64[np.ndarray, " B"]
    """Standard deviation of the blur, pixels."""
    solarize: Bool[np.ndarray, " B"]


Operation = Callable[[Tensor, Tensor], Tensor]
"""From images [B, C, H, W] and a factor for each [B, ...] to images, which may be the same tensor."""


class Plan(NamedTuple):
    """What is done to a batch, in order: S operations, the images that each of them meets, and by how much."""

    operations: list[Operation]
    chosen: Bool[np.ndarray, "S B"]
    factors: list[Shaped[Tensor, "B ..."]]
    """On the device of the images."""


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """Colour jitter, then grey, Gaussian blur and solarisation, each with its probability, drawn for each image.

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
    """The shift is uniform in -hue .. hue, a share of the colour circle; at most 0.5."""
    jitter_p: float = 0.8
    """Probability of the four operations above."""
    grey_p: float = 0.2
    """Probability of grey."""
    blur_p: float
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """The blur's standard deviation is uniform in this range, pixels; the kernel ends at three of the largest."""
    solarize_p: float
    """Probability of solarisation."""

    @property
    def draws(self) -> int:
        """Uniform numbers that one image takes."""
        return len(Strengths._fields)

    @property
    def blur_radius(self) -> int:
        """Pixels from the middle of the blur's kernel to its end; 6 for the default, a kernel of 13."""
        return math.ceil(3 * self.blur_sigma[1])

    def strengths(self, u: Float64[np.ndarray, "B draws"]) -> Strengths:
        """What these uniform numbers mean: one column a field of Strengths, in that order."""
        jitter, order, brightness, contrast, saturation, hue, grey, blur, sigma, solarisation = u.T
        low, high = self.blur_sigma
        return Strengths(
            jitter=jitter < self.jitter_p,
            order=ORDERS[(order * len(ORDERS)).astype(np.int64)],
            brightness=_between(max(0.0, 1 - self.brightness), 1 + self.brightness, brightness),
            contrast=_between(max(0.0, 1 - self.contrast), 1 + self.contrast, contrast),
            saturation=_between(max(0.0, 1 - self.saturation), 1 + self.saturation, saturation),
            hue=_between(-self.hue, self.hue, hue),
            grey=grey < self.grey_p,
            blur=blur < self.blur_p,
            sigma=_between(low, high, sigma),
            solarize=solarisation < self.solarize_p,
        )

    def __call__(
        self, images: UInt8[Tensor, "B C H W"], u: Float64[np.ndarray, "B draws"]
    ) -> Float32[Tensor, "B C H W"]:
        """The images with their colours changed, in 0 .. 255; row b of u belongs to image b, whatever else is there.

        Raises:
            ValueError: colours are to change that these channels do not have, or the images are too small for the blur.
        """
        self._check(images.shape[1:])
        plan = self._plan(self.strengths(u), images.device)
        if images.device.type != "cpu":
            return _change(images.float(), plan, np.arange(len(images)))
        changed = torch.empty(images.shape)
        count = max(1, CACHED_BYTES // (4 * images[:1].numel()))
        # Images with the same operations in the same order are neighbours, so that few are gathered for a step.
        alike = np.lexsort(plan.chosen[::-1])
        for part in np.split(alike, range(count, len(alike), count)):
            floats = images.index_select(0, torch.from_numpy(part)).float()
            for place, image in zip(part.tolist(), _change(floats, plan, part), strict=True):
                changed[place] = image
        return changed

    def _plan(self, strengths: Strengths, device: torch.device) -> Plan:
        """An operation of the jitter stands once at each place of the order, with the images that it meets there."""
        jitters = (
            (adjust_brightness, self.brightness, strengths.brightness),
            (adjust_contrast, self.contrast, strengths.contrast),
            (adjust_saturation, self.saturation, strengths.saturation),
            (adjust_hue, self.hue, strengths.hue),
        )
        steps = [
            (
                _in_place(operation),
                strengths.jitter & (strengths.order[:, place] == number),
                _on(device, factor).float(),
            )
            for place in range(4)
            for number, (operation, strength, factor) in enumerate(jitters)
            if strength > 0
        ]
        sigma = _on(device, strengths.sigma).float()
        steps += [
            (lambda images, _: to_grey(images), strengths.grey, sigma),
            (convolve, strengths.blur, gaussian_band(sigma, self.blur_radius)),
            (lambda images, _: solarize(images), strengths.solarize, sigma),
        ]
        operations, chosen, factors = zip(*steps, strict=True)
        return Plan(list(operations), np.stack(chosen), list(factors))

    def _check(self, shape: torch.Size) -> None:
        channels, height, width = shape
        coloured = self.jitter_p > 0 and max(self.contrast, self.saturation, self.hue) > 0
        if channels not in (1, 3) and (coloured or self.grey_p > 0):
            raise ValueError(
                f"method.jitter_p={self.jitter_p} and method.grey_p={self.grey_p} change colours, which "
                f"encoder.channels={channels} does not have: set both to 0, or give pictures of 1 or 3 channels"
            )
        if self.blur_p > 0 and min(height, width) <= self.blur_radius:
            raise ValueError(
                f"views of {height} x {width} pixels are too small for a blur of {self.blur_sigma[1]} pixels: "
                f"set method.blur_p=0, or make them larger than {self.blur_radius} pixels a side"
            )


def _between(low: float, high: float, u: np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def _in_place(operation: Callable[..., Tensor]) -> Operation:
    return lambda images, factor: operation(images, factor, out=images)


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _change(images: Images, plan: Plan, part: Int64[np.ndarray, " b"]) -> Images:
    """These images, which are a part of the plan's batch, after all operations; they may be written into.

    Which an operation meets is known on the host, so that nothing is indexed by a mask on a device.
    """
    chosen = plan.chosen[:, part]
    for number in np.flatnonzero(chosen.any(axis=1)).tolist():
        index = np.flatnonzero(chosen[number])
        factor = plan.factors[number].index_select(0, _on(images.device, part[index]))
        if len(index) == len(part):
            images = plan.operations[number](images, factor)
        else:
            places = _on(images.device, index)
            images.index_copy_(0, places, plan.operations[number](images.index_select(0, places), factor))
    return images
