"""Frozen features of pictures, and what they say without labels: spread and effective rank.

Letters: B images, n pictures, D feature channels, N patches.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.data.module import ImageDataModule
from ssl_vit.encoder import VisionTransformer

Features = tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]]


@torch.inference_mode()
def extract(
    describe: Callable[[Tensor], Tensor],
    data: ImageDataModule,
    split: Literal["train", "test"],
    limit: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Features:
    """`describe(normalised images [B, C, H, W]) -> [B, D]` of a split's pictures, in float32 on the CPU, and labels.

    Args:
        limit: most pictures, 0 for all; with labels each class keeps its share.
    """
    features, labels = [], []
    for batch in data.eval_dataloader(split, limit, seed):
        images = data.normalize(batch["images"].to(device, non_blocking=True))
        features.append(describe(images).float().cpu())
        labels.append(batch["label"])
    return torch.cat(features), torch.cat(labels)


def describer(encoder: VisionTransformer, pool: str, blocks: int = 1) -> Callable[[Tensor], Tensor]:
    """The features of the encoder's last blocks, all of them where it has fewer; bf16 where the GPU has it."""
    layers = range(-min(blocks, encoder.depth), 0)
    on_gpu = next(encoder.parameters()).is_cuda

    def describe(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _"]:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            return encoder.features(images, layers, pool)

    return describe


def feature_std(features: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Spread of unit-length features, times sqrt(D): 1 when all directions are used alike, 0 when all are equal.

    SimSiam's measure of collapse (arXiv:2011.10566, section 4.1).
    """
    unit = torch.nn.functional.normalize(features, dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (arXiv:2210.02885, equation 3)."""
    values = torch.linalg.svdvals(features)
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))
