"""Values that change over training. A schedule is a function of how far the run is, and of nothing else."""

import math


def warmup_cosine(step: float, total: float, *, peak: float, final: float, warmup: float = 0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to `final` at `total`.

    MAE (arXiv:2111.06377, table 8) and DINO (arXiv:2104.14294, section 3.2) both use it by step.
    """
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / (total - warmup)) if total > warmup else 1.0
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(fraction: float, start: float, end: float) -> float:
    """From `start` to `end` by half a cosine; fraction is of the run (arXiv:2104.14294, section 3.1, for EMA)."""
    return warmup_cosine(fraction, 1.0, peak=start, final=end)


def linear(fraction: float, warmup: float, start: float, end: float) -> float:
    """From `start` at 0 to `end` at `warmup`, then constant; without a warm-up `end` from the first step."""
    return end if fraction >= warmup else start + (end - start) * fraction / warmup
