"""ColorAugmentation: what happens to colors, batched on the device where the images are.

DINO's chain (Caron et al., 2021, arXiv:2104.14294, from BYOL: Grill et al., 2020, arXiv:2006.07733, appendix B), with
torchvision's operations and a factor for each image, in place on floats in 0 .. 255; no wait for a device. With one
channel, what concerns color changes nothing. Letters: B images, C channels, H W pixels.
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
from torch.nn.functional import pad

from ssl_vit.models.preprocess import affine

Images = Float32[Tensor, "B C H W"]
Factor = Float32[Tensor, " B"]
ORDERS = np.array(list(itertools.permutations(range(4))))  # 0 brightness, 1 contrast, 2 saturation, 3 hue
SMALL_BYTES = 2**16  # larger images are changed one by one on a CPU, to stay in a core's cache
BLOCK = 16  # rows or columns that the blur makes at a time; measured fastest of 8 to 224 on a CPU
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601 in torchvision's digits
_LUMA = torch.tensor(LUMA)


class Strengths(NamedTuple):
    """What happens to each image of a batch, on the host."""

    jitter: Bool[np.ndarray, " B"]
    order: Int64[np.ndarray, "B 4"]  # Row of ORDERS: the operation that comes first, second, third and last.
    brightness: Float64[np.ndarray, " B"]
    contrast: Float64[np.ndarray, " B"]
    saturation: Float64[np.ndarray, " B"]
    hue: Float64[np.ndarray, " B"]
    gray: Bool[np.ndarray, " B"]
    blur: Bool[np.ndarray, " B"]
    sigma: Float64[np.ndarray, " B"]  # Standard deviation of the blur, pixels.
    solarize: Bool[np.ndarray, " B"]


Step = tuple[Callable[[Tensor, Tensor], Tensor], Bool[np.ndarray, " B"], Shaped[Tensor, "B ..."]]
"""An operation, the images of the batch that it changes, and by how much: the factors, on the images' device."""


