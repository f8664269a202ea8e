"""Frozen features of pictures, and what they say without labels: spread and effective rank.

Letters: B images, n pictures, D feature channels, N patches.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.schema import require
from ssl_vit.data.draws import stratified
from ssl_vit.data.module import ImageDataModule
from ssl_vit.encoder import VisionTransformer

JUDGED = 1000
"""Held-out pictures on which a block is chosen, at least."""
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


def layers_of(encoder: VisionTransformer, layer: str | int, blocks: int) -> list[int]:
    """Blocks to read, from 0: `blocks` of them up to `layer` (a number from 1, or last); for best each there is.

    ValueError where the encoder has no such block.
    """
    if layer == "best":
        return list(range(encoder.depth))
    last = encoder.depth if layer == "last" else int(layer)
    require(last <= encoder.depth, "layer", layer, f"at most {encoder.depth}, the encoder's blocks")
    return list(range(max(0, last - blocks), last))


def best_layer(
    scores_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    features: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    depth: int,
    seed: int = 0,
) -> int:
    """The block, from 1, on whose features fifths of the training pictures are told best by the other four.

    Fifths are drawn until a thousand pictures are judged, five at most: one fifth of a small set decides by chance.

    Args:
        scores_of: (training features, training labels, held-out features) -> scores per class.
        features: of every block, side by side.
    """
    fifth, hits = max(1, len(labels) // 5), [0] * depth
    for fold in range(min(5, -(-JUDGED // fifth))):
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[torch.from_numpy(stratified(labels.numpy(), fifth, seed + fold))] = True
        for layer, part in enumerate(features.chunk(depth, dim=1)):
            guesses = scores_of(part[~held_out], labels[~held_out], part[held_out]).argmax(1)
            hits[layer] += int((guesses == labels[held_out]).sum())
    return 1 + max(range(depth), key=lambda layer: hits[layer])


def describer(encoder: VisionTransformer, pool: str, layers: list[int]) -> Callable[[Tensor], Tensor]:
    """The features of some of the encoder's blocks, side by side; bf16 where the GPU has it."""
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
