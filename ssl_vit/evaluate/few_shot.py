"""Few labels: training images of each class, or a fraction of all, drawn five times. Letters: n training images."""

from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from ssl_vit.config.evaluation_schema import EvaluationConfig, KNNConfig
from ssl_vit.data.rng import permutation
from ssl_vit.evaluate.backbones import Backbone
from ssl_vit.evaluate.evaluation import Evaluation
from ssl_vit.evaluate.features import waiting
from ssl_vit.evaluate.knn import knn_scores
from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.metrics import right, top_k, wilson

SUBSETS = 5  # of each size, each by a seed of its own


def random_subset(labels: Int64[np.ndarray, " n"], kind: str, amount: float, seed: int) -> Int64[np.ndarray, " _"]:
    """Sorted indices of images at random: of each class `amount` shots, or that fraction, rounded, one at least."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = int(amount) if kind == "shots" else max(1, round(amount * len(members)))
        chosen.append(members[permutation(seed, int(label), len(members))[:count]])
    return np.sort(np.concatenate(chosen))


def evaluate_few_shot(evaluation: Evaluation[EvaluationConfig], backbone: Backbone) -> dict[str, Any]:
    """For each of the shots, and each fraction: mean and std of top-1 over five random subsets, and mean top-5.

    interval: of the mean, about the test images. hits: how many of the last number's subsets are right for an image.

    k-NN takes the fewest of its neighbors. ValueError where a class has fewer training images than `shots` takes.
    """
    config, labels, names = evaluation.config, evaluation.train_labels, evaluation.data.classes
    count, least = min((int((labels == label).sum()), int(label)) for label in labels.unique())
    for shots in config.shots:
        if count < shots:
            raise ValueError(f"shots={shots}: class {names[least]!r} has only {count} training images")
    how, device, scores_of = "logistic regression, C=1", "cpu", logistic_scores
    if isinstance(config, KNNConfig):
        k, device = min(config.neighbors), evaluation.resources.device
        how = f"{k}-NN or all, cosine, T={config.temperature:g}"
        scores_of = partial(knn_scores, k=k, temperature=config.temperature)
    (feature,) = evaluation.readable(backbone)
    train, test = evaluation.banks(backbone, [feature])
    row: dict[str, Any] = {"how": how, "head": feature.metadata}
    for kind, amount in [*(("shots", n) for n in config.shots), *(("fraction", part) for part in config.fraction)]:
        top1, top5, hits = [], [], torch.zeros(len(test.labels), dtype=torch.long)
        for number in range(SUBSETS):
            some = torch.from_numpy(random_subset(labels.numpy(), kind, amount, config.seed + number))
            with waiting(evaluation.bar(f"{kind} {amount:g}")):
                scores = scores_of(train.select(feature, some), labels[some], test.select(feature).to(device)).cpu()
            scores = evaluation.as_classes(scores)
            top1.append(top_k(scores, test.labels, 1))
            top5.append(top_k(scores, test.labels, 5))
            hits += right(scores, test.labels)
        interval = wilson(float(hits.sum()) / SUBSETS, len(test.labels))
        row |= {"top1": round(mean(top1), 4), "top1_interval": interval, "hits": hits}
        row["top5"] = None if None in top5 else round(mean(top5), 4)
        found = {"mean": row["top1"], "std": round(stdev(top1), 4), "interval": interval, "top5": row["top5"]}
        row.setdefault(kind, {})[f"{amount:g}"] = found
    return row
