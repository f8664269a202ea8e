"""Mixup, CutMix and random erasing of whole batches, on the device where they are.

What is drawn comes from numpy on the host, so nothing here waits for a GPU.

Letters: B images, C channels, H W pixels, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

ATTEMPTS = 10
"""Boxes tried for an image that is erased, as in timm; then it stays whole."""
AREA = (0.02, 1 / 3)
"""Share of the image that is erased (timm's default)."""
ASPECT = (0.3, 1 / 0.3)
"""Height / width of what is erased, uniform in its logarithm (arXiv:1708.04896, section 3.2)."""


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself in reverse order."""

    fraction: float
    """Of each image that stays: 1 changes nothing."""
    box: tuple[int, int, int, int] | None = None
    """(top, bottom, left, right) in pixels that come from the other image; None blends all pixels."""


def draw_mix(
    height: int,
    width: int,
    mixup: float,
    cutmix: float,
    mix_p: float,
    switch_p: float,
    random: np.random.Generator,
) -> Mix:
    """One mix for a batch of images of height x width pixels, as timm.data.Mixup draws it for whole batches.

    CutMix's share is corrected for a box that the edge cuts off.
    """
    if not (mixup or cutmix) or random.uniform() >= mix_p:
        return Mix(1.0)
    boxed = bool(cutmix) and (not mixup or random.uniform() < switch_p)
    alpha = cutmix if boxed else mixup
    fraction = float(random.beta(alpha, alpha))
    if not boxed or fraction == 1:
        return Mix(fraction)
    side = math.sqrt(1 - fraction)
    h, w = int(height * side), int(width * side)
    y, x = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(y - h // 2, 0), min(y + (h + 1) // 2, height)
    left, right = max(x - w // 2, 0), min(x + (w + 1) // 2, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_images(images: Float[Tensor, "B C H W"], mix: Mix) -> Float[Tensor, "B C H W"]:
    """Each image mixed with its partner, the batch read backwards."""
    if mix.fraction == 1:
        return images
    if mix.box is None:
        return images * mix.fraction + images.flip(0) * (1 - mix.fraction)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def mix_targets(labels: Int64[Tensor, " B"], classes: int, mix: Mix, smoothing: float = 0.0) -> Float[Tensor, "B K"]:
    """One-hot labels, smoothed, mixed as the images are.

    Args:
        smoothing: share that is spread evenly over all classes (arXiv:1512.00567, section 7).
    """
    targets = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return targets * mix.fraction + targets.flip(0) * (1 - mix.fraction)


def draw_boxes(
    count: int, height: int, width: int, probability: float, random: np.random.Generator
) -> Int64[Tensor, "B 4"]:
    """(top, bottom, left, right) of what is erased in each image, in pixels; all 0 where nothing is."""
    boxes = np.zeros((count, 4), dtype=np.int64)
    for number in np.flatnonzero(random.uniform(size=count) < probability):
        for _ in range(ATTEMPTS):
            area = random.uniform(*AREA) * height * width
            aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
                boxes[number] = top, top + h, left, left + w
                break
    return torch.from_numpy(boxes)


def erase(
    images: Float[Tensor, "B C H W"], boxes: Int64[Tensor, "B 4"], generator: torch.Generator | None = None
) -> Float[Tensor, "B C H W"]:
    """Normalized images with standard normal noise in their boxes.

    generator: of the noise, on the images' device; None is PyTorch's own.
    """
    top, bottom, left, right = boxes.to(images.device, non_blocking=True).view(-1, 4, 1, 1, 1).unbind(1)
    row = torch.arange(images.shape[2], device=images.device)[:, None]
    column = torch.arange(images.shape[3], device=images.device)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # [B, 1, H, W]
    noise = torch.empty_like(images).normal_(generator=generator)
    return torch.where(inside, noise, images)
