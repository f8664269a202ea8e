"""Schedules, masks, positions and parameter groups against their plainest form."""

import math

import pytest
import torch

from ssl_vit.methods.mae import MAE
from ssl_vit.methods.masking import index_to_mask, num_keep, random_masking
from ssl_vit.models.stem import resample, sincos_2d
from ssl_vit.optim.param_groups import decay_groups, scaled_lr
from ssl_vit.optim.schedules import warmup_cosine


def test_warmup_cosine_at_its_corners():
    value = lambda step: warmup_cosine(step, 100, peak=2.0, final=0.5, warmup=20)  # noqa: E731
    assert value(0) == 0
    assert value(10) == 1.0
    assert value(20) == 2.0
    assert value(60) == pytest.approx(1.25)  # half-way down
    assert value(100) == pytest.approx(0.5)
    assert value(130) == pytest.approx(0.5)


def test_warmup_cosine_works_on_shares_of_a_run():
    for fraction in (0.0, 0.05, 0.1, 0.5, 1.0):
        by_steps = warmup_cosine(fraction * 1000, 1000, peak=1.0, final=0.0, warmup=100)
        assert warmup_cosine(fraction, 1.0, peak=1.0, final=0.0, warmup=0.1) == pytest.approx(by_steps)


def test_lr_is_linear_in_the_global_batch():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)  # the paper's run


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(196, 0.75, 49), (256, 0.75, 64), (64, 0.6, 25), (36, 0.4, 21)])
def test_visible_and_hidden_make_up_the_image(patches, ratio, kept):
    assert num_keep(patches, ratio) == kept
    visible, hidden = random_masking(torch.rand(5, patches), kept)
    assert visible.shape == (5, kept)
    together = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(patches).expand(5, -1))
    mask = index_to_mask(hidden, patches)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == patches - kept).all()
    assert not mask.gather(1, visible).any()


def test_every_patch_is_hidden_equally_often():
    _, hidden = random_masking(torch.rand(8000, 16), 4)
    fraction = index_to_mask(hidden, 16).float().mean(0)
    assert (fraction - 0.75).abs().max() < 4.5 * math.sqrt(0.75 * 0.25 / 8000)  # binomial, 16 chances


@pytest.mark.parametrize(("h", "w"), [(14, 14), (16, 16), (3, 5)])
def test_sincos_table_against_the_formula_point_by_point(h, w):
    width = 16
    table = sincos_2d(h, w, width)[0]
    for row in range(h):
        for column in range(w):
            for i in range(width // 4):
                frequency = 10_000 ** (-i / (width / 4))
                expected = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos)]
                found = table[row * w + column, i :: width // 4]
                assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_resampling_to_the_same_grid_changes_nothing_and_keeps_constants():
    table = torch.randn(1, 12, 8)
    assert resample(table, (3, 4), (3, 4)) is table
    torch.testing.assert_close(resample(torch.ones(1, 12, 8), (3, 4), (7, 5)), torch.ones(1, 35, 8))


def test_mae_decays_tokens_but_no_vector_and_no_bias():
    method = MAE(
        {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 16},
        decoder_embed_dim=8,
        decoder_num_heads=2,
    )
    named = list(method.named_parameters())
    decayed, spared = decay_groups(named, 0.05, method.decays)
    names = {id(parameter): name for name, parameter in named}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert {"encoder.cls_token", "decoder.mask_token"} <= {names[id(parameter)] for parameter in decayed["params"]}
    assert all("norm" in name or name.endswith(".bias") for name in spared_names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(named)
