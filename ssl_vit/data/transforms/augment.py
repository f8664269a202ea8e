"""Fine-tuning's augmentation: timm's, seeded. Letters: B images, C channels, H W pixels, K classes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_choices, rand_augment_ops
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ssl_vit.config.checks import require
from ssl_vit.config.finetune_schema import FinetuneConfig
from ssl_vit.data.rng import seeded_globals
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop

LARGEST = math.nextafter(10, 0)  # magnitude; at 10, timm asks PIL to keep no bit, which PIL refuses


def randaugment(magnitude: float, std: float, num_ops: int, fill: Sequence[int]) -> RandAugment:
    """timm's RandAugment (Cubuk et al., 2020, arXiv:1909.13719) "rand-m{magnitude}-mstd{std}-n{num_ops}-inc1".

    magnitude: in (0, 10], also between whole numbers. fill: of gaps, for each channel, in 0 .. 255. ValueError for
    other than 1 or 3 channels.
    """
    rule = f"0 for images of {len(fill)} channels: its operations are those of gray and color"
    require(len(fill) in (1, 3), "finetune.randaugment", magnitude, rule)
    hparams = {"img_mean": tuple(fill), "magnitude_std": std, "magnitude_max": LARGEST}
    hparams |= {"interpolation": Image.Resampling.BICUBIC}  # as in MAE's and BEiT's command lines
    choices = rand_augment_choices("", increasing=True)
    return RandAugment(rand_augment_ops(magnitude, hparams=hparams, transforms=choices), num_ops)


class RandAugmentCrop:
    """A random crop and flip, then RandAugment, or none, with the last uniform number as its seed."""

    def __init__(self, crop: RandomCrop, ops: RandAugment | None) -> None:
        self.crop, self.ops = crop, ops
        self.num_random = crop.num_random + (ops is not None)

    def __call__(self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]) -> UInt8[Tensor, "C h w"]:
        crop = self.crop(image, u[: self.crop.num_random])
        if self.ops is None:
            return crop
        array = crop.permute(1, 2, 0).numpy()
        with seeded_globals(int(u[self.num_random - 1] * 2**53)):
            changed = self.ops(Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]))
        return torch.from_numpy(np.array(changed)).view(array.shape).permute(2, 0, 1)


class ColorJitteredCrop:
    """A RandAugmentCrop, then color jitter in batches on the device; the random numbers of the jitter come last."""

    def __init__(self, transform: RandAugmentCrop, jitter: ColorAugmentation) -> None:
        self.transform, self.jitter = transform, jitter
        self.num_random = transform.num_random + jitter.num_random

    def __call__(self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"]) -> UInt8[Tensor, "C h w"]:
        return self.transform(image, u[: self.transform.num_random])

    def color(
        self,
        images: UInt8[Tensor, "B C H W"],
        u: Float64[np.ndarray, "B num_random"],
        normalized: tuple[Sequence[float], Sequence[float]],
    ) -> Float32[Tensor, "B C H W"]:
        """The images with their colors changed, normalized by mean and std."""
        return self.jitter(images, u[:, self.transform.num_random :], normalized)


def smooth_targets(labels: Int64[Tensor, " B"], num_classes: int, smoothing: float) -> Float[Tensor, "B K"]:
    """One-hot labels, of which `smoothing` is spread evenly over all classes (arXiv:1512.00567, section 7)."""
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


class BatchAugmentation:
    """Random erasing (arXiv:1708.04896), then mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of a batch."""

    def __init__(self, config: FinetuneConfig, num_classes: int) -> None:
        self.erasing_p, self.smoothing, self.num_classes = config.erasing_p, config.label_smoothing, num_classes
        options: Any = {"prob": config.mix_p, "switch_prob": config.switch_p, "label_smoothing": self.smoothing}
        mixes = config.mixup or config.cutmix
        self.mixup = Mixup(config.mixup, config.cutmix, num_classes=num_classes, **options) if mixes else None

    def __call__(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"], seed: int
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
        """Normalized images and their targets, a function of the arguments, which stay as they were."""
        if self.erasing_p:
            erasing = RandomErasing(self.erasing_p, mode="pixel", device=images.device)  # pyright: ignore
            with seeded_globals(seed, images.device):
                images = erasing(images.clone())
        if self.mixup is None:
            return images, smooth_targets(labels, self.num_classes, self.smoothing)
        # timm takes even batches only. The middle image of an odd one is mixed twice, the two being partners: so it
        # is mixed with itself, as it would be where timm's formula met the odd batch.
        middle, odd = (len(labels) + 1) // 2, len(labels) % 2
        images, labels = (torch.cat([given[:middle], given[middle - odd :]]) for given in (images, labels))
        with seeded_globals(seed):
            images, targets = self.mixup(images, labels)
        if odd:
            images, targets = (torch.cat([mixed[:middle], mixed[middle + 1 :]]) for mixed in (images, targets))
        return images, targets
