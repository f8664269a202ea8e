from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.optimize import brentq
from sklearn.datasets import load_digits, load_sample_images
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2 import functional as F

from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.data.rng import uniforms
from ssl_vit.data.transforms import color as module
from ssl_vit.data.transforms.color import (
    ORDERS,
    ColorAugmentation,
    adjust_brightness,
    adjust_contrast,
    convolve,
    gaussian_band,
    hue_mix,
    mix,
    saturation_mix,
    solarize,
    to_gray,
    turn_hue,
)
from ssl_vit.models.preprocess import normalize

COUNT = 10_000
ALL = ColorAugmentation(blur_p=0.5, solarize_p=0.5)


def adjust_saturation(images, factor):
    return mix(images, saturation_mix(factor))


def adjust_hue(images, shift):
    return turn_hue(images, hue_mix(shift))


def gaussian_blur(images, sigma, radius):
    return convolve(images, gaussian_band(sigma, radius))


def photographs(side: int = 40) -> torch.Tensor:
    """Parts of scikit-learn's two photographs."""
    whole = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    return torch.cat([whole[:, :, top : top + side, 200 : 200 + side] for top in (0, 150, 300)])


NUM_IMAGES = {
    "random": torch.randint(0, 256, (6, 3, 24, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "photographs": photographs(),
    "digits": torch.from_numpy((load_digits().images[:6, None] * (255 / 16)).astype(np.uint8)).expand(-1, 3, -1, -1),
    "one color": torch.tensor([0, 255, 128, 127, 1, 254], dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 9, 9),
    "primaries": torch.eye(3, dtype=torch.uint8).mul(255).view(1, 3, 3, 1).expand(6, 3, 3, 9).repeat(1, 1, 3, 1),
    "one channel": photographs()[:, :1],
}
originals = pytest.mark.parametrize("images", NUM_IMAGES.values(), ids=NUM_IMAGES.keys())


def one_by_one(operation, images: torch.Tensor, *factors: list[float]) -> torch.Tensor:
    """torchvision on each image alone, in its own range of floats, 0 .. 1."""
    return torch.stack([operation(image / 255, *factor) for image, *factor in zip(images, *factors, strict=True)]) * 255


def same(found: torch.Tensor, expected: torch.Tensor, atol: float = 0.01) -> None:
    """The contract is one gray value of 255; floats in 0 .. 255 round a hundred times finer."""
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions(channels):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, 16, 16)
    mean, std = IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
    expected = F.normalize(images.float() / 255, mean, std)
    for given_images in (images, images.float()):
        found = normalize(given_images, mean, std)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # values to 2.7: two units in the last place


def test_normalizing_can_be_its_last_step():
    images = NUM_IMAGES["photographs"]
    u = uniforms(0, 0, np.arange(len(images)), ALL.num_random)
    found = ALL(images, u, (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, normalize(ALL(images, u), IMAGENET_MEAN, IMAGENET_STD), rtol=0, atol=1e-6)


def test_normalize_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="zip"):
        normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0.5] * 3, [0.5] * 2)


@originals
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, F.adjust_brightness, [0.0, 0.6, 1.0, 1.4, 0.9, 2.0]),
        (adjust_contrast, F.adjust_contrast, [0.0, 0.6, 1.0, 1.4, 0.9, 2.0]),
        (adjust_saturation, F.adjust_saturation, [0.0, 0.8, 1.0, 1.2, 0.5, 2.0]),
        (adjust_hue, F.adjust_hue, [-0.5, -0.1, 0.0, 0.07, 0.35, 0.5]),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_jitter_is_torchvisions_with_a_factor_per_image(images, ours, theirs, factors):
    floats = images.float()
    expected = one_by_one(theirs, floats, factors)
    same(ours(floats, torch.tensor(factors)), expected)
    same(floats, expected)  # in place


@given(st.lists(st.floats(0, 255, width=32), min_size=3, max_size=3), st.floats(-0.5, 0.5))
@settings(deadline=None, max_examples=300)
def test_hue_is_torchvisions_on_any_color(color, shift):
    pixel = torch.tensor(color).view(1, 3, 1, 1)
    found = adjust_hue(pixel.clone(), torch.tensor([shift]))
    same(found, F.adjust_hue(pixel / 255, shift) * 255)
    same(found.amax(1), pixel.amax(1))
    same(found.amin(1), pixel.amin(1))


