"""Schedules and parameter groups against their plainest form."""

import pytest

from ssl_vit.methods.mae import MAE
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


def test_warmup_cosine_works_on_fractions_of_a_run():
    for fraction in (0.0, 0.05, 0.1, 0.5, 1.0):
        by_steps = warmup_cosine(fraction * 1000, 1000, peak=1.0, final=0.0, warmup=100)
        assert warmup_cosine(fraction, 1.0, peak=1.0, final=0.0, warmup=0.1) == pytest.approx(by_steps)


def test_lr_is_linear_in_the_global_batch():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)  # the paper's run


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
