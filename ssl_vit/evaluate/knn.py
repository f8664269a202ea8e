"""Weighted k-nearest-neighbour classifier (Wu et al., 2018, arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294).

Letters: n training pictures, m test pictures, D feature channels, K classes, k neighbours.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def knn_scores(
    train: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m D"],
    neighbours: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Float[Tensor, "m K"]:
    """Votes for each class: the nearest pictures by cosine similarity, each weighing exp(similarity / temperature).

    Args:
        neighbours: k; all of them where the training set is smaller.
        chunk: test pictures at a time, which bounds memory at chunk * n similarities.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k, classes = min(neighbours, len(train)), int(labels.max()) + 1
    votes = []
    for part in test.split(chunk):
        similarity, index = (part @ train.T).topk(k, dim=1)  # [chunk, k]
        ballot = torch.zeros(len(part), classes, device=part.device)
        votes.append(ballot.scatter_add_(1, labels[index], (similarity / temperature).exp()))
    return torch.cat(votes)
