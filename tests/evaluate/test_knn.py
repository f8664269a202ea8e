"""k-NN against a loop and against lightly's; in bounded memory; k chosen without the test images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking.knn import knn_predict
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_vit.evaluate import knn
from ssl_vit.evaluate.knn import evaluate_knn, knn_scores, knn_votes, nearest


def features(count: int, seed: int, classes: int = 4, width: int = 12, noise: float = 2.0):
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centers[labels] + noise * torch.randn(count, width, generator=generator), labels


@pytest.mark.parametrize("neighbors", [1, 20, 500])
def test_votes_against_a_loop(neighbors):
    (train, labels), (test, _) = features(120, 1), features(30, 2)
    scores = knn_scores(train, labels, test, neighbors, temperature=0.07)
    for row, image in zip(scores, test, strict=True):
        similarity = [float(torch.cosine_similarity(image, other, dim=0)) for other in train]
        votes = np.zeros(4)
        for index in sorted(range(120), key=lambda i: -similarity[i])[:neighbors]:
            votes[int(labels[index])] += math.exp(similarity[index] / 0.07)
        np.testing.assert_allclose(row.numpy(), votes / votes.sum(), rtol=1e-3)


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1)])
def test_classes_are_ranked_as_lightly_does(neighbors, temperature):
    (train, labels), (test, _) = features(1000, 1, classes=7), features(200, 2, classes=7)
    scores = knn_scores(train, labels, test, neighbors, temperature)
    theirs = knn_predict(
        F.normalize(test, dim=1), F.normalize(train, dim=1).T, labels, 7, knn_k=neighbors, knn_t=temperature
    )
    assert torch.equal(scores.argmax(1), theirs[:, 0])


@pytest.mark.parametrize("train_chunk", [7, 64, 1000])
@pytest.mark.parametrize("test_chunk", [1, 13, 1000])
def test_chunks_change_nothing(train_chunk, test_chunk, monkeypatch):
    monkeypatch.setattr(knn, "TRAIN_CHUNK", train_chunk)
    monkeypatch.setattr(knn, "TEST_CHUNK", test_chunk)
    (train, _), (test, _) = features(300, 1), features(50, 2)
    whole = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(21, dim=1)
    similarity, index = nearest(train, test, 21)
    torch.testing.assert_close(similarity, whole.values)
    assert torch.equal(index, whole.indices)


def test_several_k_come_from_one_search(monkeypatch):
    (train, labels), (test, _) = features(120, 1), features(30, 2)
    searches = []
    monkeypatch.setattr(knn, "nearest", lambda *given: searches.append(given) or nearest(*given))
    votes = knn_votes(train, labels, test, [1, 10, 200])
    assert len(searches) == 1
    for k, scores in zip((1, 10, 200), votes, strict=True):
        torch.testing.assert_close(scores, knn_scores(train, labels, test, k))
        torch.testing.assert_close(scores.sum(1), torch.ones(30))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                own = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, own if tensor._base is None else 0)
        return made


def test_nothing_as_large_as_all_similarities_is_ever_made(monkeypatch):
    monkeypatch.setattr(knn, "TRAIN_CHUNK", 400)
    monkeypatch.setattr(knn, "TEST_CHUNK", 50)
    train, test = torch.randn(6000, 8), torch.randn(500, 8)
    with Largest() as largest:
        nearest(train.clone(), test.clone(), 10)
    assert largest.elements == 6000 * 8  # the copy of the features made here; all similarities are 3,000,000


def test_k_and_block_are_chosen_on_training_images(make_evaluation, backbone):
    result = evaluate_knn(make_evaluation("knn", layer="best", pool="mean", neighbors=[1, 5, 500]), backbone)
    assert result.head["neighbors"] in (1, 5, 30)  # 500 is capped by the set
    assert result.probabilities.shape == (12, 3)
    assert result.head["blocks"][0] in (1, 2, 3)
