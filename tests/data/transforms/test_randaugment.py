"""RandAugment's operations against timm's on PIL images, and the laws of the transform."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import (
    _RAND_INCREASING_TRANSFORMS,
    LEVEL_TO_ARG,
    NAME_TO_OP,
    rand_augment_transform,
)

from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.data.transforms.randaugment import APPLIED, OPERATIONS, Augmented, Jittered, operate

FILL = (118, 115, 103)
THEIRS = dict(zip(OPERATIONS, _RAND_INCREASING_TRANSFORMS, strict=True))
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def photo(height: int = 37, width: int = 48, channels: int = 3) -> torch.Tensor:
    """A smooth image with some noise, uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, channels, 6, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    noise = torch.rand(channels, height, width, generator=generator)
    return ((smooth * 0.85 + noise * 0.15).clamp(0, 1) * 255).to(torch.uint8)


def theirs(name: str, image: torch.Tensor, magnitude: float, sign: int, monkeypatch) -> torch.Tensor:
    """timm's operation, bilinear, its coin thrown as `sign` says."""
    monkeypatch.setattr("timm.data.auto_augment._randomly_negate", lambda value: sign * value)
    level_of = LEVEL_TO_ARG[THEIRS[name]]
    arguments = level_of(magnitude, {}) if level_of else ()
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    keywords = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
    changed = NAME_TO_OP[THEIRS[name]](pil, *arguments, **keywords)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 9.0, 9.7, 10.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_operation_is_timms(name, magnitude, sign, monkeypatch):
    if name == "posterize":
        magnitude = min(magnitude, 9.99)  # at 10 timm asks PIL to keep no bit, which PIL refuses
    image = photo()
    ours = operate(name, image, magnitude, sign, FILL)
    other = theirs(name, image, magnitude, sign, monkeypatch)
    assert ours.dtype == torch.uint8
    difference = (ours.int() - other.int()).abs()
    if name in GEOMETRIC:
        # A sampling point that falls on the image's edge may count as inside for one and outside for the other.
        assert float((difference > 1).float().mean()) < 0.005
        assert float((ours != image).any(0).float().mean()) > 0.5 or magnitude == 0
    else:
        assert int(difference.max()) <= 1  # gray of real weights here, of whole numbers there


def test_a_image_keeps_one_bit_at_least():
    assert torch.equal(operate("posterize", photo(), 10.0, 1, FILL), photo() & 128)


def test_the_operations_are_timms_in_its_order_and_at_its_probability():
    transform = rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert [op.name for op in transform.ops] == [THEIRS[name] for name in OPERATIONS]
    assert {op.prob for op in transform.ops} == {APPLIED}
    assert transform.num_layers == 2


def transform(magnitude: float = 9.0, std: float = 0.5, operations: int = 2) -> Augmented:
    return Augmented(RandomCrop((24, 24), (0.5, 1.0)), magnitude, std, operations, FILL)


def test_the_same_numbers_make_the_same_view_and_others_another():
    numbers = np.random.default_rng(0).uniform(size=(2, transform().num_random))
    first, again, other = (transform()(photo(), u) for u in (numbers[0], numbers[0], numbers[1]))
    assert first.shape == (3, 24, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_magnitude_zero_is_the_crop_alone():
    plain = RandomCrop((24, 24), (0.5, 1.0))
    u = np.random.default_rng(0).uniform(size=plain.num_random)
    assert transform(magnitude=0).num_random == plain.num_random
    assert torch.equal(transform(magnitude=0)(photo(), u), plain(photo(), u))


def test_magnitudes_scatter_and_operations_are_drawn_evenly(monkeypatch):
    met: list = []
    monkeypatch.setattr(
        "ssl_vit.data.transforms.randaugment.operate", lambda name, x, m, sign, fill: met.append((name, m, sign)) or x
    )
    augmented, image = transform(magnitude=5.0), photo(8, 8)
    for u in np.random.default_rng(0).uniform(size=(1500, augmented.num_random)):
        augmented(image, u)
    names, magnitudes, signs = zip(*met, strict=True)
    assert len(met) == pytest.approx(1500, abs=4 * (3000 * 0.25) ** 0.5)  # two coins an image, four deviations
    assert np.mean(magnitudes) == pytest.approx(5.0, abs=0.06)
    assert np.std(magnitudes) == pytest.approx(0.5, abs=0.05)
    assert np.mean(signs) == pytest.approx(0, abs=0.11)
    assert min(names.count(name) for name in OPERATIONS) > 60  # 100 expected


def test_magnitudes_stay_in_range(monkeypatch):
    met: list = []
    monkeypatch.setattr("ssl_vit.data.transforms.randaugment.operate", lambda name, x, m, *_: met.append(m) or x)
    augmented = transform(magnitude=10.0, std=3.0)
    for u in np.random.default_rng(0).uniform(size=(200, augmented.num_random)):
        augmented(photo(8, 8), u)
    assert max(met) == 10.0
    assert min(met) >= 0


def test_gray_images_go_through_every_operation():
    for name in OPERATIONS:
        assert operate(name, photo(channels=1), 9.0, 1, (118,)).shape == (1, 37, 48)


def test_jitter_comes_after_on_the_device_with_numbers_of_its_own():
    colors = ColorAugmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, gray_p=0, blur_p=0, solarize_p=0)
    jittered, plain = Jittered(transform(), colors), transform()
    u = np.random.default_rng(0).uniform(size=(2, jittered.num_random))
    views = torch.stack([jittered(photo(), numbers) for numbers in u])
    assert torch.equal(views[0], plain(photo(), u[0, : plain.num_random]))
    statistics = ([0.5] * 3, [0.2] * 3)
    torch.testing.assert_close(
        jittered.color(views, u, statistics), colors(views, u[:, plain.num_random :], statistics)
    )
