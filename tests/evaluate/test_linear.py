"""The linear probe's two ways on cached features, against scikit-learn."""

import torch
from sklearn.linear_model import LogisticRegression

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.evaluate.backbones import Feature, RawPixels
from ssl_vit.evaluate.evaluation import enough_epochs
from ssl_vit.evaluate.features import FeatureBank
from ssl_vit.evaluate.linear import best_head, evaluate_grid, evaluate_logreg, grid_features
from ssl_vit.evaluate.linear_heads import Training

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


def test_a_small_set_has_more_epochs():
    assert enough_epochs(1_281_167, 10) == 10
    assert enough_epochs(1000, 10) == 100


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
