"""RandAugment, mixup, CutMix and random erasing: timm's for the same seed, and nobody else's random numbers."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader

from ssl_vit.config.finetune_schema import FinetuneConfig
from ssl_vit.data.dataset import AugmentedDataset
from ssl_vit.data.loader import loader_options
from ssl_vit.data.rng import seeded_globals
from ssl_vit.data.sources.base import Source
from ssl_vit.data.transforms.augment import (
    LARGEST,
    BatchAugmentation,
    ColorJitteredCrop,
    RandAugmentCrop,
    randaugment,
    smooth_targets,
)
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop

FILL = (118, 115, 103)
CROP = RandomCrop((24, 24), (0.5, 1.0))
NONE = {"mixup": 0.0, "cutmix": 0.0, "erasing_p": 0.0, "label_smoothing": 0.1}


def photo(channels: int = 3) -> torch.Tensor:
    """A smooth image with some noise, uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, channels, 6, 7, generator=generator)
    smooth = F.interpolate(coarse, (37, 48), mode="bicubic")[0]
    noise = torch.rand(channels, 37, 48, generator=generator)
    return ((smooth * 0.85 + noise * 0.15).clamp(0, 1) * 255).to(torch.uint8)


def numbers(count: int, transform, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, transform.num_random))


def global_states() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.fixture(autouse=True)
def _global_generators_stay_as_they_are():
    before = global_states()[1:]  # beartype, which checks types in the tests, itself draws from Python's
    yield
    assert global_states()[1:] == before


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 12, 16, generator=generator), torch.arange(count) % 5


def augmentation(**options) -> BatchAugmentation:
    return BatchAugmentation(FinetuneConfig(**(NONE | options)), 5)


def test_the_operations_are_those_of_timms_text_form():
    ours = randaugment(9.0, 0.5, 2, FILL)
    hparams = {"img_mean": FILL, "magnitude_max": LARGEST, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-n2-inc1", hparams)
    assert [op.name for op in ours.ops] == [op.name for op in theirs.ops]
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in ours.ops} == {(0.5, 9.0, 0.5)}
    image = Image.fromarray(photo().permute(1, 2, 0).numpy())
    for seed in range(60):
        made = []
        for transform in (ours, theirs):
            with seeded_globals(seed):
                made.append(np.array(transform(image)))
        assert np.array_equal(*made)


def test_the_largest_magnitude_keeps_a_bit():
    """At 10 timm asks PIL to keep none, and PIL refuses."""
    posterize = next(op for op in randaugment(10.0, 0.0, 2, FILL).ops if "Posterize" in op.name)
    posterize.prob = 1.0
    image = Image.fromarray(photo().permute(1, 2, 0).numpy())
    assert np.array_equal(np.array(posterize(image)), np.array(image) & 128)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_a_function_of_its_numbers(channels):
    transform = RandAugmentCrop(CROP, randaugment(9.0, 0.5, 2, FILL[:channels]))
    first, again = ([transform(photo(channels), u) for u in numbers(40, transform)] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert {(image.shape, image.dtype) for image in first} == {((channels, 24, 24), torch.uint8)}
    crops = [CROP(photo(channels), u[:-1]) for u in numbers(40, transform)]
    assert 20 < sum(not torch.equal(*pair) for pair in zip(first, crops, strict=True)) < 38  # three of four


def test_without_randaugment_it_is_the_crop_alone():
    plain = RandAugmentCrop(CROP, None)
    assert plain.num_random == CROP.num_random
    assert torch.equal(plain(photo(), numbers(1, plain)[0]), CROP(photo(), numbers(1, plain)[0]))


class Photos(Source):
    """A source of 12 images that are alike."""

    labels = np.arange(12)

    def __init__(self) -> None:
        pass

    def read(self, index):
        return photo().permute(1, 2, 0).numpy()


def test_workers_change_no_pixel():
    transform = RandAugmentCrop(CROP, randaugment(9.0, 0.5, 2, FILL))
    dataset = AugmentedDataset(Photos(), transform, 0, Photos.labels)
    keys = [[(1, index) for index in range(start, start + 4)] for start in (0, 4, 8)]
    runs = []
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_sampler=keys, **loader_options(workers))
        runs.append(torch.cat([images["images"] for images in loader]))
    assert torch.equal(*runs)
    assert len({image.numpy().tobytes() for image in runs[0]}) == 12


