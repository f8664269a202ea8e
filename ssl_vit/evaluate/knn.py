"""Weighted k-nearest-neighbor classifier (Wu et al., 2018, arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294).

Letters: n training images, m test images, D feature channels, K classes, k neighbors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.evaluate.backbones import Backbone
from ssl_vit.evaluate.evaluation import Evaluation, Result

TRAIN_CHUNK, TEST_CHUNK = 16384, 1024  # images at a time: their similarities take 64 MB, however many there are


def evaluate_knn(evaluation: Evaluation[KNNConfig], backbone: Backbone) -> Result:
    """Weighted k-NN; held-out training images choose k where several are given, and the block with layer=best."""
    config, device = evaluation.config, evaluation.resources.device
    counts = sorted({min(k, len(evaluation.train_labels)) for k in config.neighbors})

    def votes(train: Tensor, labels: Tensor, test: Tensor) -> list[Tensor]:
        return [each.cpu() for each in knn_votes(train, labels, test.to(device), counts, config.temperature)]

    fractions, best, which = evaluation.best_of(backbone, votes, len(counts))
    how = f"{counts[which]}-NN, cosine, T={config.temperature:g}"
    return Result(fractions, how, best.metadata | {"neighbors": counts[which]})


def nearest(
    train: Float[Tensor, "n D"], test: Float[Tensor, "m D"], k: int
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Cosine similarity and number of the k training images nearest to each test image, nearest first."""
    device = test.device
    similarity = torch.full((len(test), k), -torch.inf, device=device)
    index = torch.zeros(len(test), k, dtype=torch.long, device=device)
    for start in range(0, len(train), TRAIN_CHUNK):
        chunk = F.normalize(train[start : start + TRAIN_CHUNK].to(device), dim=1)
        for first in range(0, len(test), TEST_CHUNK):
            rows = slice(first, first + TEST_CHUNK)
            near, column = (F.normalize(test[rows], dim=1) @ chunk.T).topk(min(k, len(chunk)), dim=1)
            if start == 0:
                similarity[rows, : near.shape[1]], index[rows, : near.shape[1]] = near, column
                continue
            similarity[rows], order = torch.cat([similarity[rows], near], dim=1).topk(k, dim=1)
            index[rows] = torch.cat([index[rows], column + start], dim=1).gather(1, order)
    return similarity, index


def knn_votes(
    train: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m D"],
    neighbors: Sequence[int],
    temperature: float = 0.07,
) -> list[Float[Tensor, "m K"]]:
    """Fractions of votes exp(similarity / temperature) for the classes 0 .. max(labels), for each k, at most n."""
    similarity, index = nearest(train, test, min(max(neighbors), len(train)))
    votes, classes = (similarity / temperature).exp(), labels.to(index.device)[index]
    fractions = []
    for k in neighbors:
        ballot = torch.zeros(len(test), int(labels.max()) + 1, device=test.device)
        ballot.scatter_add_(1, classes[:, :k], votes[:, :k])
        fractions.append(ballot / ballot.sum(1, keepdim=True))
    return fractions


def knn_scores(train: Tensor, labels: Tensor, test: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """As knn_votes, for one k."""
    return knn_votes(train, labels, test, [k], temperature)[0]
