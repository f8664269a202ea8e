import logging
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.loader import EpochSampler
from ssl_vit.data.rng import uniforms
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.data.transforms.seeded import as_transform
from ssl_vit.models.preprocess import CenterCrop

CROP = RandomCrop((16, 16), (0.2, 1.0))


def module(transform=CROP, path="", **options) -> ImageDataModule:
    return ImageDataModule(transform, path=str(path), image_size=16, **{"seed": 0, **options})


@pytest.fixture
def labeled(tmp_path, write):
    """A folder of 20 cats and 10 dogs."""
    for i in range(30):
        write(tmp_path / ("cat" if i < 20 else "dog") / f"{i:02}.png", 12 + i % 5, 14, seed=i)
    return tmp_path


def epochs(data: ImageDataModule, count: int = 2) -> list[list[dict]]:
    loader = data.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def indices(batches) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_batches_are_the_same_whatever_the_number_of_workers(labeled, cache_gb):
    runs = [epochs(module(path=labeled, workers=n, batch_size=7, cache_gb=cache_gb)) for n in (0, 1, 2)]
    for run in runs[1:]:
        for ours, theirs in zip(chain(*runs[0]), chain(*run), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in ("images", "label", "index"))


def test_a_batch_holds_images_labels_and_indices(labeled):
    (first, second) = epochs(module(path=labeled, batch_size=7, seed=3))
    source = open_source(DataConfig(path=str(labeled)), 3, "train")
    batch = second[1]
    assert batch["images"].shape == (7, 3, 16, 16)
    assert batch["images"].dtype == torch.uint8
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert batch["label"].tolist() == source.labels[batch["index"]].tolist()
    for place, index in enumerate(batch["index"].tolist()):
        image = torch.from_numpy(source.read(index).copy()).permute(2, 0, 1)
        u = uniforms(3, 1, np.array([index]), CROP.num_random)[0]
        assert torch.equal(batch["images"][place], CROP(image, u))
    assert indices(first) != indices(second)


def test_an_epoch_drops_only_what_does_not_fill_a_batch(labeled):
    (batches,) = epochs(module(path=labeled, batch_size=7), 1)
    assert len(batches) == 4
    assert len(set(indices(batches))) == 28


def test_fewer_images_than_a_batch_make_one_smaller_batch(labeled, caplog):
    with caplog.at_level(logging.WARNING):
        (batches,) = epochs(module(path=labeled, batch_size=64), 1)
    assert sorted(indices(batches)) == list(range(30))
    assert caplog.messages == ["data.batch_size=64 is more than a process's 30 training images: a step takes 30"]


