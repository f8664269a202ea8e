"""Mixup, CutMix and random erasing against timm's, and their laws."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from ssl_vit.data.transforms.mixing import AREA, ASPECT, Mix, draw_boxes, draw_mix, erase, mix_images, mix_targets


def batch(count: int = 6, side: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side + 4, generator=generator), torch.arange(count) % 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_targets_are_timms_for_the_same_draw(kind, smoothing, monkeypatch):
    images, labels = batch()
    np.random.seed(1)
    theirs = Mixup(
        0.8 if kind == "mixup" else 0.0, 1.0 if kind == "cutmix" else 0.0, label_smoothing=smoothing, num_classes=5
    )
    fraction, box = 0.3, None
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (fraction, kind == "cutmix"))
    if kind == "cutmix":
        met: list = []
        monkeypatch.setattr("timm.data.mixup.rand_bbox", lambda *a, **k: met.append(_box()) or met[-1])
    mixed, targets = theirs(images.clone(), labels)
    if kind == "cutmix":
        top, bottom, left, right = box = met[0]
        fraction = 1 - (bottom - top) * (right - left) / (12 * 16)
    mix = Mix(fraction, box)
    torch.testing.assert_close(mix_images(images, mix), mixed, atol=1e-6, rtol=0)
    torch.testing.assert_close(mix_targets(labels, 5, mix, smoothing), targets, atol=1e-6, rtol=0)


def _box() -> tuple[int, int, int, int]:
    return 2, 9, 5, 13


def test_targets_add_up_to_one_and_are_smoothed_once():
    targets = mix_targets(torch.tensor([0, 1]), 4, Mix(1.0), smoothing=0.2)
    expected = torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.85, 0.05, 0.05]])
    torch.testing.assert_close(targets, expected)
    mixed = mix_targets(torch.tensor([0, 1]), 4, Mix(0.75), smoothing=0.2)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2))
    torch.testing.assert_close(mixed[0], 0.75 * expected[0] + 0.25 * expected[1])


def test_draws_have_timms_distribution():
    """Shares and boxes of 4,000 draws: means of ours and of timm's within five standard errors."""
    random = np.random.default_rng(0)
    ours = [draw_mix(12, 16, 0.8, 1.0, 0.9, 0.5, random) for _ in range(4000)]
    np.random.seed(0)
    theirs = Mixup(0.8, 1.0, prob=0.9, num_classes=2)
    images, fractions, whole = torch.zeros(2, 1, 12, 16), [], 0
    for _ in range(4000):
        fraction = float(theirs._mix_batch(images))
        fractions.append(fraction)
        whole += fraction == 1
    assert np.mean([mix.fraction for mix in ours]) == pytest.approx(np.mean(fractions), abs=5 * (2 * 0.1 / 4000) ** 0.5)
    assert sum(mix.fraction == 1 for mix in ours) == pytest.approx(whole, abs=5 * (2 * 4000 * 0.09) ** 0.5)
    boxed = sum(mix.box is not None for mix in ours)
    assert boxed == pytest.approx(4000 * 0.9 * 0.5, abs=5 * (4000 * 0.25) ** 0.5)


@pytest.mark.parametrize(("mixup", "cutmix", "boxed"), [(0.8, 0.0, False), (0.0, 1.0, True)])
def test_one_kind_alone_is_always_that_kind(mixup, cutmix, boxed):
    random = np.random.default_rng(0)
    mixes = [draw_mix(32, 32, mixup, cutmix, 1.0, 0.5, random) for _ in range(50)]
    assert {mix.box is not None for mix in mixes if mix.fraction < 1} == {boxed}
    assert len({mix.fraction for mix in mixes}) > 30


def test_nothing_asked_for_is_nothing_done():
    images, _ = batch()
    mix = draw_mix(12, 16, 0.0, 0.0, 1.0, 0.5, np.random.default_rng(0))
    assert mix == Mix(1.0)
    assert mix_images(images, mix) is images
    boxes = draw_boxes(6, 12, 16, 0.0, np.random.default_rng(0))
    assert not boxes.any()
    assert torch.equal(erase(images, boxes), images)


def test_a_box_becomes_noise_and_the_rest_stays():
    images = torch.full((2, 3, 40, 40), 7.0)
    boxes = torch.tensor([[4, 30, 10, 36], [0, 0, 0, 0]])
    erased = erase(images, boxes, torch.Generator().manual_seed(0))
    changed = (erased != images).all(1)
    assert int(changed[0].sum()) == 26 * 26
    assert bool(changed[0, 4:30, 10:36].all())
    assert not changed[1].any()
    noise = erased[0, :, 4:30, 10:36]
    assert float(noise.mean()) == pytest.approx(0, abs=0.09)  # four standard errors of 2,028 pixels
    assert float(noise.std()) == pytest.approx(1, abs=0.07)
    assert len(noise.unique()) > 2000  # each pixel by itself


def test_boxes_have_timms_probability_area_and_shape():
    boxes = draw_boxes(4000, 64, 64, 0.25, np.random.default_rng(0))
    heights, widths = (boxes[:, 1] - boxes[:, 0]).float(), (boxes[:, 3] - boxes[:, 2]).float()
    erased = heights > 0
    area = heights * widths / 64**2
    theirs = RandomErasing(1.0, mode="pixel", device="cpu")
    fraction = torch.stack([(theirs(torch.full((1, 64, 64), 9.0)) != 9).float().mean() for _ in range(1500)])
    assert float(erased.float().mean()) == pytest.approx(0.25, abs=4 * (0.1875 / 4000) ** 0.5)
    assert float(area[erased].mean()) == pytest.approx(
        float(fraction.mean()), abs=5 * 0.09 * (1 / 1000 + 1 / 1500) ** 0.5
    )
    assert AREA[0] * 0.8 < float(area[erased].min())
    assert float(area[erased].max()) < AREA[1] * 1.05
    aspect = (heights / widths)[erased]
    assert ASPECT[0] * 0.8 < float(aspect.min())
    assert float(aspect.max()) < ASPECT[1] * 1.25
    assert float(boxes[:, 1].max()) <= 64
