"""Frozen features of images, and what they say without labels: spread and effective rank.

Letters: B images, C channels, H x W pixels, n images, D feature channels, S tokens.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.rng import stratified
from ssl_vit.data.sources.base import Split
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.parallel.distributed import all_gather

MIN_HELD_OUT = 1000
"""Held-out images on which something is chosen, at least."""
FeatureExtractor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Resources:
    """Where features are worked out and kept."""

    device: str = "cpu"
    ranks: tuple[int, int] = (0, 1)
    """(rank, processes): each describes its share of the images, all of them then have every feature."""
    memory_gb: float = float("inf")
    """What is larger is kept in a file."""
    folder: Path = Path(".")
    """Of that file, which has no name and is gone with the process."""

    def whole(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        """The rows of all processes that share the images, in the images' order, on the CPU."""
        return all_gather(rows.cpu()) if self.ranks[1] > 1 else rows.cpu()


LOCAL = Resources()


def local_resources(ranks: tuple[int, int], memory_gb: float, folder: Path) -> Resources:
    """This process's place: its own GPU where there are any."""
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return Resources(device, ranks, memory_gb, folder)


def allocate(rows: int, shape: tuple[int, ...], dtype: torch.dtype, resources: Resources) -> Shaped[Tensor, "n ..."]:
    """Room for features: in memory, or where they need more than resources.memory_gb mapped from a file.

    OSError where the disk has no room for it.
    """
    count = rows * int(np.prod(shape))
    if count * dtype.itemsize <= resources.memory_gb * 1e9:
        return torch.empty(rows, *shape, dtype=dtype)
    resources.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=resources.folder, prefix=".features-"
    ) as file:  # the mapping outlives the name
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)  # now, not as a bus error half-way
        flat = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
    return flat.view(rows, *shape)


@torch.no_grad()
def extract(
    extract_features: FeatureExtractor,
    data: ImageDataModule,
    split: Split,
    limit: int = 0,
    seed: int = 0,
    resources: Resources = LOCAL,
    bar: str = "",
    dtype: torch.dtype = torch.float32,
) -> tuple[Shaped[Tensor, "n ..."], Int64[Tensor, " n"]]:
    """`describe(normalized images [B, C, H, W]) -> [B, D] or [B, S, D]` of a split's images, on the CPU; labels.

    Args:
        limit: most images, 0 for all; with labels each class keeps its share.
        bar: what a progress bar on a terminal says; none without.
    """
    loader = data.eval_dataloader(split, limit, seed, resources.ranks)
    count, done, features, labels = len(data.eval_index(split, limit, seed)), 0, None, []
    for batch in tracked(loader, bar):
        extracted = extract_features(data.normalize(batch["images"].to(resources.device, non_blocking=True)))
        rows = resources.whole(extracted.to(dtype))[: count - done]
        if features is None:
            features = allocate(count, tuple(rows.shape[1:]), dtype, resources)
        features[done : done + len(rows)] = rows
        done += len(rows)
        labels.append(resources.whole(batch["label"]))
    assert features is not None  # a split has images
    return features, torch.cat(labels)[:count]


def tracked(loader: DataLoader, bar: str) -> Iterator:
    """A loader's batches; with a bar that disappears, where standard error is a terminal."""
    if not (bar and sys.stderr.isatty()):
        yield from loader
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(loader, bar, transient=True, console=Console(stderr=True))


def feature_extractor(backbone: Backbone, feature: Feature, normed: bool = True) -> FeatureExtractor:
    """What gives a feature of images; in bf16 on a GPU."""

    def extract_features(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _"]:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            return backbone.features(images, feature.blocks, feature.pool, normed)

    return extract_features


@dataclass(frozen=True)
class FeatureBank:
    """Features of images, blocks side by side, of which some can be taken."""

    values: Float[Tensor, "n D"]
    labels: Int64[Tensor, " n"]
    holds: Feature

    def __len__(self) -> int:
        return len(self.labels)

    def columns(self, feature: Feature) -> list[slice]:
        """Where a feature stands; ValueError where the table has not got it."""
        halves = 2 if self.holds.pool == "both" else 1
        width = self.values.shape[1] // (len(self.holds.blocks) * halves)
        if feature.pool not in (self.holds.pool, *(("cls", "mean") if halves == 2 else ())):
            raise ValueError(f"a table of {self.holds} has no {feature}")
        first, count = (1, 1) if halves == 2 and feature.pool == "mean" else (0, 2 if feature.pool == "both" else 1)
        starts = [self.holds.blocks.index(block) * halves + first for block in feature.blocks]
        return [slice(start * width, (start + count) * width) for start in starts]

    def select(self, feature: Feature, rows: Tensor | slice = slice(None)) -> Float[Tensor, "_ _"]:
        """A feature of the images, or of some of them."""
        some = self.values[rows]
        parts = [some[:, columns] for columns in self.columns(feature)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def cover(features: list[Feature]) -> Feature:
    """The one that holds all of them."""
    pools = {feature.pool for feature in features}
    blocks = sorted({block for feature in features for block in feature.blocks})
    return Feature(tuple(blocks), pools.pop() if len(pools) == 1 else "both")


def held_out_parts(labels: Int64[Tensor, " n"], seed: int = 0) -> Iterator[Bool[Tensor, " n"]]:
    """Masks of held-out fifths of training images, each class in its share: to choose by, never test images.

    Fifths are drawn until a thousand images are judged, five at most: one fifth of a small set decides by chance.
    """
    fifth = max(1, len(labels) // 5)
    for fold in range(min(5, -(-MIN_HELD_OUT // fifth))):
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[torch.from_numpy(stratified(labels.numpy(), fifth, seed + fold))] = True
        yield held_out


def best_feature(
    scores_of: Callable[[Tensor, Tensor, Tensor], list[Tensor]],
    bank: FeatureBank,
    features: list[Feature],
    seed: int = 0,
) -> tuple[Feature, int]:
    """The feature, and the number of the classifier on it, that tell held-out training images best.

    Args:
        scores_of: (training features, training labels, held-out features) -> scores per class of each classifier.
    """
    hits: dict[tuple[int, int], int] = {}
    for held_out in held_out_parts(bank.labels, seed):
        for number, feature in enumerate(features):
            part, truth = bank.select(feature), bank.labels[held_out]
            for which, scores in enumerate(scores_of(part[~held_out], bank.labels[~held_out], part[held_out])):
                hits[number, which] = hits.get((number, which), 0) + int((scores.argmax(1) == truth).sum())
    number, which = max(hits, key=lambda pair: hits[pair])
    return features[number], which


def feature_std(features: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Spread of unit-length features, times sqrt(D): 1 when all directions are used alike, 0 when all are equal.

    SimSiam's measure of collapse (arXiv:2011.10566, section 4.1).
    """
    unit = torch.nn.functional.normalize(features, dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Effective rank: exp of the entropy of the normalized singular values (arXiv:2210.02885, equation 3)."""
    values = torch.linalg.svdvals(features)
    fraction = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(fraction * fraction.log()).sum()))