@pytest.mark.parametrize(("count", "world_size", "each"), [(30, 2, 15), (31, 2, 15), (7, 3, 2), (2, 3, 1)])
def test_each_rank_has_its_fraction(count, world_size, each):
    samplers = [EpochSampler(np.arange(count), 0, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(4)
    fractions = [list(sampler) for sampler in samplers]
    assert [len(fraction) for fraction in fractions] == [len(sampler) for sampler in samplers] == [each] * world_size
    assert all(epoch == 4 for fraction in fractions for epoch, _ in fraction)
    seen = [index for fraction in fractions for _, index in fraction]
    assert len(set(seen)) == min(count, len(seen))


def test_the_rank_comes_from_the_trainer(labeled):
    seen = []
    for rank in range(2):
        data = module(path=labeled, batch_size=5)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        seen.append(indices(epochs(data, 1)[0]))
    assert sorted(seen[0] + seen[1]) == list(range(30))


def test_several_crops_become_a_list_of_stacks(labeled):
    class Several:
        num_random = 2 * CROP.num_random

        def __call__(self, image, u):
            small = RandomCrop((8, 8), (0.1, 0.3))
            return [CROP(image, u[: CROP.num_random]), small(image, u[CROP.num_random :])]

    data = module(Several(), path=labeled, batch_size=5)
    batch = next(iter(data.train_dataloader()))
    assert [tuple(stack.shape) for stack in batch["images"]] == [(5, 3, 16, 16), (5, 3, 8, 8)]
    images = data.on_after_batch_transfer(batch, 0)["images"]
    assert [stack.dtype for stack in images] == [torch.float32] * 2


def test_images_are_normalized_after_the_transfer(labeled):
    data = module(path=labeled, mean=[0.0] * 3, std=[0.5] * 3, batch_size=5)
    batch = next(iter(data.train_dataloader()))
    normalized = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(normalized["images"], batch["images"] / 127.5)
    assert torch.equal(normalized["index"], batch["index"])
    assert batch["images"].dtype == torch.uint8


def test_without_a_test_split_a_fifth_of_each_class_is_held_out(labeled):
    data = module(path=labeled, batch_size=4, seed=2)
    train, test = (indices(data.eval_dataloader(split)) for split in ("train", "test"))
    assert sorted(train + test) == list(range(30))
    assert np.bincount(np.array(test) >= 20).tolist() == [4, 2]
    assert data.split_note == "held-out 20 % of data.path, seed 2"
    assert indices(module(path=labeled, seed=2).eval_dataloader("test")) == test
    assert indices(module(path=labeled, seed=3).eval_dataloader("test")) != test
    (batches,) = epochs(module(path=labeled, batch_size=5, seed=2), 1)
    assert set(indices(batches)) == set(range(30))  # pretraining sees every image, without its label


def test_evaluation_images_are_the_middle_in_a_fixed_order(labeled):
    data = module(path=labeled, batch_size=4, eval_crop=0.5)
    batch = next(iter(data.eval_dataloader("train")))
    source = open_source(DataConfig(path=str(labeled)), 3, "train")
    index = batch["index"].tolist()
    expected = [CenterCrop((16, 16), 0.5)(torch.from_numpy(source.read(i).copy()).permute(2, 0, 1)) for i in index]
    assert torch.equal(batch["images"], torch.stack(expected))
    assert index == sorted(index)


def test_a_limit_keeps_the_share_of_each_class(labeled):
    data = module(path=labeled)
    drawn = indices(data.eval_dataloader("train", 12))
    assert np.bincount(np.array(drawn) >= 20).tolist() == [8, 4]
    assert indices(data.eval_dataloader("train", 12)) == drawn
    assert indices(data.eval_dataloader("train", 12, seed=5)) != drawn
    assert len(indices(data.eval_dataloader("train", 1000))) == 24


def test_a_test_split_of_its_own_is_used(labeled, write):
    for name in ("val/dog/a.png", "val/emu/b.png"):
        write(labeled / name)
    data = module(path=labeled)
    data.setup()
    assert data.split_note == "its own test split"
    assert data.classes == ["cat", "dog", "emu"]  # a class that training lacks comes last
    assert data.num_classes == 3
    (batch,) = data.eval_dataloader("test")
    assert batch["label"].tolist() == [1, 2]
    assert len(indices(data.eval_dataloader("train"))) == 30


@pytest.mark.parametrize("name", ["test/a.png", "test/images/a.png"])
def test_a_test_split_without_the_classes_is_not_evaluated(labeled, write, name):
    write(labeled / name)
    data = module(path=labeled)
    data.setup()
    assert data.split_note == "held-out 20 % of data.path, seed 0 (its test split has none of its classes)"
    assert len(indices(data.eval_dataloader("test"))) == 6
    assert data.classes == ["cat", "dog"]


def test_without_labels_the_first_images_are_evaluated(tmp_path, write):
    for i in range(9):
        write(tmp_path / f"{i}.png", seed=i)
    data = module(path=tmp_path)
    data.setup()
    assert not data.has_labels
    assert data.num_classes == 0
    assert data.split_note == "the first of the training images"
    assert indices(data.eval_dataloader("test", 4)) == [0, 1, 2, 3]
    assert len(set(indices(data.eval_dataloader("train", 4)))) == 4
    assert indices(data.eval_dataloader("train", 4)) != [0, 1, 2, 3]


def test_without_labels_a_test_split_is_still_evaluated(tmp_path, write):
    for i in range(9):
        write(tmp_path / f"{i}.png", seed=i)
    write(tmp_path / "test" / "x.png", seed=99)
    data = module(path=tmp_path)
    (batch,) = data.eval_dataloader("test", 4)
    assert len(batch["index"]) == 1
    assert batch["label"].tolist() == [-1]


def test_images_without_a_label_are_seen_but_not_evaluated(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    from io import BytesIO

    from PIL import Image
    from pyarrow import parquet

    stored = BytesIO()
    Image.new("RGB", (16, 16)).save(stored, "PNG")
    labels = [0, -1, 1, 0, None, 1, 0, 1, 0, 1, 0, 1]
    parquet.write_table(pa.table({"image": [stored.getvalue()] * 12, "label": labels}), tmp_path / "a.parquet")
    data = module(path=tmp_path, source="parquet", batch_size=4)
    (batches,) = epochs(data, 1)
    assert set(indices(batches)) == set(range(12))
    evaluated = indices(data.eval_dataloader("train")) + indices(data.eval_dataloader("test"))
    assert sorted(evaluated) == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_the_run_with_one_line(labeled, workers):
    path = labeled / "dog" / "25.png"
    path.write_bytes(path.read_bytes()[:150])
    data = module(path=labeled, workers=workers, cache_gb=0.0, batch_size=5, on_error="raise")
    with pytest.raises(UnreadableImageError) as caught:
        epochs(data, 1)
    assert str(caught.value).startswith(f"{path} cannot be used: ")
    assert str(caught.value).endswith(": delete or replace it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("side", "cache_gb", "cores", "expected"),
    [(64, 1.0, 8, 0), (65, 1.0, 8, 7), (64, 0.0, 8, 7), (64, 0.0, 1, 1), (64, 0.0, 100, 16)],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_follow_images_and_cores(tmp_path, write, monkeypatch, side, cache_gb, cores, expected):
    write(tmp_path / "a.png", side, 10)
    monkeypatch.setattr("ssl_vit.data.datamodule.cores", lambda: cores)
    assert module(path=tmp_path, cache_gb=cache_gb).train_dataloader().num_workers == expected
    assert module(path=tmp_path, cache_gb=cache_gb, workers=3).train_dataloader().num_workers == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_moves_no_random_state(labeled, workers):
    """A run that evaluates test images now and then must learn the same as one that does not."""
    data = module(path=labeled, workers=workers, batch_size=5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    epochs(data, 1)
    list(data.eval_dataloader("test", 3))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_workers_compute_with_one_thread(labeled):
    class Threads:
        num_random = 0

        def __call__(self, image, u):
            return torch.full((1, 1, 1), torch.get_num_threads(), dtype=torch.uint8)

    (batches,) = epochs(module(Threads(), path=labeled, workers=1, batch_size=30), 1)
    assert batches[0]["images"].unique().tolist() == [1]


def test_memory_is_shared_between_training_and_test_images(labeled, write):
    for i in range(4):
        write(labeled / "test" / "cat" / f"{i}.png", 100, 100)
    data = module(path=labeled, cache_gb=50e-6)
    data.setup()
    kinds = [type(getattr(data.splits, split).source).__name__ for split in ("train", "test")]
    assert kinds == ["Cached", "Folder"]


def test_sources_are_opened_once(labeled, monkeypatch):
    data, opened = module(path=labeled), []
    monkeypatch.setattr("ssl_vit.data.datamodule.open_source", lambda *args: opened.append(args) or open_source(*args))
    data.setup("fit")
    data.setup("validate")
    data.train_dataloader()
    assert [split for _, _, split in opened] == ["train", "test"]


def test_gray_images_and_other_shapes(labeled):
    data = ImageDataModule(None, DataConfig(path=str(labeled), mean=[0.5], std=[0.5]), image_size=(16, 24), channels=1)
    batch = next(iter(data.eval_dataloader("test")))
    assert batch["images"].shape == (6, 1, 16, 24)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageDataModule(CROP, DataConfig(), image_size=8, batch_size=2), "data= and batch_size= were given; "),
        (
            lambda: ImageDataModule(CROP, image_size=8, channels=1),
            "data.mean=[0.485, 0.456, 0.406] must be one number ",
        ),
        (
            lambda: ImageDataModule(source="digits").train_dataloader(),
            "transform= is not given, and no module is being ",
        ),
        (lambda: ImageDataModule(source="digits").test_dataloader(), "image_size= is not given, and no module is "),
        (lambda: as_transform(3), "transform=3 must be a callable on a PIL image"),
        (lambda: ImageDataModule(CROP, image_size=8, workers=-1), "data.workers=-1 must be auto, or 0 or more"),
    ],
)
def test_wrong_arguments_are_said(make, message):
    with pytest.raises(ValueError, match=r"=") as caught:
        make()
    assert str(caught.value).startswith(message)


def test_only_what_may_be_downloaded_is_prepared(labeled, monkeypatch):
    opened = []
    monkeypatch.setattr("ssl_vit.data.datamodule.open_source", lambda *args: opened.append(args[2]))
    module(path=labeled).prepare_data()
    assert opened == []
    module(source="torchvision", path="MNIST:nowhere").prepare_data()
    assert opened == ["train"]
