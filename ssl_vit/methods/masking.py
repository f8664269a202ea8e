"""Patch masks: bool over patches only (the class token has no index), True = hidden from the encoder.

Letters: B images, N patches, n patches kept, M = N - n hidden; for blocks h x w grid, a images not finished, t tries.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

PROPOSALS = 10  # blocks proposed in a round


def num_keep(patches: int, ratio: float) -> int:
    """How many of N patches stay visible: int(N * (1 - ratio)), the authors' rounding (MAE, random_masking)."""
    return int(patches * (1 - ratio))


def random_masking(noise: Float[Tensor, "B N"], kept: int) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B M"]]:
    """visible_index, hidden_index: the `kept` patches of lowest noise, and the others (arXiv:2111.06377, section 3)."""
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


def index_to_mask(hidden_index: Int[Tensor, "B M"], patches: int) -> Bool[Tensor, "B N"]:
    """The mask that hides the given patches."""
    mask = torch.zeros(len(hidden_index), patches, dtype=torch.bool, device=hidden_index.device)
    return mask.scatter_(1, hidden_index, True)


def scaled_block(grid: tuple[int, int]) -> int:
    """BEiT's smallest block, 16 of 14 x 14 patches, in proportion on a grid of h x w; to the nearest, at least 1."""
    return max(1, round(16 * grid[0] * grid[1] / 196))


@functools.cache
def _spans(length: int) -> Float32[np.ndarray, "s length"]:
    """Row start * length + side is 1 at start .. start + side - 1 and 0 elsewhere; start <= length, side < length."""
    start, side, line = np.arange(length + 1)[:, None, None], np.arange(length)[:, None], np.arange(length)
    return ((line >= start) & (line < start + side)).astype(np.float32).reshape(-1, length)


def block_masks(
    batch: int,
    grid: tuple[int, int],
    budget: int,
    *,
    smallest: int = 16,
    aspect: float = 0.3,
    exact: bool = False,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B N"]:
    """BEiT's block-wise masking (Bao et al. 2022, arXiv:2106.08254, algorithm 1), as in the authors' code; on the CPU.

    An image is hidden block by block. Up to ten are proposed: area uniform between `smallest` and what is left of the
    budget (whichever is larger), height / width log-uniform in [aspect, 1 / aspect], rounded to patches, position
    uniform. The first that is smaller than the grid on both sides and newly hides at least one patch, within the
    budget, is taken. An image is finished when its budget is spent or no proposal can be taken: so the number hidden
    varies. Where no block was ever taken, one random patch is hidden.

    Args:
        budget: most hidden patches of an image, in [1, N), else ValueError; BEiT: 75 of 196.
        smallest: least area of a proposed block, in patches; scaled_block gives it for other grids.
        aspect: least height / width of a proposed block, in (0, 1].
        exact: hide further random patches, up to the budget (BEiT v2, arXiv:2208.06366, authors' code).
        generator: of the CPU, the only source of randomness; None is PyTorch's own.
    """
    h, w = grid
    if not 1 <= budget < h * w:
        raise ValueError(f"budget={budget} must be at least 1 and below the {h * w} patches of a {h} x {w} grid")
    # NumPy: on arrays this small its calls cost about half of PyTorch's.
    visible = np.ones((batch, h, w), dtype=np.float32)
    rest = np.full((batch, 1), budget, dtype=np.float32)  # of the budget
    active = np.arange(batch)
    uniform = functools.partial(torch.rand, generator=generator, dtype=torch.float32, device="cpu")
    while len(active):
        u = uniform(4, len(active), PROPOSALS).numpy()
        area = smallest + (rest[active] - smallest) * u[0]  # [a, t], as all that is proposed
        ratio = np.exp(math.log(aspect) * (1 - 2 * u[1]))
        height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (height < h) & (width < w)
        height, width = height * fits, width * fits  # one that does not fit is empty
        top, start = np.floor(u[2] * (h - height + 1)), np.floor(u[3] * (w - width + 1))
        # Rows [a, t, h] and columns [a, t, w] of the blocks: looked up, 3 to 10 times faster than compared.
        rows = _spans(h).take((top * h + height).astype(np.int64), axis=0)
        columns = _spans(w).take((start * w + width).astype(np.int64), axis=0)
        new = np.einsum("atw,atw->at", rows @ visible[active], columns)  # patches each proposal would newly hide
        accepted = (new > 0) & (new <= rest[active])
        placed = accepted.any(axis=1).nonzero()[0]
        first = accepted[placed].argmax(axis=1)
        active = active[placed]
        visible[active] *= 1 - rows[placed, first][:, :, None] * columns[placed, first][:, None, :]
        rest[active] -= new[placed, first][:, None]
        active = active[rest[active, 0] > 0]
    mask, fewest = torch.from_numpy(visible.reshape(batch, h * w) == 0), budget if exact else 1
    short = mask.sum(dim=1) < fewest
    # Random patches are added: in the order of the noise, those that are hidden already come first, below 0.
    added, _ = random_masking(uniform(int(short.sum()), h * w) - mask[short].float(), fewest)
    mask[short] = index_to_mask(added, h * w)
    return mask