@originals
def test_gray_is_torchvisions(images):
    channels = images.shape[1]
    same(to_gray(images.float()), one_by_one(partial(F.rgb_to_grayscale, num_output_channels=channels), images.float()))


SIGMAS = [0.1, 0.3, 0.5, 1.0, 1.6, 2.0]


def plain_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """A box of std sigma / sqrt(3) pixels three times over, edges repeated, in float64."""
    whole = int((np.sqrt(4 * sigma**2 + 1) - 1) / 2)
    offset = np.arange(-whole - 1, whole + 2)

    def box_of(part: float) -> np.ndarray:
        box = np.array([part, *[1.0] * (2 * whole + 1), part])
        return box / box.sum()

    box = box_of(brentq(lambda part: (box_of(part) * offset**2).sum() - sigma**2 / 3, 0, 1, xtol=1e-12))
    kernel = torch.from_numpy(np.convolve(np.convolve(box, box), box))
    radius = len(kernel) // 2
    padded = torch.nn.functional.pad(image.double()[None], [radius] * 4, mode="replicate")[0]
    rows = padded.unfold(1, len(kernel), 1) @ kernel
    return (rows.unfold(2, len(kernel), 1) @ kernel).float()


@originals
def test_blur_is_a_box_three_times_with_a_sigma_per_image(images):
    radius = ColorAugmentation(blur_p=1.0, solarize_p=0.0).blur_radius
    same(gaussian_blur(images.float(), torch.tensor(SIGMAS), radius), one_by_one(plain_blur, images.float(), SIGMAS))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_is_pils_inside_the_image(sigma):
    """PIL rounds after each of its six passes by at most one half, and a mean makes no error larger."""
    images = photographs(64)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma)) for image in images]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pil]).float()
    found = gaussian_blur(images.float().contiguous(), torch.full((len(images),), sigma), 6)
    inside = (..., slice(6, -6), slice(6, -6))
    same(found[inside], expected[inside], atol=3)


def test_a_kernel_has_room_for_every_sigma():
    for largest in (0.01, 0.7, 1.5, 2.0, 3.3, 10.0):
        color = ColorAugmentation(blur_p=1.0, solarize_p=0.0, blur_sigma=(0.01, largest))
        band = gaussian_band(torch.tensor([largest]), color.blur_radius)
        torch.testing.assert_close(band.sum(2), torch.ones_like(band[..., 0]))


def test_solarize_is_torchvisions_on_whole_numbers_and_within_one_between_them():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(solarize(values.float()), F.solarize(values, 128).float())
    between = torch.linspace(0, 255, 9999).view(1, 1, 1, -1)
    expected = F.solarize(between / 255, 128 / 255) * 255
    same(solarize(between), expected, atol=1)


def reference(color: ColorAugmentation, images: torch.Tensor, u: np.ndarray) -> torch.Tensor:
    """Image by image through torchvision."""
    strengths = color.strengths(u)
    changed = []
    for b, image in enumerate(images / 255):
        jitters = [
            partial(F.adjust_brightness, brightness_factor=strengths.brightness[b]),
            partial(F.adjust_contrast, contrast_factor=strengths.contrast[b]),
            partial(F.adjust_saturation, saturation_factor=strengths.saturation[b]),
            partial(F.adjust_hue, hue_factor=strengths.hue[b]),
        ]
        for number in strengths.order[b] if strengths.jitter[b] else []:
            image = jitters[number](image)
        if strengths.gray[b]:
            image = F.rgb_to_grayscale(image, num_output_channels=len(image))
        if strengths.blur[b]:
            image = plain_blur(image, strengths.sigma[b])
        changed.append(F.solarize(image, 128 / 255) if strengths.solarize[b] else image)
    return torch.stack(changed) * 255


