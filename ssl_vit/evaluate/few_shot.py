"""Few labels: a few training images of each class, or a fraction of them, drawn five times.

Letters: n training images, K classes.
"""

from collections.abc import Callable
from statistics import mean, stdev

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ssl_vit.data.rng import permutation
from ssl_vit.evaluate.backbones import Backbone
from ssl_vit.evaluate.evaluation import Evaluation
from ssl_vit.evaluate.metrics import top_k

SUBSETS = 5
"""Of each size, each by a seed of its own."""


def random_subset(labels: Int64[np.ndarray, " n"], kind: str, amount: float, seed: int) -> Int64[np.ndarray, " _"]:
    """Sorted indices of images at random: of each class `amount` shots, or that fraction, rounded, one at least."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = int(amount) if kind == "shots" else max(1, round(amount * len(members)))
        chosen.append(members[permutation(seed, int(label), len(members))[:count]])
    return np.sort(np.concatenate(chosen))


def require_shots(evaluation: Evaluation) -> None:
    """ValueError where a class has fewer training images than `shots` takes."""
    counts = torch.bincount(evaluation.train_labels, minlength=evaluation.classes)
    least = int(torch.where(counts > 0, counts, counts.max()).argmin())
    for shots in evaluation.config.shots:
        if counts[least] < shots:
            name = evaluation.data.classes[least]
            raise ValueError(f"shots={shots}: class {name!r} has only {int(counts[least])} training images")


def evaluate_few_shot(
    evaluation: Evaluation, backbone: Backbone, scores_of: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """For each of the shots, and each fraction: mean and std of top-1 over five random subsets, and mean top-5.

    Args:
        scores_of: (training features, training labels, test features) -> scores per class.
    """
    config, (feature,) = evaluation.config, evaluation.readable(backbone)
    train, test = evaluation.banks(backbone, [feature])
    results: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind, amount in [*(("shots", n) for n in config.shots), *(("fraction", part) for part in config.fraction)]:
        top1, top5 = [], []
        for number in range(SUBSETS):
            rows = torch.from_numpy(random_subset(train.labels.numpy(), kind, amount, config.seed + number))
            scores = scores_of(train.select(feature, rows), train.labels[rows], test.select(feature))
            for k, found in ((1, top1), (5, top5)):
                found.append(top_k(evaluation.as_classes(scores), test.labels, k))
        results.setdefault(kind, {})[f"{amount:g}"] = {
            "mean": round(mean(top1), 4),
            "std": round(stdev(top1), 4),
            "top5": None if None in top5 else round(mean(top5), 4),
        }
    return results
