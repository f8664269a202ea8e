"""Frozen features: every pooling from one pass, in memory or in a file, by one process or two."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import on_ranks

from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate import features
from ssl_vit.evaluate.backbones import Feature, RawPixels
from ssl_vit.evaluate.features import (
    FeatureBank,
    Resources,
    best_feature,
    cover,
    extract_features,
    feature_std,
    held_out_folds,
    rankme,
    tracked,
    waiting,
)
from ssl_vit.parallel.distributed import process_group

FEATURES = [Feature(blocks, pool) for blocks in ((2,), (0, 1, 2), (1,)) for pool in ("cls", "mean", "both")]


def test_every_feature_is_read_in_one_pass(make_evaluation, backbone, encoder):
    evaluation = make_evaluation()
    bank = evaluation.bank(backbone, FEATURES, "test")
    images = torch.cat(
        [evaluation.data.normalize(batch["images"]) for batch in evaluation.data.eval_dataloader("test")]
    )
    for feature in FEATURES:
        with torch.no_grad():
            expected = encoder.features(images, feature.blocks, feature.pool)
        torch.testing.assert_close(bank.select(feature), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(bank.select(feature, torch.tensor([3, 1])), expected[[3, 1]], atol=1e-5, rtol=1e-4)


def test_tokens_before_the_final_norm(make_evaluation, backbone, encoder):
    images = torch.randn(2, 3, 16, 16)
    for block, tokens in enumerate(backbone.tokens(images, [0, 1, 2], normed=False)):
        (normed,) = backbone.tokens(images, [block])
        torch.testing.assert_close(encoder.norm(tokens), normed)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(backbone.features(images, [2], "both", normed=False), expected)


def test_a_cover_holds_what_it_must():
    assert cover([Feature((2,), "cls"), Feature((0, 2), "cls")]) == Feature((0, 2), "cls")
    assert cover([Feature((2,), "cls"), Feature((1,), "mean")]) == Feature((1, 2), "both")


def test_a_bank_without_the_feature_is_an_error():
    bank = FeatureBank(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), Feature((0,), "mean"))
    with pytest.raises(ValueError, match="is not in list"):
        bank.select(Feature((0,), "cls"))


def test_what_memory_does_not_hold_lies_in_a_file_that_leaves_nothing_behind(make_evaluation, backbone, tmp_path):
    evaluation, extractor = make_evaluation(), backbone.extractor(FEATURES[0])
    inside, _ = extract_features(extractor, evaluation.data, "train")
    resources = Resources(memory_gb=1e-7, folder=tmp_path / "made")
    outside, labels = extract_features(extractor, evaluation.data, "train", resources=resources)
    assert torch.equal(inside, outside)
    assert torch.equal(labels, evaluation.train_labels)
    assert ".features-" in Path("/proc/self/maps").read_text()
    assert list((tmp_path / "made").iterdir()) == []


def test_raw_pixels_are_the_image_and_its_patches():
    images, pixels = torch.randn(2, 3, 16, 16), RawPixels((16, 16), 3, 4)
    assert torch.equal(pixels.features(images, [0], "whole"), images.flatten(1))
    assert pixels.tokens(images, [0])[0].shape == (2, 16, 48)
    assert pixels.feature("mean", "last", 4) == Feature((0,), "whole")


def test_a_block_or_pooling_that_is_not_there_is_named(backbone):
    assert backbone.feature("cls", "last", 4) == Feature((0, 1, 2), "cls")
    assert backbone.feature("cls", 2, 1) == Feature((1,), "cls")
    with pytest.raises(ValueError, match="layer=4 must be at most 3, the encoder's blocks"):
        backbone.feature("cls", 4, 1)
    backbone.pools = ("mean",)
    with pytest.raises(ValueError, match="pool=cls must be one of mean: this encoder has no class token"):
        backbone.feature("cls", "last", 1)


def test_held_out_folds_keep_fractions_and_grow_in_number_as_sets_shrink():
    labels = torch.arange(100) % 4
    folds = list(held_out_folds(labels))
    assert len(folds) == 5
    assert len(list(held_out_folds(torch.arange(5000) % 4))) == 1
    for fold in folds:
        assert torch.bincount(labels[fold]).tolist() == [5] * 4
    assert not torch.equal(folds[0], folds[1])


def test_the_best_feature_is_the_one_that_classifies_held_out_images():
    labels = torch.arange(60) % 3
    values = torch.cat([torch.randn(60, 3), torch.nn.functional.one_hot(labels, 3).float()], dim=1)
    bank = FeatureBank(values, labels, Feature((0, 1), "mean"))
    seen = []

    def scores_of(train, train_labels, held_out):
        seen.append((len(train), len(held_out)))
        return [torch.zeros(len(held_out), 3), held_out]

    best = best_feature(scores_of, bank, [Feature((0,), "mean"), Feature((1,), "mean")])
    assert best == (Feature((1,), "mean"), 1)
    assert set(seen) == {(48, 12)}


def test_two_processes_find_what_one_does(data_config, backbone, free_port):
    """29 and 11 images do not divide by two, and 15 are no whole number of batches of 4."""

    def found():
        data = ImageDataModule(None, replace(data_config, batch_size=4), image_size=16, seed=0)
        extractor = backbone.extractor(backbone.feature("both", "last", 1))
        with process_group() as ranks:
            cases = ("train", 0), ("train", 29), ("test", 11)
            extracted = [extract_features(extractor, data, *case, resources=Resources("cpu", ranks)) for case in cases]
        return [tensor.numpy() for pair in extracted for tensor in pair]

    first, second = on_ranks(2, free_port, found)
    for one, two, other in zip(found(), first, second, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=1e-5)  # batches differ in size
        np.testing.assert_array_equal(other, two)


def test_feature_std_is_one_for_noise_and_zero_for_a_collapse():
    assert float(feature_std(torch.randn(2000, 64))) == pytest.approx(1, abs=0.02)
    assert float(feature_std(torch.ones(2000, 64))) == pytest.approx(0, abs=1e-5)


def test_rankme_counts_directions():
    basis = torch.linalg.qr(torch.randn(32, 32))[0]
    rotated = torch.linalg.qr(torch.randn(500, 32))[0]
    assert rankme(rotated @ basis) == pytest.approx(32, rel=1e-3)
    assert rankme(rotated[:, :5] @ basis[:5]) == pytest.approx(5, rel=1e-2)


def test_a_bar_is_shown_on_a_terminal_alone_and_leaves_no_line(make_evaluation, monkeypatch, capsys):
    loader = make_evaluation().data.eval_dataloader("test")
    assert len(list(tracked(loader, "test features"))) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert len(list(tracked(loader, "test features"))) == 2
    shown = capsys.readouterr().err
    assert "test features" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
    assert len(list(tracked(loader, ""))) == 2
    assert capsys.readouterr().err == ""


def test_a_log_hears_of_work_that_goes_on(monkeypatch, capsys):
    """A grid that took 386 s said nothing for minutes."""
    monkeypatch.setattr(features, "SILENCE", 0.0)
    assert list(tracked([1, 2, 3], "raw pixels: heads")) == [1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [f"raw pixels: heads: {done} of 3" for done in (1, 2, 3)]
    monkeypatch.setattr(features, "SILENCE", 0.01)
    with waiting("encoder: classifying"):
        time.sleep(0.1)
    assert capsys.readouterr().err.splitlines()[0] == "encoder: classifying: 0 s"
    with waiting(""):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
