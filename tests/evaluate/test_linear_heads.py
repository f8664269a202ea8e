"""Heads trained together against one optimizer for each; the grid against logistic regression."""

import pytest
import torch
import torch.nn.functional as F

from ssl_vit.data.rng import permutation
from ssl_vit.evaluate.backbones import Feature
from ssl_vit.evaluate.features import FeatureBank
from ssl_vit.evaluate.linear_heads import Training, standard, train_heads
from ssl_vit.optim.schedules import cosine

BOTH = Feature((0, 1), "both")  # columns: class token and mean of block 1, then of block 2


def bank(count: int = 90, width: int = 5, classes: int = 3, seed: int = 1) -> FeatureBank:
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 4 * width, generator=generator) * torch.linspace(0.1, 3, 4 * width) + 2
    return FeatureBank(values + labels[:, None] * torch.linspace(-0.5, 0.5, 4 * width), labels, BOTH)


@pytest.mark.parametrize(
    ("feature", "columns"),
    [
        (Feature((0,), "cls"), [*range(5)]),
        (Feature((1,), "mean"), [*range(15, 20)]),
        (Feature((0, 1), "cls"), [*range(5), *range(10, 15)]),
        (Feature((0, 1), "both"), [*range(20)]),
    ],
)
def test_each_head_is_what_its_own_optimizer_would_make_of_it(feature, columns):
    """Steps of heads that share a tensor, by one optimizer on a weighted loss, are those of separate optimizers."""
    known, rows, rates = bank(), torch.arange(3, 83), [0.001, 0.02, 0.3]
    features = [Feature((0,), "mean"), feature]
    together = train_heads(known, features, rates, rows, Training(3, 4, 32))[1]
    values, labels = known.values[rows][:, columns], known.labels[rows]
    mean, std = values.mean(0), (values.var(0, correction=0) + 1e-6).sqrt()
    for number, rate in enumerate(rates):
        head = torch.nn.Linear(len(columns), 3)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        sgd = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
        for step in range(4 * 3):
            order = permutation(0, step // 3, 80)[step % 3 * 32 :][:32]
            sgd.param_groups[0]["lr"] = cosine(step / 12, rate, 0.0)
            sgd.zero_grad()
            F.cross_entropy(head((values[order] - mean) / std), labels[order]).backward()
            sgd.step()
        expected = head((known.values[:, columns] - mean) / std).detach()
        logits = together.logits(known, torch.arange(len(known)))[:, number]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)  # float32, folded into the weights


def test_statistics_are_those_of_the_chosen_rows():
    known, rows = bank(), torch.arange(0, 90, 2)
    mean, std = standard(known, rows)
    torch.testing.assert_close(mean, known.values[rows].mean(0))
    torch.testing.assert_close(std, known.values[rows].std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_a_channel_that_never_changes_is_no_trouble():
    known = bank()
    known.values[:, 7] = 3.0
    (heads,) = train_heads(known, [BOTH], [0.01], torch.arange(90), Training(3, 3, 30))
    assert heads.logits(known, torch.arange(90)).isfinite().all()
