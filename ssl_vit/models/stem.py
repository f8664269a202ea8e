"""The stem: images cut into patches, patches to tokens, and back (arXiv:2010.11929, equation 1).

Letters: B images, C channels, H x W pixels, P patch side, h x w patch grid, N = h * w patches, n of them, F = C * P * P
pixel values of a patch, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def patchify(
    images: Float[Tensor, "B C H W"], patch_size: int, index: Int[Tensor, "B n"] | None = None
) -> Float[Tensor, "B _ F"]:
    """Cut images into flat patches, row-major over the grid; inside a patch channel, row, column.

    index: which patches of each image, in which order; None means all. Only those are copied.
    """
    B, C, H, W = images.shape
    P, h, w = patch_size, H // patch_size, W // patch_size
    patches = images.view(B, C, h, P, w, P).permute(0, 2, 4, 1, 3, 5)  # [B, h, w, C, P, P]
    if index is not None:
        image = torch.arange(B, device=index.device)[:, None]
        return patches[image, index // w, index % w].flatten(2)
    return patches.reshape(B, h * w, C * P * P)


def unpatchify(pixels: Float[Tensor, "B N F"], patch_size: int, h: int, w: int) -> Float[Tensor, "B C H W"]:
    """The inverse of patchify: flat patches of an h x w grid to images."""
    patches = pixels.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, (h, w))  # [B, h, w, C, P, P]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class PatchEmbed(nn.Module):
    """Pixels of a patch to a token, by one linear map; kept as a convolution's weight, as timm names and shapes it."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Float[Tensor, "B n F"]) -> Float[Tensor, "B n D"]:
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
