"""Frozen features of images, what to choose by them, and what they say without labels: spread and effective rank.

Letters: B images, C channels, n images, D feature channels.
"""

import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.rng import stratified
from ssl_vit.data.sources.base import Split
from ssl_vit.evaluate.backbones import Feature
from ssl_vit.parallel.distributed import all_gather

MIN_HELD_OUT = 1000  # images on which something is chosen, at least
SILENCE = 5.0  # seconds after which a log hears of work that goes on


class Resources(NamedTuple):
    """The device that features are computed on, the ranks that share the images, and room for the features."""

    device: str = "cpu"
    ranks: tuple[int, int] = (0, 1)  # (rank, world size)
    memory_gb: float = math.inf  # features that need more are kept in a nameless file, gone with the process
    folder: Path = Path(".")  # of that file

    def from_all_ranks(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        """The rows of all ranks, in the images' order, on the CPU."""
        return all_gather(rows.cpu()) if self.ranks[1] > 1 else rows.cpu()


CPU = Resources()


def local_device() -> str:
    """This process's own GPU, or the CPU where there are none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def allocate(count: int, row: Shaped[Tensor, "..."], resources: Resources) -> Shaped[Tensor, "n ..."]:
    """Room for so many rows, in memory or mapped from a file; OSError where the disk has no room for it."""
    if count * row.nbytes <= resources.memory_gb * 1e9:
        return torch.empty(count, *row.shape, dtype=row.dtype)
    resources.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=resources.folder, prefix=".features-") as file:  # the mapping outlives it
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count * row.nbytes)  # now, not as a bus error half-way
        return torch.from_file(file.name, True, count * row.numel(), dtype=row.dtype).view(count, *row.shape)


def extract_features(
    extractor: Callable[[Tensor], Tensor],
    data: ImageDataModule,
    split: Split,
    limit: int = 0,
    seed: int = 0,
    resources: Resources = CPU,
    bar: str = "",
) -> tuple[Shaped[Tensor, "n ..."], Int64[Tensor, " n"]]:
    """Features and labels of a split's images, on the CPU; at most `limit` with each class in its fraction, 0 for all.

    extractor: normalized images [B, C, H, W] -> features [B, D] or [B, S, D]. bar: label of a progress bar.
    """
    labels, features, done = torch.from_numpy(data.labels(split, limit, seed)), torch.empty(0), 0
    for batch in tracked(data.eval_dataloader(split, limit, seed, resources.ranks), bar):
        rows = extract_batch(extractor, data, batch["images"], resources.device)
        rows = resources.from_all_ranks(rows)[: len(labels) - done]
        if not done:
            features = allocate(len(labels), rows[0], resources)
        features[done : done + len(rows)] = rows
        done += len(rows)
    return features, labels


@torch.no_grad()
def extract_batch(
    extractor: Callable[[Tensor], Tensor], data: ImageDataModule, images: Shaped[Tensor, "B C H W"], device: str
) -> Shaped[Tensor, "B ..."]:
    """What an extractor makes of a loader's uint8 images, on the device; in bf16 on a GPU."""
    images = data.normalize(images.to(device, non_blocking=True))
    with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
        return extractor(images)


def tracked(items: Any, bar: str) -> Iterable:
    """A loader's batches, or a list's items: on a terminal with a bar that disappears, else with a line now and then.

    Both are on standard error, and begin with `bar`; there are none where that is empty.
    """
    if not bar:
        return items
    if not sys.stderr.isatty():
        return _logged(items, bar)
    from rich.console import Console
    from rich.progress import track

    return track(items, bar, transient=True, console=Console(stderr=True))


def _logged(items: Any, bar: str) -> Iterator:
    total, last = len(items), time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > SILENCE:
            print(f"{bar}: {done} of {total}", file=sys.stderr, flush=True)
            last = time.monotonic()


@contextmanager
def waiting(bar: str) -> Iterator[None]:
    """Work whose end is not known: on a terminal with a sign that it goes on, else with a line now and then."""
    if not bar:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(bar):
            yield
    else:
        done, started = threading.Event(), time.monotonic()

        def report() -> None:
            while not done.wait(SILENCE):
                print(f"{bar}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class FeatureBank(NamedTuple):
    """Features of images, blocks side by side, of which some can be selected."""

    values: Float[Tensor, "n D"]
    labels: Int64[Tensor, " n"]
    holds: Feature

    def select(self, feature: Feature, rows: Tensor | slice = slice(None)) -> Float[Tensor, "_ _"]:
        """A feature of the images, or of some of them."""
        return self.holds.select(self.values[rows], feature)


def cover(features: list[Feature]) -> Feature:
    """The one that holds all of them."""
    pools = {feature.pool for feature in features}
    blocks = sorted({block for feature in features for block in feature.blocks})
    return Feature(tuple(blocks), pools.pop() if len(pools) == 1 else "both")


def held_out_folds(labels: Int64[Tensor, " n"], seed: int = 0) -> Iterator[Bool[Tensor, " n"]]:
    """Masks of held-out fifths of the training images, each class in its fraction: five, or until they count 1000."""
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
    """The feature, and the number of the classifier on it, that classify held-out training images best.

    scores_of: (training features, training labels, held-out features) -> scores per class of each classifier.
    """
    hits = Counter[tuple[Feature, int]]()
    for held_out in held_out_folds(bank.labels, seed):
        for feature in features:
            values, truth = bank.select(feature), bank.labels[held_out]
            for which, scores in enumerate(scores_of(values[~held_out], bank.labels[~held_out], values[held_out])):
                hits[feature, which] += int((scores.argmax(1) == truth).sum())
    return max(hits, key=hits.__getitem__)


def feature_std(features: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Spread of unit-length features, times sqrt(D): 1 even, 0 collapsed (SimSiam, arXiv:2011.10566, section 4.1)."""
    return torch.nn.functional.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Effective rank: exp of the entropy of the normalized singular values (arXiv:2210.02885, equation 3), or NaN."""
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features)
    fraction = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(fraction * fraction.log()).sum()))
