"""Positions of a patch grid: the fixed sine-cosine table, BEiT's relative bias, resampling of both to another grid.

Letters: h x w patch grid, N = h * w patches, S = 1 + N tokens, D width, R = (2h - 1)(2w - 1) + 3 relations.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

Grid = tuple[int, int]  # patches (h, w) of an image


def sincos_2d(h: int, w: int, width: int) -> Float[Tensor, "1 N D"]:
    """Fixed 2-D sine-cosine table, row-major over the grid (MAE, arXiv:2111.06377, appendix A.1; after MoCo v3).

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of
    frequencies 10000^(-i / (D / 4)); computed in float64. Raises ValueError unless D is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, not {width}")
    quarter = width // 4
    if torch.get_default_device().type == "meta":
        return torch.empty(1, h * w, width)
    with torch.device("cpu"):
        frequency = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
        row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]  # each [N, D / 4]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return table.float()[None].to(torch.get_default_device())


def resample(table: Float[Tensor, "1 N D"], old: Grid, new: Grid, way: str = "timm") -> Float[Tensor, "1 n D"]:
    """A table of the old (h, w) grid, bicubically resampled in float32 to the new one.

    way: timm, antialiased; beit, not, as in fine-tuning by MAE's and BEiT's authors; dino, as its authors do, who give
    the new grid .1 patches more, against rounding: this moves every position a little.
    """
    if old == new:
        return table
    grid = table.float().unflatten(1, old).permute(0, 3, 1, 2)  # [1, D, h, w]
    if way == "dino":
        scales = [(patches + 0.1) / before for before, patches in zip(old, new, strict=True)]
        grid = F.interpolate(grid, scale_factor=scales, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=new, mode="bicubic", antialias=way == "timm")
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


def relation_index(h: int, w: int) -> Int64[Tensor, "S S"]:
    """Row of a relative table for each pair of tokens (query, key) of an h x w grid, class token first.

    Pairs of patches by their offset, then class token to patch, patch to class token, class token to itself (BEiT,
    arXiv:2106.08254; the authors' order).
    """
    if torch.get_default_device().type == "meta":  # where this arithmetic would import torch._dynamo, four seconds
        return torch.empty(1 + h * w, 1 + h * w, dtype=torch.int64)
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    down, right = row[:, None] - row + h - 1, column[:, None] - column + w - 1
    R = relations((h, w))
    index = torch.full((1 + h * w, 1 + h * w), R - 3)
    index[1:, 1:] = down * (2 * w - 1) + right
    index[1:, 0], index[0, 0] = R - 2, R - 1
    return index


def relations(grid: Grid) -> int:
    """Rows of a relative table of a grid."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativePositionBias(nn.Module):
    """A learned bias of the attention scores for each offset between two patches and each head (arXiv:2106.08254).

    heads: those of a table that all blocks share, named as timm's, zero at first; 0: each block has one of its own.
    """

    def __init__(self, grid: Grid, heads: int = 0) -> None:
        super().__init__()
        self.grid = grid
        if heads:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(relations(grid), heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relation_index(*grid), persistent=False)

    def forward(
        self, grid: Grid, table: Float[Tensor, "_ heads"] | None = None, way: str = "timm"
    ) -> Float[Tensor, "heads S S"]:
        """What is added to the scores, by default of the shared table; for another grid resampled in that way."""
        table, index = self.relative_position_bias_table if table is None else table, self.relative_position_index
        if grid != self.grid:
            table, index = resample_relations(table, self.grid, grid, way), relation_index(*grid).to(table.device)
        return F.embedding(index, table).permute(2, 0, 1)


def resample_relations(
    table: Float[Tensor, "_ heads"], old: Grid, new: Grid, way: str = "timm"
) -> Float[Tensor, "_ heads"]:
    """A relative table of the old (h, w) grid for the new one, bicubically; the class token's rows stay.

    way: timm, the farthest offset falls on the farthest; beit, as its authors do: see geometric_spline.
    """
    sides, wanted = [(2 * h - 1, 2 * w - 1) for h, w in (old, new)]
    offsets = table[:-3].float().T.unflatten(1, sides)[None]  # [1, heads, 2h - 1, 2w - 1]
    if way == "beit":
        rows, columns = (geometric_spline(*side).to(offsets) for side in zip(sides, wanted, strict=True))
        offsets = rows @ offsets @ columns.T
    else:
        offsets = F.interpolate(offsets, size=wanted, mode="bicubic", align_corners=True)
    return torch.cat([offsets[0].flatten(1).T.to(table.dtype), table[-3:]])


def geometric_spline(old: int, new: int) -> Float[Tensor, "new old"]:
    """The matrix from values at the offsets of an old axis to those of a new one, by BEiT's authors.

    Old offsets 0, 1, 2 ... lie at 0, 1, 1 + q, 1 + q + q^2 ...: near ones stay where they were, the farthest falls on
    the new farthest. A cubic spline (not a knot) goes through them. q is at least 1.01: a smaller grid is cut off.
    """
    from scipy.interpolate import make_interp_spline
    from scipy.optimize import brentq

    def places(q: float) -> np.ndarray:
        return np.cumsum(q ** np.arange(old // 2))

    span = new // 2
    solvable = places(1.01)[-1] < span < places(1.5)[-1]
    growth: Any = brentq(lambda q: places(q)[-1] - span, 1.01, 1.5) if solvable else 1.01
    known = np.concatenate([-places(growth)[::-1], [0], places(growth)])
    wanted = np.arange(-span, span + 1).clip(known[0], known[-1])
    return torch.from_numpy(make_interp_spline(known, np.eye(old), 3)(wanted))
