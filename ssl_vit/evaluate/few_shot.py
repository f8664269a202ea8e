"""Few labels: a few training images of each class, or a fraction of them, drawn five times.

Letters: n training images, K classes.
"""

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

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


def random_subset(
    labels: Int64[np.ndarray, " n"], count_of: Callable[[int], int], seed: int
) -> Int64[np.ndarray, " _"]:
    """Sorted indices of images: of each class, `count_of(its images)` at random."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(members[permutation(seed, int(label), len(members))[: count_of(len(members))]])
    return np.sort(np.concatenate(chosen))


def of_fraction(fraction: float) -> Callable[[int], int]:
    """How many of a class's images a fraction is: rounded, one at least."""
    return lambda count: max(1, round(fraction * count))


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
    feature = evaluation.readable(backbone)[0]
    train, test = evaluation.banks(backbone, [feature])
    labels, results = train.labels.numpy(), dict[str, dict[str, dict[str, float | None]]]()
    wanted = [("shots", shots, lambda _, shots=shots: shots) for shots in evaluation.config.shots]
    wanted += [("fraction", fraction, of_fraction(fraction)) for fraction in evaluation.config.fraction]
    for kind, amount, count_of in wanted:
        scores = []
        for number in range(SUBSETS):
            rows = torch.from_numpy(random_subset(labels, count_of, evaluation.config.seed + number))
            few = train.select(feature, rows), train.labels[rows]
            scores.append(evaluation.as_classes(scores_of(*few, test.select(feature))))
        results.setdefault(kind, {})[f"{amount:g}"] = summary(scores, test.labels)
    return results


def summary(subsets: list[Tensor], labels: Int64[Tensor, " m"]) -> dict[str, Any]:
    """Mean and std of top-1 over the subsets, and mean of top-5 where there are more than five classes."""
    found = ([top_k(scores, labels, k) for scores in subsets] for k in (1, 5))
    top1, top5 = ([value for value in values if value is not None] for values in found)
    return {
        "mean": round(mean(top1), 4),
        "std": round(stdev(top1), 4),
        "top5": round(mean(top5), 4) if top5 else None,
    }
