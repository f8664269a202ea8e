"""Classifiers and label-free figures against plain references."""

import pytest
import torch
from scipy.stats import binomtest

from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.metrics import p_same, top_k, wilson


def blobs(count: int, seed: int, classes: int = 4, width: int = 12, noise: float = 2.0):
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centers[labels] + noise * torch.randn(count, width, generator=generator), labels


def test_logistic_regression_is_the_optimum_of_the_penalized_likelihood():
    (train, labels), (test, _) = blobs(400, 1), blobs(100, 2)
    scores = logistic_scores(train, labels, test)
    # The same optimum by plain minimization in float64; the bias is not penalized.
    weights = torch.zeros(13, 4, dtype=torch.float64, requires_grad=True)
    x, y = torch.cat([train, torch.ones(400, 1)], dim=1).double(), labels
    solver = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights, y, reduction="sum") + weights[:12].square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    expected = (torch.cat([test, torch.ones(100, 1)], dim=1).double() @ weights).softmax(1).float()
    torch.testing.assert_close(scores, expected.detach(), atol=2e-3, rtol=0)  # L-BFGS stops at 1e-4 of the gradient


def test_classes_that_training_lacks_get_no_score():
    train, labels = blobs(90, 1, classes=3)
    scores = logistic_scores(train, labels * 2, train[:5])
    assert scores.shape == (5, 5)
    assert not scores[:, [1, 3]].any()
    assert top_k(scores, torch.tensor([1, 3, 7, 1, 3]), 1) == 0.0


def test_top_k_counts_hits_and_is_absent_without_enough_classes():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    assert top_k(scores, torch.tensor([2, 1]), 1) == 0.5
    assert top_k(scores, torch.tensor([2, 1]), 2) == 1.0
    assert top_k(scores, torch.tensor([2, 1]), 5) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (7, 10), (344, 360), (1, 100_000)])
def test_intervals_are_wilsons(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx([expected.low, expected.high], abs=1e-4)


def test_two_classifiers_are_compared_image_by_image():
    """Nine images of twenty-four, all for the better one, are no chance; nine of eighteen are."""
    right = torch.ones(24, dtype=torch.bool)
    worse, mixed = right.clone(), right.clone()
    worse[:9], mixed[9:18] = False, False
    assert p_same(right, worse) == pytest.approx(2 * 0.5**9)
    assert p_same(worse, mixed) == pytest.approx(1.0)
    assert p_same(right, right) == 1.0
    assert p_same(5 * right, 5 * worse) == p_same(right, worse)  # of five classifiers each, how many are right
