"""Photometry: what happens to colours, batched on the device.

Letters: B images, C channels, H W pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor


def normalize(
    images: UInt8[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """(images / 255 - mean) / std per channel, as one multiply-add on the device where the batch is.

    mean and std are of pixels in [0, 1].
    """
    gain = torch.tensor([1 / (255 * value) for value in std]).view(-1, 1, 1)
    shift = torch.tensor([-value / spread for value, spread in zip(mean, std, strict=True)]).view(-1, 1, 1)
    gain, shift = (tensor.to(images.device, non_blocking=True) for tensor in (gain, shift))
    return torch.addcmul(shift, images.float(), gain)
