"""Patch masks: bool over patches only (the class token has no index), True = hidden from the encoder.

Letters: B images, N patches, n patches kept, M = N - n hidden.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def kept_patches(patches: int, ratio: float) -> int:
    """How many of N patches stay visible: int(N * (1 - ratio)), the authors' rounding (MAE, random_masking)."""
    return int(patches * (1 - ratio))


def split_by_noise(noise: Float[Tensor, "B N"], kept: int) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B M"]]:
    """Keep the `kept` patches of lowest noise of each image (arXiv:2111.06377, section 3, 'Simple implementation').

    Returns:
        visible_index, hidden_index: patches in the order of their noise.
    """
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


def as_mask(hidden_index: Int[Tensor, "B M"], patches: int) -> Bool[Tensor, "B N"]:
    """The mask that hides the given patches."""
    mask = torch.zeros(len(hidden_index), patches, dtype=torch.bool, device=hidden_index.device)
    return mask.scatter_(1, hidden_index, True)
