"""How good class scores are: top-k, each class, calibration, confusion matrix. Letters: m test images, K classes."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

BINS = 15  # of the calibration error, as in Guo et al. (2017, arXiv:1706.04599)
NORMAL_95 = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution
CELL = 12  # pixels of a cell of a confusion image, for as many classes as fit in a thousand pixels


def top_k(scores: Float[Tensor, "m K"], labels: Int64[Tensor, " m"], k: int) -> float | None:
    """Fraction of images whose class is among the k best; None for k classes or fewer. No column, never right."""
    classes = scores.shape[1]
    if classes <= k:
        return None
    known = labels < classes
    hits = multiclass_accuracy(scores[known], labels[known], num_classes=classes, top_k=k, average="micro")
    return round(float(hits) * float(known.float().mean()), 4)


def right(scores: Float[Tensor, "m K"], labels: Int64[Tensor, " m"]) -> Bool[Tensor, " m"]:
    """Which images the best class is right for."""
    return scores.argmax(1) == labels


def wilson(hits: float, count: int) -> list[float]:
    """95 % interval of an accuracy of so many hits (Wilson, 1927), which holds near 0 and 1 too."""
    fraction, spread = hits / count, NORMAL_95**2 / count
    middle = fraction + spread / 2
    half = NORMAL_95 * math.sqrt(fraction * (1 - fraction) / count + spread / (4 * count))
    return [round(max(0.0, middle - half) / (1 + spread), 4), round(min(1.0, (middle + half) / (1 + spread)), 4)]


def p_same(first: Shaped[Tensor, " m"], second: Shaped[Tensor, " m"]) -> float:
    """How likely two classifiers of equal accuracy differ on the same images at least so much (McNemar, exact).

    Of several classifiers each, how many are right for an image: the sign test.
    """
    from scipy.stats import binomtest

    better, worse = int((first > second).sum()), int((second > first).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def figures(probabilities: Float[Tensor, "m K"], labels: Int64[Tensor, " m"], classes: list[str]) -> dict[str, Any]:
    """top1 and its 95 % interval, top5 (None for 5 classes or fewer), calibration_error, per_class: recalls."""
    count = probabilities.shape[1]
    recalls = multiclass_accuracy(probabilities, labels, num_classes=count, average="none").tolist()
    present = torch.bincount(labels, minlength=count) > 0
    error = multiclass_calibration_error(probabilities, labels, num_classes=count, n_bins=BINS, norm="l1")
    return {
        "top1": top_k(probabilities, labels, 1),
        "top1_interval": wilson(int(right(probabilities, labels).sum()), len(labels)),
        "top5": top_k(probabilities, labels, 5),
        "calibration_error": round(float(error), 4),
        "per_class": {name: round(r, 4) for name, r, there in zip(classes, recalls, present, strict=True) if there},
    }


def confusion_image(probabilities: Float[Tensor, "m K"], labels: Int64[Tensor, " m"]) -> UInt8[Tensor, "3 side side"]:
    """The confusion matrix as a gray image: row = class, column = guess, black = all of the class's images."""
    count = probabilities.shape[1]
    matrix = multiclass_confusion_matrix(probabilities, labels, num_classes=count, normalize="true")
    cell = max(1, min(CELL, 1000 // count))
    gray = (255 * (1 - matrix)).round().to(torch.uint8)
    return gray.repeat_interleave(cell, 0).repeat_interleave(cell, 1).expand(3, -1, -1).contiguous()
