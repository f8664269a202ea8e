"""The discrete VAE: strides, the relaxation, what its losses are, that it learns."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ssl_vit.config.tokenizer_schema import DVAEConfig
from ssl_vit.tokenizers.base import load_tokenizer, save_tokenizer
from ssl_vit.tokenizers.dvae import DVAE, DVAETraining, divergence_from_uniform, strides_of, unevenness

SETTINGS = {"vocab_size": 12, "patch_size": 4, "image_size": 16, "width": 32, "residuals": 1, "code_dim": 8}


def test_strides_multiply_to_the_patch():
    assert strides_of(16) == [2, 2, 2, 2]
    assert strides_of(14) == [2, 7]
    assert strides_of(1) == []


@pytest.mark.parametrize(("patch_size", "channels"), [(4, 3), (2, 1), (6, 4)])
def test_one_token_a_patch_and_back(patch_size, channels, tmp_path):
    settings = SETTINGS | {"patch_size": patch_size, "image_size": [4 * patch_size, 2 * patch_size]}
    tokenizer = DVAE(DVAEConfig(**settings, channels=channels)).eval()
    images = torch.rand(2, channels, 4 * patch_size, 2 * patch_size)
    tokens = tokenizer(images)
    assert tokens.shape == (2, 8)
    drawn = tokenizer.decode(tokens)
    assert drawn.shape == images.shape
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert torch.equal(load_tokenizer(save_tokenizer(tokenizer, tmp_path))(images), tokens)


def test_tokens_are_the_likeliest_and_do_not_change_in_low_precision():
    tokenizer, images = DVAE(DVAEConfig(**SETTINGS)).eval(), torch.rand(2, 3, 16, 16)
    expected = tokenizer.scores(images).argmax(1).flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer(images), expected)


def test_a_token_reads_its_patch_and_not_the_far_corner():
    tokenizer, images = (
        DVAE(DVAEConfig(**SETTINGS | {"image_size": 64})).eval(),
        torch.rand(1, 3, 64, 64, requires_grad=True),
    )
    tokenizer.scores(images)[0, :, 0, 0].sum().backward()
    assert images.grad[0, :, :4, :4].abs().sum() > 0
    assert images.grad[0, :, -1, -1].abs().sum() == 0


def test_divergence_is_zero_for_equally_likely_tokens_and_ln_k_for_a_certain_one():
    assert float(divergence_from_uniform(torch.zeros(2, 12, 4, 4))) == pytest.approx(0, abs=1e-6)
    certain = torch.zeros(2, 12, 4, 4)
    certain[:, 3] = 100.0
    assert float(divergence_from_uniform(certain)) == pytest.approx(math.log(12), rel=1e-5)


def test_unevenness_is_zero_where_certain_tokens_divide_the_patches_and_ln_k_where_one_has_all():
    even = 100 * torch.nn.functional.one_hot(torch.arange(12)).float()[None, :, :, None]  # [1, K, 12 patches, 1]
    assert float(unevenness(even)) == pytest.approx(0, abs=1e-5)
    one = torch.zeros(2, 12, 4, 4)
    one[:, 3] = 100.0
    assert float(unevenness(one)) == pytest.approx(math.log(12), rel=1e-5)


def test_losses_are_the_squared_error_and_the_weighted_divergence():
    training = DVAETraining(**SETTINGS, kl=0.5, kl_warmup=0.0)
    images = torch.rand(2, 3, 16, 16)
    losses = training.losses(images)
    scores = training.tokenizer.scores(images)
    torch.testing.assert_close(losses["unevenness"], training.config.usage * unevenness(scores))
    torch.testing.assert_close(losses["divergence"], 0.5 * divergence_from_uniform(scores))
    assert float(losses["reconstruction"].detach()) == pytest.approx(
        10 ** (-float(training.extra_metrics["psnr"]) / 10), rel=1e-4
    )


def test_it_learns_to_draw_four_images(tmp_path):
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), 16)  # a color for each patch
    training = DVAETraining({"base_lr": 0.3, "warmup_epochs": 0}, **SETTINGS | {"vocab_size": 64}, kl=0.0)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader([images] * 200, batch_size=None))  # pyright: ignore[reportArgumentType]
    tokenizer = training.tokenizer.eval()
    error = (tokenizer.decode(tokenizer(images)) - images).square().mean()
    assert float(error) < 0.25 * float(images.var())
    assert len(tokenizer(images).unique()) > 8
