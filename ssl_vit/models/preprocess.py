"""What an encoder is shown of an image in evaluation: decoded, resized, the middle cut out, normalized.

Letters: B images, H W pixels, C channels, h w of the crop.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_vit.config.schema import DataConfig
from ssl_vit.config.values import described
from ssl_vit.models.decode import Bands, open_encoded, pixels, require_sane
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import statistics_of

BICUBIC = InterpolationMode.BICUBIC


def pixel_settings(metadata: dict[str, Any], where: str) -> DataConfig:
    """data.white_16bit and data.eval_crop as metadata has them, by default 65,535 and .875. ConfigError names where."""
    data = metadata.get("data", {})
    kept = {key: data[key] for key in ("white_16bit", "eval_crop") if key in data}
    return described(DataConfig(), kept, where)


class Preprocess:
    """An image as an encoder takes it: what its evaluation makes of it, or crop() the same as uint8.

    Size and channels are the encoder's, the rest is of its training: mean, std, `data.eval_crop`, `data.white_16bit`,
    the last two .875 and 65,535 where its metadata lacks them. It holds no weights: a Dataset's workers may have it.

    ValueError: the encoder does not say by which mean and std its images are normalized.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        data = pixel_settings(encoder.metadata, "this encoder")
        self.channels, self.white_16bit = encoder.config.channels, data.white_16bit
        self.center = CenterCrop(encoder.config.height_width, data.eval_crop)
        self.mean, self.std = statistics_of(encoder.metadata, "this encoder")

    def __call__(self, image: Any) -> Float32[Tensor, "C h w"]:
        """The image normalized; what it may be: see crop."""
        return normalize(self.crop(image)[None], self.mean, self.std)[0]

    def crop(self, image: Any) -> UInt8[Tensor, "C h w"]:
        """A path, a PIL image of any mode, or an array, uint8 or uint16 [H, W] or [H, W, S]; ValueError, OSError."""
        return self.center(torch.from_numpy(np.require(self.decoded(image), requirements="W")).permute(2, 0, 1))

    def decoded(self, image: Any) -> UInt8[np.ndarray, "H W C"]:
        """The image upright, in the encoder's channels."""
        if isinstance(image, str | Path):
            with open_encoded(os.fspath(image)) as opened:
                return self.decoded(opened)
        if isinstance(image, np.ndarray):
            array = image
            image = Bands(None, "array", array.shape, array.dtype, lambda: array)
        elif not isinstance(image, Image.Image):
            raise ValueError(f"an image is a path, a PIL image or a NumPy array, not a {type(image).__name__}")
        require_sane(image)
        return pixels(image, self.channels, self.white_16bit)


def normalize(
    images: Shaped[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """(images / 255 - mean) / std per channel, of uint8 or floats in 0 .. 255; mean and std are of pixels in [0, 1]."""
    gain, shift = affine(mean, std, images.device)
    return torch.addcmul(shift, images.float(), gain)


def affine(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand [C, 1, 1] that take pixels in 0 .. 255 to (pixels / 255 - mean) / std."""
    gain = torch.tensor([1 / (255 * value) for value in std]).view(-1, 1, 1)
    shift = torch.tensor([-value / spread for value, spread in zip(mean, std, strict=True)]).view(-1, 1, 1)
    return gain.to(device, non_blocking=True), shift.to(device, non_blocking=True)


class CenterCrop:
    """The middle of the image, for evaluation: resize it to cover size (h, w) / crop, then cut out size.

    crop: fraction of the resized image that is kept, per side; 224 / 256 = 0.875. Exact covers are not resampled.
    """

    num_random = 0

    def __init__(self, size: tuple[int, int], crop: float) -> None:
        self.size = size
        self.cover = tuple(round(side / crop) for side in size)

    def __call__(
        self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " num_random"] | None = None
    ) -> UInt8[Tensor, "C {self.size[0]} {self.size[1]}"]:
        height, width = image.shape[-2:]
        h, w = self.cover
        resized = [h, h * width // height] if h * width >= w * height else [w * height // width, w]
        if resized != [height, width]:
            image = F.resize(image, resized, interpolation=BICUBIC, antialias=True)
        top, left = (resized[0] - self.size[0]) // 2, (resized[1] - self.size[1]) // 2
        return image[:, top : top + self.size[0], left : left + self.size[1]]
