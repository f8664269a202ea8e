"""Seconds that an evaluation takes once features are there: the default grid of heads, our k-NN and lightly's in turn.

Random features of a ViT-S, width 384, in 10 classes: 50,000 images to train, 10,000 to evaluate. The grid reads class
token and mean of the last four blocks, k-NN one of these eight.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.config.evaluation_schema import BenchmarkConfig

TRAIN, TEST, WIDTH, CLASSES = 50_000, 10_000, 384, 10
NEIGHBORS, TEMPERATURE = 20, 0.07
THEIR_BATCH = 256
"""Test images that lightly's k-NN is given at a time, as its benchmarks do."""


def run(config: BenchmarkConfig) -> None:
    """Print median seconds of each side as one JSON object a line."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (TRAIN,), generator=generator)
    train = torch.randn(TRAIN, 8 * WIDTH, generator=generator)
    test = torch.randn(TEST, WIDTH, generator=generator)
    baselines: dict[str, Callable[[], object]] = {
        "ours, grid": lambda: grid(train, labels),
        "ours, k-NN": lambda: ours(train[:, :WIDTH].contiguous(), labels, test),
        "lightly, k-NN": lambda: lightlys(train[:, :WIDTH].contiguous(), labels, test),
    }
    taken: dict[str, list[float]] = {name: [] for name in baselines}
    for _ in range(config.repeats):
        for name, baseline in baselines.items():
            start = time.perf_counter()
            baseline()
            taken[name].append(time.perf_counter() - start)
    for name, seconds in taken.items():
        size = {"train": TRAIN, "test": TEST, "width": WIDTH}
        line = {"suite": "probe", "who": name, "seconds": round(median(seconds), 2), **size}
        print(json.dumps(line), flush=True)


def grid(train: Tensor, labels: Tensor) -> object:
    """The default grid on all that it reads of four blocks: the winner, chosen and trained again."""
    from ssl_vit.config.schema import POOLS
    from ssl_vit.evaluate.backbones import Feature
    from ssl_vit.evaluate.features import FeatureBank
    from ssl_vit.evaluate.linear import BLOCKS, Training, best_head

    bank = FeatureBank(train, labels, Feature((0, 1, 2, 3), "both"))
    features = [Feature(tuple(range(4 - count, 4)), pool) for count in BLOCKS for pool in POOLS]
    return best_head(bank, features, Training(CLASSES, epochs=10, batch_size=256))


def ours(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Classes by our k-NN."""
    from ssl_vit.evaluate.knn import knn_scores

    return knn_scores(train, labels, test, NEIGHBORS, TEMPERATURE).argmax(1)


def lightlys(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Classes by lightly's k-NN, a batch at a time."""
    from lightly.utils.benchmarking.knn import knn_predict

    bank = F.normalize(train, dim=1).T.contiguous()
    batches = F.normalize(test, dim=1).split(THEIR_BATCH)
    guesses = [knn_predict(batch, bank, labels, CLASSES, NEIGHBORS, TEMPERATURE)[:, 0] for batch in batches]
    return torch.cat(guesses)
