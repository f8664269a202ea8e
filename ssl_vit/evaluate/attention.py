"""Images of what an encoder attends to: attention of the class token, masks of it, colors of its patch features.

Letters: B images, H x W pixels, h x w patch grid, N = h * w patches, D width.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

QUANTILE_ROWS = 1_000_000
"""Patches of which quantiles are taken, evenly spread: torch.quantile takes no more than 16 million values."""


def attention_images(
    attention: Float[Tensor, "B heads N"], grid: tuple[int, int], patch_size: int
) -> UInt8[Tensor, "B heads H W"]:
    """One gray image a head: black where the class token does not attend, white at its strongest patch."""
    fractions = attention / attention.amax(-1, keepdim=True).clamp_min(1e-12)
    return enlarge((fractions * 255).round().to(torch.uint8).unflatten(2, grid), patch_size)


def attention_mask(attention: Float[Tensor, "*b N"], mass: float) -> Bool[Tensor, "*b N"]:
    """The fewest patches that hold at least this fraction of the attention to patches (DINO's figure 4 keeps 0.6)."""
    values, order = attention.sort(-1, descending=True)
    before = values.cumsum(-1) - values
    kept = before < mass * values.sum(-1, keepdim=True)  # a patch is kept while those before it are not enough
    return torch.zeros_like(kept).scatter(-1, order, kept)


def principal_colors(features: list[Float[Tensor, "D _ _"]]) -> list[UInt8[Tensor, "3 _ _"]]:
    """Patch features of all images on their three principal components, as red, green, blue.

    One basis for all images, so that a color means the same in each; 1st to 99th percentile over all is the range.
    """
    flat = torch.cat([maps.flatten(1).T for maps in features]).float()  # [all patches, D]
    center = flat.mean(0)
    _, _, basis = torch.linalg.svd(flat - center, full_matrices=False)
    basis = basis[:3] * basis[:3].sum(1, keepdim=True).sign()  # a singular vector's sign is arbitrary: fix it
    values = (flat - center) @ basis.T
    some = values[:: math.ceil(len(values) / QUANTILE_ROWS)]
    low, high = (torch.quantile(some, q, dim=0) for q in (0.01, 0.99))
    colors = []
    for maps in features:
        projected = (maps.flatten(1).T.float() - center) @ basis.T
        fractions = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        fractions = torch.nn.functional.pad(fractions, (0, 3 - fractions.shape[1]))
        colors.append((fractions.T.unflatten(1, maps.shape[1:]) * 255).round().to(torch.uint8))
    return colors


def enlarge(maps: UInt8[Tensor, "*b h w"], patch_size: int) -> UInt8[Tensor, "*b H W"]:
    """Each patch as a square of its size in pixels."""
    return maps.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)