@dataclass(frozen=True, kw_only=True)
class ColorAugmentation:
    """Color jitter, then gray, Gaussian blur and solarization, each with its probability, drawn for each image.

    Strengths are those of torchvision's ColorJitter, order included; defaults are DINO's (BYOL, appendix B).
    """

    brightness: float = 0.4  # the factor is uniform in max(0, 1 - it) .. 1 + it; the next two likewise
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # The shift is uniform in -hue .. hue, a fraction of the color circle; at most 0.5.
    jitter_p: float = 0.8  # Probability of the four operations above.
    gray_p: float = 0.2
    blur_p: float
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # std, pixels
    solarize_p: float

    @property
    def num_random(self) -> int:
        """Uniform numbers that one image takes."""
        return len(Strengths._fields)

    @property
    def blur_radius(self) -> int:
        """Pixels from the middle of the blur's kernel, three boxes, to its end; 6 for the default."""
        return 3 * math.floor(math.sqrt(4 * self.blur_sigma[1] ** 2 + 1) / 2 + 0.5)

    def strengths(self, u: Float64[np.ndarray, "B num_random"]) -> Strengths:
        """What these uniform numbers mean: one column a field of Strengths, in that order."""
        jitter, order, brightness, contrast, saturation, hue, gray, blur, sigma, solarization = u.T
        return Strengths(
            jitter=jitter < self.jitter_p,
            order=ORDERS[(order * len(ORDERS)).astype(np.int64)],
            brightness=_between(max(0.0, 1 - self.brightness), 1 + self.brightness, brightness),
            contrast=_between(max(0.0, 1 - self.contrast), 1 + self.contrast, contrast),
            saturation=_between(max(0.0, 1 - self.saturation), 1 + self.saturation, saturation),
            hue=_between(-self.hue, self.hue, hue),
            gray=gray < self.gray_p,
            blur=blur < self.blur_p,
            sigma=_between(*self.blur_sigma, sigma),
            solarize=solarization < self.solarize_p,
        )

    def __call__(
        self,
        images: UInt8[Tensor, "B C H W"],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Float32[Tensor, "B C H W"]:
        """The images with their colors changed, in 0 .. 255, or normalized by mean and std (on a CPU faster here).

        ValueError: colors are to change that these channels do not have.
        """
        self._check(images.shape[1])
        steps = self._steps(self.strengths(u), images.device)
        scaling = normalized and affine(*normalized, images.device)
        changed = torch.empty(images.shape, device=images.device)
        alone = images.device.type == "cpu" and 4 * math.prod(images.shape[1:]) > SMALL_BYTES
        together = 1 if alone else max(1, len(images))
        for start in range(0, len(images), together):
            chunk = slice(start, start + together)
            floats = changed[chunk].copy_(images[chunk])
            for operation, chosen, factors in steps:  # which images change is known on the host: no mask on a device
                index = np.flatnonzero(chosen[chunk])
                if len(index) == len(floats):
                    operation(floats, factors[chunk])
                elif len(index):
                    places = _on(images.device, index)
                    some = operation(floats.index_select(0, places), factors[chunk].index_select(0, places))
                    floats.index_copy_(0, places, some)
            if scaling:
                floats.mul_(scaling[0]).add_(scaling[1])
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
        return [
            (operation, strengths.jitter & (strengths.order[:, place] == number), factor)
            for place in range(4)
            for number, (operation, strength, factor) in enumerate(jitters)
            if strength > 0
        ] + [
            (lambda images, _: to_gray(images), strengths.gray, sigma),
            (convolve, strengths.blur, gaussian_band(sigma, self.blur_radius)),
            (lambda images, _: solarize(images), strengths.solarize, sigma),
        ]

    def _check(self, channels: int) -> None:
        colored = self.jitter_p > 0 and max(self.contrast, self.saturation, self.hue) > 0
        if channels not in (1, 3) and (colored or self.gray_p > 0):
            change = f"method.jitter_p={self.jitter_p} and method.gray_p={self.gray_p} change colors"
            advice = "set both to 0, or give images of 1 or 3 channels"
            raise ValueError(f"{change}, which encoder.channels={channels} does not have: {advice}")


def _between(low: float, high: float, u: np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def adjust_brightness(images: Images, factor: Factor) -> Images:
    """Images times factor; 0 is black, 1 the image."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 255)


def adjust_contrast(images: Images, factor: Factor) -> Images:
    """Between the mean gray of the image (factor 0) and the image (1), or beyond. One or three channels."""
    mean = images.mean((2, 3))
    gray = mean @ _LUMA.to(images.device, non_blocking=True) if images.shape[1] == 3 else mean[:, 0]
    return images.mul_(factor.view(-1, 1, 1, 1)).add_(((1 - factor) * gray).view(-1, 1, 1, 1)).clamp_(0, 255)


def saturation_mix(factor: Factor) -> Float32[Tensor, "B 3 3"]:
    """Between the gray image (factor 0) and the image (1), or beyond; each channel (row) of red, green and blue."""
    luma = _LUMA.to(factor.device, non_blocking=True)
    return torch.lerp(luma.expand(3, 3), torch.eye(3, device=factor.device), factor[:, None, None])


def mix(images: Images, matrix: Float32[Tensor, "B 3 3"]) -> Images:
    """Each channel as its image's matrix mixes it from red, green and blue, cut off at 0 and 255."""
    if images.shape[1] == 1:
        return images
    return torch.clamp(torch.bmm(matrix, images.flatten(2)).view(images.shape), 0, 255, out=images)


def hue_mix(shift: Factor) -> Float32[Tensor, "B 3 4"]:
    """What each channel becomes (row) of red, green, blue, and of the sum of brightest and darkest, in turn_hue.

    shift: around the color circle, in -0.5 .. 0.5 of it; value and saturation (HSV) stay.

    Let low and high be the darkest and brightest channel of a pixel. Around the circle a channel stays at high for two
    sixths, falls for one, stays at low for two, rises for one, each in a straight line. So a turn by t in 0 .. 1 sixths
    makes red - green + (2 t - 1) blue + (1 - t) (high + low) of red, cut off at low and high: read it off in each
    sixth. Green and blue follow in a circle, a turn back swaps the two other channels, and a third of the circle moves
    each channel on by one. That is the result of going to HSV and back, without division or branches.
    """
    sixths = 6 * shift
    thirds = torch.round(sixths / 2)
    rest = sixths - 2 * thirds  # in -1 .. 1
    # of the channel itself, of the next one in the order red, green, blue, and of the one before
    parts = torch.stack([torch.ones_like(rest), 2 * (-rest).relu() - 1, 2 * rest.relu() - 1], dim=1)
    channel = torch.arange(3, device=shift.device)
    offset = (channel - channel[:, None] + thirds.long()[:, None, None]).remainder(3)
    matrix = parts[:, None].expand(-1, 3, -1).gather(2, offset)
    return torch.cat([matrix, (1 - rest.abs())[:, None, None].expand(-1, 3, 1)], dim=2)


def turn_hue(images: Images, matrix: Float32[Tensor, "B 3 4"]) -> Images:
    """Each channel as hue_mix says."""
    if images.shape[1] == 1:
        return images
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    turned = torch.bmm(matrix[:, :, :3], images.flatten(2)).view(images.shape)
    return torch.clamp(turned.addcmul_(high + low, matrix[:, :1, 3:, None]), low, high, out=images)


def to_gray(images: Images) -> Images:
    """Every channel the luma of the image. One or three channels."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return images.copy_((red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]))


def solarize(images: Images) -> Images:
    """Values from 128 up are inverted: min(value, 255 - value), without a jump between 127 and 128."""
    return torch.minimum(images, 255 - images, out=images)


def gaussian_band(sigma: Factor, radius: int) -> Float32[Tensor, "B block span"]:
    """A Gaussian blur of std sigma pixels, as PIL makes it, as a matrix: BLOCK pixels from span = BLOCK + 2 radius.

    Row i holds the kernel from column i on. PIL's is a box of fractional width, three times over (Gwosdek et al., 2011,
    Theoretical foundations of Gaussian convolution by extended box filtering, equations 11 and 14): of the variance
    sigma^2 exactly, where a Gaussian taken at whole pixels loses its own below half a pixel.
    """
    whole = ((4 * sigma**2 + 1).sqrt() / 2 - 0.5).floor()
    part = (2 * whole + 1) * (sigma**2 - whole * (whole + 1)) / (6 * (whole + 1) ** 2 - 2 * sigma**2)
    half = (whole + part)[:, None]
    offset = torch.arange(-radius // 3, radius // 3 + 1, device=sigma.device).abs()
    box = (half + 1 - offset).clamp(0, 1) / (2 * half + 1)  # [B, 2 radius / 3 + 1]
    kernel = box
    for _ in range(2):
        kernel = (pad(kernel, (len(offset) - 1,) * 2).unfold(1, len(offset), 1) @ box[:, :, None])[:, :, 0]
    # Each row is the one above moved by one: a period one longer than a row does that.
    span = BLOCK + 2 * radius
    return pad(kernel, (0, BLOCK)).repeat(1, BLOCK)[:, : BLOCK * span].view(-1, BLOCK, span)


def convolve(images: Images, band: Float32[Tensor, "B block span"]) -> Images:
    """Blurred, edges repeated as PIL does: rows, then columns, as windows times the band matrix."""
    span = band.shape[2]
    radius = (span - BLOCK) // 2
    height, width = images.shape[2:]
    below, right = -height % BLOCK, -width % BLOCK  # to whole blocks; cut off again
    whole, padded = images, pad(images, (radius, radius, radius, radius), mode="replicate")
    if below or right:
        whole = images.new_empty(*images.shape[:2], height + below, width + right)
        padded = pad(padded, (0, right, 0, below))
    rows = (band[:, None, None] @ padded.unfold(2, span, BLOCK).mT).flatten(2, 3)
    columns = rows.unfold(3, span, BLOCK).reshape(len(images), -1, span)
    torch.bmm(columns, band.mT, out=whole.view(len(images), -1, BLOCK))
    return images if whole is images else images.copy_(whole[:, :, :height, :width])
