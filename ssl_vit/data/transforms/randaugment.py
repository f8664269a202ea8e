"""Augmentation for fine-tuning: a crop, a flip, then RandAugment on uint8 pixels, as a transform on the CPU workers.

RandAugment (Cubuk et al., 2020, arXiv:1909.13719) as timm has it under the name rand-m9-mstd0.5-inc1, with which
MAE's, BEiT's and DeiT's authors fine-tune: the fifteen operations whose strength grows with the magnitude, drawn with
replacement, each carried out with probability .5 at a magnitude of its own.

Letters: C channels, H W pixels.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional as F

from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop

Image = UInt8[Tensor, "C H W"]
LARGEST = 10.0
"""The magnitude at which an operation is strongest."""
APPLIED = 0.5
"""Probability that an operation drawn is carried out."""
OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""In timm's order (its _RAND_INCREASING_TRANSFORMS)."""


def transform(image: Image, matrix: Float32[Tensor, "2 3"], fill: Sequence[float]) -> Image:
    """Pixel (x, y) becomes the one at matrix (x, y, 1), between pixels bilinearly, outside the image `fill`.

    As PIL's affine transform: coordinates count from the image's corner, a pixel's middle is at .5.
    """
    H, W = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ matrix.T  # [H, W, 2]
    sides = torch.tensor([W, H])
    inside = ((at >= 0) & (at < sides)).all(-1)
    sampled = grid_sample(image[None].float(), (at / sides * 2 - 1)[None], padding_mode="border", align_corners=False)[
        0
    ]
    color = torch.tensor(fill, dtype=torch.float32)[:, None, None]
    return torch.where(inside, sampled, color).round_().to(torch.uint8)


def rotation(degrees: float, height: int, width: int) -> Float32[Tensor, "2 3"]:
    """The matrix that turns an image about its middle, counter-clockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return torch.tensor([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])


def operate(name: str, image: Image, magnitude: float, sign: int, fill: Sequence[float]) -> Image:
    """One of OPERATIONS.

    Args:
        magnitude: in 0 .. 10, in timm's units: 10 turns by 30 degrees, shears by .3, shifts by .45 of a side, changes
            color, contrast, brightness and sharpness by .9, keeps one bit, inverts all, adds 110.
        sign: 1 or -1, the direction of what has two.
        fill: value of each channel where a moved image leaves a gap, in 0 .. 255.
    """
    fraction, (height, width) = magnitude / LARGEST, image.shape[-2:]
    if name == "autocontrast":
        return F.autocontrast(image)
    if name == "equalize":
        return F.equalize(image)
    if name == "invert":
        return 255 - image
    if name == "posterize":
        return F.posterize(image, max(1, 4 - int(fraction * 4)))
    if name == "solarize":
        threshold = 256 - int(fraction * 256)
        return image if threshold > 255 else torch.where(image >= threshold, 255 - image, image)
    if name == "solarize_add":
        return torch.where(image < 128, image + int(fraction * 110), image)
    if name in ("color", "contrast", "brightness", "sharpness"):
        change = {
            "color": F.adjust_saturation,
            "contrast": F.adjust_contrast,
            "brightness": F.adjust_brightness,
            "sharpness": F.adjust_sharpness,
        }[name]
        return change(image, max(0.1, 1 + sign * 0.9 * fraction))
    shift, shear = sign * 0.45 * fraction, sign * 0.3 * fraction
    matrices = {
        "rotate": lambda: rotation(sign * 30 * fraction, height, width),
        "shear_x": lambda: torch.tensor([[1.0, shear, 0.0], [0.0, 1.0, 0.0]]),
        "shear_y": lambda: torch.tensor([[1.0, 0.0, 0.0], [shear, 1.0, 0.0]]),
        "translate_x": lambda: torch.tensor([[1.0, 0.0, shift * width], [0.0, 1.0, 0.0]]),
        "translate_y": lambda: torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, shift * height]]),
    }
    return transform(image, matrices[name](), fill)


class Augmented:
    """A random crop and flip, then RandAugment: what an image becomes each time it is trained on.

    crop: the geometry. magnitude, deviation, operations: RandAugment's; magnitude 0 leaves it out. fill: value of each
    channel in gaps, in 0 .. 255 (the mean of the training images, as in timm).
    """

    def __init__(self, crop: RandomCrop, magnitude: float, std: float, operations: int, fill: Sequence[float]) -> None:
        self.crop, self.magnitude, self.std, self.fill = crop, magnitude, std, fill
        self.operations = operations if magnitude > 0 else 0
        self.num_random = crop.num_random + 4 * self.operations

    def __call__(self, image: Image, u: Float64[np.ndarray, " num_random"]) -> UInt8[Tensor, "C h w"]:
        view = self.crop(image, u[: self.crop.num_random])
        for which, applied, strength, sign in u[self.crop.num_random : self.num_random].reshape(-1, 4).tolist():
            if applied < APPLIED:
                normal = NormalDist().inv_cdf(min(max(strength, 1e-12), 1 - 1e-12))
                magnitude = min(max(self.magnitude + self.std * normal, 0.0), LARGEST)
                name = OPERATIONS[int(which * len(OPERATIONS))]
                view = operate(name, view, magnitude, 1 if sign < 0.5 else -1, self.fill)
        return view


class Jittered:
    """A transform, then color jitter in batches on the device.

    colors: the jitter. Its draws come last.
    """

    def __init__(self, transform: Augmented, colors: ColorAugmentation) -> None:
        self.transform, self.colors = transform, colors
        self.num_random = transform.num_random + colors.num_random

    def __call__(self, image: Image, u: Float64[np.ndarray, " num_random"]) -> UInt8[Tensor, "C h w"]:
        return self.transform(image, u[: self.transform.num_random])

    def color(
        self,
        images: UInt8[Tensor, "B C H W"],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]],
    ) -> Float32[Tensor, "B C H W"]:
        """The images with their colors changed, normalized by mean and std."""
        return self.colors(images, u[:, self.transform.num_random :], normalized)
