"""Position embeddings of a patch grid: the fixed sine-cosine table, and resampling of any table to another grid.

Letters: h x w patch grid, N = h * w patches, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sincos_2d(h: int, w: int, width: int) -> Float[Tensor, "1 N D"]:
    """Fixed 2-D sine-cosine table, row-major over the grid (MAE, arXiv:2111.06377, appendix A.1; after MoCo v3).

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of
    frequencies 10000^(-i / (D / 4)). Computed in float64, returned in float32.

    Raises:
        ValueError: width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, not {width}")
    quarter = width // 4
    with torch.device("cpu"):  # on the meta device this arithmetic would import torch._dynamo, four seconds
        frequency = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]  # each [N, D / 4]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return table.float()[None].to(torch.get_default_device())


def resample(table: Float[Tensor, "1 N D"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "1 n D"]:
    """A table of the old (h, w) grid, bicubically resampled in float32 to the new one, antialiased as timm does it."""
    if old == new:
        return table
    grid = table.float().unflatten(1, old).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)