def test_jitter_comes_after_on_the_device_with_numbers_of_its_own():
    colors = ColorAugmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, gray_p=0, blur_p=0, solarize_p=0)
    plain = RandAugmentCrop(CROP, randaugment(9.0, 0.5, 2, FILL))
    jittered = ColorJitteredCrop(plain, colors)
    u = numbers(2, jittered)
    images = torch.stack([jittered(photo(), row) for row in u])
    assert torch.equal(images[0], plain(photo(), u[0, : plain.num_random]))
    statistics = ([0.5] * 3, [0.2] * 3)
    found, expected = jittered.color(images, u, statistics), colors(images, u[:, plain.num_random :], statistics)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mix_p": 0.7}])
def test_mixing_is_timms_for_the_same_seed(options):
    images, labels = batch()
    theirs = Mixup(options.get("mixup", 0.0), options.get("cutmix", 0.0), prob=options.get("mix_p", 1.0), num_classes=5)
    for seed in range(20):
        found, targets = augmentation(**options)(images, labels, seed)
        with seeded_globals(seed):
            expected, expected_targets = theirs(images.clone(), labels)
        assert torch.equal(found, expected)
        assert torch.equal(targets, expected_targets)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_the_middle_of_an_odd_batch_is_mixed_with_itself(options):
    images, labels = batch(5)
    found, targets = augmentation(**options)(images, labels, 3)
    assert found.shape == images.shape
    torch.testing.assert_close(found[2], images[2])
    pairs = torch.tensor([0, 1, 3, 4])  # the same draw makes the same of the others, as a batch of their own
    others, other_targets = augmentation(**options)(images[pairs], labels[pairs], 3)
    assert torch.equal(found[pairs], others)
    assert torch.equal(targets[pairs], other_targets)
    torch.testing.assert_close(targets[2], smooth_targets(labels, 5, 0.1)[2])
    alone, _ = augmentation(**options)(images[:1], labels[:1], 3)
    torch.testing.assert_close(alone, images[:1])


def test_erasing_is_timms_for_the_same_seed_and_comes_first():
    images, labels = batch(16)
    found, _ = augmentation(erasing_p=0.5)(images, labels, 4)
    with seeded_globals(4, torch.device("cpu")):
        expected = RandomErasing(0.5, mode="pixel", device="cpu")(images.clone())
    assert torch.equal(found, expected)
    assert 0 < sum(not torch.equal(*pair) for pair in zip(found, images, strict=True)) < 16
    mixed, _ = augmentation(erasing_p=0.5, mixup=0.8)(images, labels, 4)
    assert torch.equal(mixed, augmentation(mixup=0.8)(expected, labels, 4)[0])


def test_arguments_stay_as_they_were_and_another_seed_makes_another_batch():
    images, labels = batch()
    kept = images.clone()
    options = {"mixup": 0.8, "cutmix": 1.0, "erasing_p": 0.5}
    made = [augmentation(**options)(images, labels, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(images, kept)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_nothing_wanted_is_nothing_done_but_smoothing():
    images, labels = batch()
    found, targets = augmentation()(images, labels, 0)
    assert found is images
    assert torch.equal(targets, F.one_hot(labels, 5) * 0.9 + 0.02)


def test_seeded_globals_restore_after_an_error():
    before = global_states()
    with suppress(KeyError), seeded_globals(1, torch.device("cpu")):
        assert random.random() + np.random.random() + float(torch.rand(1)) > 0
        raise KeyError
    assert global_states() == before
