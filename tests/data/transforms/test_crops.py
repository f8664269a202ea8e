import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as v1
from torchvision.transforms.v2 import functional as F

from ssl_vit.data.rng import uniforms
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import BICUBIC, MultiCrop, RandomCrop, Transform
from ssl_vit.models.preprocess import CenterCrop

COUNT = 4000


def image(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Smooth, so that two resamplings agree to a gray value or two."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(rows / 7 + c) * np.cos(columns / 9 - c) for c in range(channels)]
    return torch.from_numpy(np.stack(waves).astype(np.uint8))


def statistics(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, h, w = boxes.T.astype(np.float64)
    free = (height - h > 8) & (width - w > 8)  # elsewhere the position has few values
    return {
        "area": h * w / (height * width),
        "ratio": np.log(w / h),
        "top": ((top + 0.5) / (height - h + 1))[free],
        "left": ((left + 0.5) / (width - w + 1))[free],
    }


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic."""
    values = np.sort(np.concatenate([first, second]))
    fractions = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(abs(fractions[0] - fractions[1]).max())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 90)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, scale):
    transform = RandomCrop((32, 32), scale)
    ours = [transform.box(height, width, u) for u in uniforms(0, 0, np.arange(COUNT), transform.num_random)]
    canvas, ratio = torch.empty(3, height, width), [3 / 4, 4 / 3]
    theirs = [RandomResizedCrop.get_params(canvas, list(scale), ratio) for _ in range(COUNT)]
    ours, theirs = (statistics(np.array(boxes), height, width) for boxes in (ours, theirs))
    for name in ours:
        counts = len(ours[name]), len(theirs[name])
        bound = 2.0 * math.sqrt(sum(counts) / math.prod(counts))  # p < .001
        assert largest_gap(ours[name], theirs[name]) < bound, name


@pytest.mark.parametrize(("height", "width", "box"), [(10, 400, (0, 193, 10, 13)), (400, 10, (193, 0, 13, 10))])
def test_without_a_legal_box_the_middle_is_taken(height, width, box):
    transform = RandomCrop((8, 8), (0.9, 1.0))
    assert transform.box(height, width, np.full(transform.num_random, 0.5)) == box
    assert RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3]) == box


def test_a_crop_that_is_no_square_is_stretched_no_more_than_one_that_is():
    """Views of 64 x 192 of 300 x 900 images were stretched 2.25 to 4 times, and none saw half of the width.

    The logarithm of the stretch is uniform in +-log(4 / 3): its mean is 0, within 4 of its own standard errors. Whole
    pixels round a side of at least 134 by half of one.
    """
    transform = RandomCrop((64, 192), (0.2, 1.0))
    boxes = np.array([transform.box(300, 900, u) for u in uniforms(0, 0, np.arange(COUNT), transform.num_random)])
    stretch = np.log((boxes[:, 3] / boxes[:, 2]) / (192 / 64))
    limit = math.log(4 / 3)
    assert abs(stretch).max() < limit + 0.5 / 100
    assert abs(stretch.mean()) < 4 * limit / math.sqrt(3 * COUNT)
    widths = boxes[:, 3] / 900
    assert widths.max() > 0.95
    assert widths.min() > math.sqrt(0.2 * 3 / 4) - 0.01


def test_the_numbers_of_a_square_crop_stay_to_the_bit():
    """A ratio times 1 is the ratio: the boxes of torchvision's default, by these numbers, as they always were."""
    transform = RandomCrop((32, 32), (0.08, 1.0))
    for u in uniforms(3, 1, np.arange(200), transform.num_random):
        low, high = math.log(3 / 4), math.log(4 / 3)
        area, ratio = 200 * 90 * (0.08 + 0.92 * u[0]), math.exp(low + (high - low) * u[1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= 90 and h <= 200:
            assert transform.box(200, 90, u) == (int(u[-3] * (201 - h)), int(u[-2] * (91 - w)), h, w)


@pytest.mark.parametrize(("height", "width"), [(300, 900), (900, 300), (257, 640)])
def test_the_middle_is_stretched_by_rounding_alone(height, width):
    """Evaluation scales both sides alike: a line of the image stays in proportion, to a pixel."""
    rows, columns = np.mgrid[:height, :width]
    ramp = torch.from_numpy(np.stack([rows * 200 / height, columns * 200 / width]).astype(np.uint8))
    middle = CenterCrop((64, 192), 0.875)(ramp).float()
    down = float(middle[0, -1].mean() - middle[0, 0].mean()) / 200 * height / 63  # image pixels a pixel
    across = float(middle[1, :, -1].mean() - middle[1, :, 0].mean()) / 200 * width / 191
    gray_value = max(height / 63, width / 191) / 200 * max(height, width) / min(height, width)
    assert abs(down - across) < 0.05 * across + gray_value


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_a_box_lies_inside_and_the_crop_has_its_size(height, width, index):
    transform = RandomCrop((16, 24), (0.08, 1.0))
    u = uniforms(0, 0, np.array([index]), transform.num_random)[0]
    top, left, h, w = transform.box(height, width, u)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert min(h, w) > 0
    transform = transform(image(height, width), u)
    assert transform.shape == (3, 16, 24)
    assert transform.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("last", [0.1, 0.9])
def test_pixels_are_those_of_resized_crop(channels, last):
    transform, source = RandomCrop((24, 32), (0.2, 1.0)), image(50, 40, channels)
    u = uniforms(0, 0, np.array([7]), transform.num_random)[0]
    u[-1] = last
    box = transform.box(50, 40, u)
    expected = F.resized_crop(source, *box, [24, 32], interpolation=BICUBIC, antialias=True)
    assert torch.equal(transform(source, u), expected.flip(-1) if last < 0.5 else expected)
    older = v1.resized_crop(source, *box, [24, 32], interpolation=BICUBIC, antialias=True).int()
    assert (expected.int() - older).abs().max() <= 1
    if channels == 3:
        top, left, h, w = box
        cropped = Image.fromarray(source.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        pil = torch.from_numpy(np.asarray(cropped.resize((32, 24), Image.Resampling.BICUBIC)).copy()).permute(2, 0, 1)
        assert (expected.int() - pil.int()).abs().max() <= 2


def test_half_of_the_crops_are_mirrored_and_none_without_flip():
    source, whole = image(8, 8), (1.0, 1.0)
    random_numbers = uniforms(0, 0, np.arange(800), RandomCrop((8, 8), whole).num_random)
    for flip, fraction in ((True, 0.5), (False, 0.0)):
        transform = RandomCrop((8, 8), whole, ratio=(1.0, 1.0), flip=flip)
        mirrored = [torch.equal(transform(source, u), source.flip(-1)) for u in random_numbers]
        assert np.mean(mirrored) == pytest.approx(fraction, abs=0.05)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 375), (96, 130), (256, 256)])
def test_the_middle_is_that_of_resize_and_center_crop(height, width):
    source = image(height, width)
    resized = F.resize(source, [256], interpolation=BICUBIC, antialias=True)
    transform = CenterCrop((224, 224), 0.875)(source)
    top, left = (resized.shape[-2] - 224) // 2, (resized.shape[-1] - 224) // 2
    assert torch.equal(transform, resized[:, top : top + 224, left : left + 224])


def test_an_image_that_fits_is_not_resampled():
    source = torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8)
    assert torch.equal(CenterCrop((40, 64), 1.0)(source), source)
    assert torch.equal(CenterCrop((20, 32), 0.5)(source), source[:, 10:30, 16:48])
    assert torch.equal(CenterCrop((40, 40), 1.0)(source), source[:, :, 12:52])


@given(st.integers(1, 80), st.integers(1, 80), st.floats(0.3, 1.0), st.integers(2, 40), st.integers(2, 40))
@settings(deadline=None, max_examples=60)
def test_the_middle_has_its_size_whatever_the_image(height, width, crop, h, w):
    assert CenterCrop((h, w), crop)(image(height, width)).shape == (3, h, w)


WHOLE, PART = RandomCrop((32, 40), (0.4, 1.0)), RandomCrop((16, 16), (0.05, 0.4), flip=False)
FIRST, SECOND = ColorAugmentation(blur_p=1.0, solarize_p=0.0), ColorAugmentation(blur_p=0.1, solarize_p=0.2)
REST = ColorAugmentation(blur_p=0.5, solarize_p=0.0)
MULTI = MultiCrop([(WHOLE, FIRST), (WHOLE, SECOND), (PART, REST), (PART, REST), (PART, REST)])


def test_the_crops_are_those_of_random_crop_with_the_same_numbers():
    assert isinstance(MULTI, Transform)
    geometry, colors = 2 * WHOLE.num_random + 3 * PART.num_random, 5 * FIRST.num_random
    assert MULTI.num_random == geometry + colors
    source, u = image(70, 90), uniforms(0, 0, np.arange(1), MULTI.num_random)[0]
    crops = MULTI(source, u)
    assert [tuple(crop.shape) for crop in crops] == [(3, 32, 40)] * 2 + [(3, 16, 16)] * 3
    for place, (crop, transform) in enumerate(zip(crops, [WHOLE, WHOLE, PART, PART, PART], strict=True)):
        assert torch.equal(
            crop, transform(source, u[place * transform.num_random : (place + 1) * transform.num_random])
        )
    u[geometry:] = 0.5
    assert all(map(torch.equal, crops, MULTI(source, u)))


def test_each_crop_has_numbers_of_its_own_within_its_scale():
    random_numbers = uniforms(0, 0, np.arange(1000), MULTI.num_random)
    areas = []
    for place, (transform, _) in enumerate(MULTI.crops):
        own = random_numbers[:, place * transform.num_random : (place + 1) * transform.num_random]
        boxes = np.array([transform.box(200, 220, u) for u in own])
        areas.append(boxes[:, 2] * boxes[:, 3] / (200 * 220))
        assert areas[-1].min() > transform.scale[0] - 0.01  # whole pixels
        assert areas[-1].max() < transform.scale[1] + 0.01
    correlations = np.corrcoef(areas) - np.eye(len(areas))
    assert abs(correlations).max() < 4.5 / math.sqrt(1000)


def test_each_crop_gets_the_colors_of_its_own_augmentation_and_numbers():
    random_numbers = uniforms(0, 0, np.arange(4), MULTI.num_random)
    crops = [
        torch.stack(transform) for transform in zip(*(MULTI(image(60, 70), u) for u in random_numbers), strict=True)
    ]
    colored = MULTI.color(crops, random_numbers)
    start = 2 * WHOLE.num_random + 3 * PART.num_random
    for crop, found, (_, color) in zip(crops, colored, MULTI.crops, strict=True):
        expected = color(crop, random_numbers[:, start : start + color.num_random])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # sums of other lengths round otherwise
        assert found.is_contiguous()
        start += color.num_random