@originals
@pytest.mark.parametrize("small", [0, 2**30], ids=["one by one", "all at once"])
def test_the_chain_is_torchvisions(images, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL_BYTES", small)
    images = images.repeat(12, 1, 1, 1)
    u = uniforms(0, 0, np.arange(len(images)), ALL.num_random)
    found = ALL(images, u)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    same(found, reference(ALL, images, u), atol=1)  # solarization jumps by up to 1 where theirs does


def test_an_image_is_changed_alike_whatever_else_is_in_the_batch():
    images = NUM_IMAGES["photographs"].repeat(4, 1, 1, 1)
    u = uniforms(0, 0, np.arange(24), ALL.num_random)
    together = ALL(images, u)
    alone = torch.cat([ALL(images[b : b + 1], u[b : b + 1]) for b in range(24)])
    same(together, alone, atol=1e-3)  # sums of other lengths round otherwise
    backwards = ALL(images.flip(0), u[::-1].copy()).flip(0)
    same(backwards, together, atol=1e-3)


def test_an_empty_batch_stays_empty():
    assert ALL(torch.empty(0, 3, 16, 16, dtype=torch.uint8), np.empty((0, ALL.num_random))).shape == (0, 3, 16, 16)


def test_its_input_stays_as_it_was():
    images = NUM_IMAGES["photographs"].clone()
    ALL(images, uniforms(0, 0, np.arange(6), ALL.num_random))
    assert torch.equal(images, NUM_IMAGES["photographs"])


def test_each_operation_has_its_probability():
    color = ColorAugmentation(blur_p=0.1, solarize_p=0.2)
    strengths = color.strengths(uniforms(0, 0, np.arange(COUNT), color.num_random))
    for name, p in {"jitter": 0.8, "gray": 0.2, "blur": 0.1, "solarize": 0.2}.items():
        fraction = getattr(strengths, name).mean()
        assert abs(fraction - p) < 4 * np.sqrt(p * (1 - p) / COUNT), name  # four standard deviations of a binomial
    for name, p in {"jitter": 0.0, "gray": 1.0, "blur": 1.0, "solarize": 0.0}.items():
        extreme = ColorAugmentation(jitter_p=0.0, gray_p=1.0, blur_p=1.0, solarize_p=0.0)
        assert (getattr(extreme.strengths(uniforms(0, 0, np.arange(COUNT), color.num_random)), name) == p).all(), name


def test_factors_are_uniform_in_torchvisions_ranges():
    color = ColorAugmentation(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, blur_p=1.0, solarize_p=0.0)
    strengths = color.strengths(uniforms(0, 0, np.arange(COUNT), color.num_random))
    jitter = ColorJitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    ranges = {name: getattr(jitter, name) for name in ("brightness", "contrast", "saturation", "hue")}
    for name, (low, high) in (ranges | {"sigma": (0.1, 2.0)}).items():
        places = np.sort((getattr(strengths, name) - low) / (high - low))
        assert places[0] >= 0, name
        assert places[-1] <= 1, name
        gap = abs(places - (np.arange(COUNT) + 0.5) / COUNT).max()
        assert gap < 1.95 / np.sqrt(COUNT), name  # p = .001 of the Kolmogorov distribution


def test_every_order_of_the_jitter_is_as_likely():
    order = ALL.strengths(uniforms(0, 0, np.arange(COUNT), ALL.num_random)).order
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == len(ORDERS) == 24
    chi_square = ((counts - COUNT / 24) ** 2 / (COUNT / 24)).sum()
    assert chi_square < 23 + 5 * np.sqrt(
        2 * 23
    )  # mean and five standard deviations of chi-square with 23 degrees of freedom


def test_random_numbers_of_one_operation_say_nothing_about_another():
    strengths = ALL.strengths(uniforms(0, 0, np.arange(COUNT), ALL.num_random))
    columns = [np.asarray(values if values.ndim == 1 else values[:, 0], dtype=float) for values in strengths]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(correlations).max() < 4.5 / np.sqrt(COUNT)


def test_other_channels_can_be_brightened_and_blurred_only():
    images = torch.randint(0, 256, (4, 5, 16, 16), dtype=torch.uint8)
    plain = ColorAugmentation(
        contrast=0.0, saturation=0.0, hue=0.0, gray_p=0.0, jitter_p=1.0, blur_p=1.0, solarize_p=0.0
    )
    u = uniforms(0, 0, np.arange(4), plain.num_random)
    strengths = plain.strengths(u)
    brighter = images * torch.from_numpy(strengths.brightness).float().view(-1, 1, 1, 1)
    sigma = torch.from_numpy(strengths.sigma).float()
    same(plain(images, u), gaussian_blur(brighter.clamp(0, 255), sigma, 6))
    with pytest.raises(ValueError, match=r"method\.jitter_p=0\.8 .* encoder\.channels=5 .* set both to 0"):
        ALL(images, u)
    with pytest.raises(ValueError, match=r"method\.gray_p=0\.2 .* encoder\.channels=5"):
        ColorAugmentation(jitter_p=0.0, blur_p=0.0, solarize_p=0.0)(images, u)
