"""Transforms of others (torchvision, lightly, timm, a function), seeded for each image. Letters: C H W of an image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ssl_vit.data.rng import seeded_globals
from ssl_vit.data.sources.base import one_line
from ssl_vit.data.transforms.crops import Transform


class TransformError(ValueError):
    """What a transform raised, or made, that cannot be used; in one line, also out of a data worker."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rsplit("TransformError: ", 1)[-1].strip())  # a worker hands over its traceback's text


class SeededTransform:
    """Any transform of an image, the global generators of torch, numpy and Python seeded by its random number.

    It gets a PIL image, as from a data set of torchvision; where it raises on the first one, uint8 [C, H, W], as always
    where C is not 1 or 3, which PIL lacks. What it makes are tensors [C, h, w] or PIL images, one or a list of them; a
    list of one is one. uint8 is normalized on the device, floats stay as they are.
    """

    num_random = 1

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self._takes: list[Callable[[Tensor], Any]] = [F.to_pil_image, torch.clone]  # then the one that it worked with

    def __call__(self, image: UInt8[Tensor, "C H W"], u: Float64[np.ndarray, " 1"]) -> Tensor | list[Tensor]:
        """Raises TransformError."""
        reasons = []
        for given in self._takes if len(image) in (1, 3) else [torch.clone]:
            with seeded_globals(int(u[0] * 2**53), torch.device("cpu")):
                try:
                    made = self.function(given(image))
                except Exception as error:
                    kind = "a uint8 tensor [C, H, W]" if given is torch.clone else "a PIL image"
                    reasons.append(f"{type(error).__name__} ({one_line(error)}) on {kind}")
                    continue
            self._takes = [given]
            crops = [as_tensor(crop) for crop in (made if isinstance(made, list | tuple) else [made])]
            return crops[0] if len(crops) == 1 else crops
        raise TransformError(f"transform= raised {', and '.join(reasons)}")


def as_tensor(crop: Any) -> Tensor:
    """What a transform made as a tensor. TransformError where it is no image of uint8 or floats."""
    if isinstance(crop, Image.Image):
        return F.pil_to_tensor(crop)
    if isinstance(crop, Tensor) and crop.ndim == 3 and (crop.dtype == torch.uint8 or crop.is_floating_point()):
        return crop.as_subclass(Tensor)
    kind = f"{crop.dtype} {list(crop.shape)}" if isinstance(crop, Tensor) else type(crop).__name__
    raise TransformError(f"transform= made {kind}, but must make tensors [C, h, w] of uint8 or floats")


def as_transform(transform: Any) -> Transform:
    """A Transform as it is, any other callable seeded. ValueError where it is neither."""
    if isinstance(transform, Transform):
        return transform
    if not callable(transform):
        rule = "a callable on a PIL image or a uint8 tensor, or one of ssl_vit.data.transforms"
        raise ValueError(f"transform={transform!r} must be {rule}")
    return SeededTransform(transform)
