"""The linear probe's two ways on cached features, against scikit-learn and against one optimizer for each head."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.data.rng import permutation
from ssl_vit.evaluate import linear
from ssl_vit.evaluate.backbones import Feature, RawPixels
from ssl_vit.evaluate.evaluation import schedule_of
from ssl_vit.evaluate.features import FeatureBank
from ssl_vit.evaluate.linear import (
    Training,
    best_head,
    evaluate_grid,
    evaluate_logreg,
    grid_features,
    standard,
    train_heads,
)
from ssl_vit.optim.schedules import cosine

WHOLE = Feature((0,), "mean")


def blobs(count: int, seed: int) -> FeatureBank:
    """Four overlapping classes in 24 channels, badly conditioned: mixed, and of sizes from .001 to 1."""
    generator = torch.Generator().manual_seed(0)
    centers, mixing = torch.randn(4, 24, generator=generator), torch.randn(24, 24, generator=generator)
    labels = torch.arange(count) % 4
    values = centers[labels] + 1.5 * torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))
    return FeatureBank((values @ mixing + 3) * torch.logspace(-3, 0, 24), labels, WHOLE)


def test_the_grid_is_as_good_as_logistic_regression_whatever_the_scale_of_channels():
    train, test = blobs(600, 1), blobs(2000, 2)
    winner, _ = best_head(train, [WHOLE], Training(4, 60, 128))
    hits = winner.logits(test, torch.arange(2000))[:, 0].argmax(1) == test.labels
    model = LogisticRegression(max_iter=1000).fit(train.values.numpy(), train.labels.numpy())
    reference = model.score(test.values.numpy(), test.labels.numpy())
    assert float(hits.float().mean()) > reference - 0.01  # a standard error of 2,000 images


def test_the_grid_takes_the_feature_that_tells():
    labels = torch.arange(400) % 4
    telling = torch.nn.functional.one_hot(labels, 4).float()
    bank = FeatureBank(torch.cat([torch.randn(400, 4), telling], dim=1), labels, Feature((0, 1), "mean"))
    features = [Feature((0,), "mean"), Feature((1,), "mean")]
    winner, _ = best_head(bank, features, Training(4, 5, 100))
    assert winner.feature == features[1]
    assert winner.weight.shape == (1, 4, 4)


def test_the_grid_reads_one_and_four_blocks_by_every_pooling(backbone):
    names = [(len(feature.blocks), feature.pool) for feature in grid_features(LinearProbeConfig(), backbone)]
    assert names == [(count, pool) for count in (1, 3) for pool in ("cls", "mean", "both")]  # it has three blocks
    assert grid_features(LinearProbeConfig(pool="cls", blocks=2, layer=2), backbone) == [Feature((0, 1), "cls")]
    backbone.depth = 1
    assert len(grid_features(LinearProbeConfig(), backbone)) == 3
    assert len(grid_features(LinearProbeConfig(pool="cls"), RawPixels((16, 16), 3, 4))) == 1


def test_a_small_set_has_more_epochs_and_a_batch_is_no_larger(make_evaluation):
    evaluation = make_evaluation(batch_size=64)  # 30 images
    assert schedule_of(evaluation) == (10, 30, 0.0)
    assert schedule_of(evaluation, 1000) == (34, 30, 0.0)
    assert schedule_of(evaluation, 100_000) == (70, 30, 0.0)  # whose work follows from the number of images


def test_logreg_is_scikit_learns_on_the_named_feature(make_evaluation, backbone):
    evaluation = make_evaluation(protocol="logreg", pool="both", layer=2)
    feature = Feature((1,), "both")
    train, test = (evaluation.bank(backbone, [feature], split) for split in ("train", "test"))
    model = LogisticRegression(max_iter=1000).fit(train.values.numpy(), train.labels.numpy())
    expected = torch.from_numpy(model.predict_proba(test.values.numpy())).float()
    result = evaluate_logreg(evaluation, backbone)
    torch.testing.assert_close(result.probabilities, expected, atol=2e-3, rtol=0)  # L-BFGS stops at 1e-4
    assert result.head == feature.metadata


def test_logreg_tries_every_block_with_best(make_evaluation, backbone):
    result = evaluate_logreg(make_evaluation(protocol="logreg", layer="best"), backbone)
    assert result.head["blocks"][0] in (1, 2, 3)
    assert len(result.head["blocks"]) == 1


def test_the_same_seed_gives_the_same_figures(make_evaluation, backbone):
    one, two = (evaluate_grid(make_evaluation(epochs=2), backbone) for _ in range(2))
    assert torch.equal(one.probabilities, two.probabilities)
    assert one.head == two.head
    assert torch.allclose(one.probabilities.sum(1), torch.ones(12))


# Heads that are trained together.

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
        logits = together.logits(known, torch.arange(len(known.labels)))[:, number]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)  # float32, folded into the weights


def test_of_more_channels_than_images_a_basis_is_read_and_the_heads_are_the_same(monkeypatch):
    """Raw pixels, 49,152 channels of 561 images, took most of the minutes of a grid."""
    known, rows, training = bank(60, 40), torch.arange(4, 54, 2), Training(3, 6, 8)
    given = known, [BOTH], [0.001, 0.3], rows, training
    (short,) = train_heads(*given)  # 25 images, 160 channels
    monkeypatch.setattr(linear, "spanned", None)  # not called
    (long,) = train_heads(*given[:-1], training._replace(epochs=1))
    monkeypatch.setattr(linear, "min", lambda *_: 0, raising=False)
    (long,) = train_heads(*given)
    everything = torch.arange(60)
    expected = long.logits(known, everything)
    scale = float(expected.abs().max())
    torch.testing.assert_close(short.logits(known, everything), expected, atol=1e-5 * scale, rtol=0)  # float32


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
