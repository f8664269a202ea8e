"""Reading shards front to back: each image once an epoch, in an order of its own, the same from anywhere on."""

import io
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.corrupt import ReadErrors
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.loader import EpochSampler
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.webdataset import Sample, Shards
from ssl_vit.data.stream import UNCOUNTED, Buffer, Stream
from ssl_vit.data.transforms.crops import RandomCrop

CROP = RandomCrop((4, 4), (0.2, 1.0))


class Memory(Shards):
    """Shards of so many images, which notes what is read of them."""

    def __init__(self, *counts: int, counted: bool = True) -> None:
        self.names = [f"shard {number}" for number in range(len(counts))]
        self.lengths = counts
        self.counts = np.array(counts) if counted else None
        self.reads: list[int] = []

    def read(self, shard: int):
        self.reads.append(shard)
        for position in range(self.lengths[shard]):
            stored = io.BytesIO()
            pixels = np.random.default_rng((shard, position)).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(stored, "PNG")
            yield Sample(stored.getvalue(), position % 3, f"{shard}/{position}")


def stream(shards, batches: int, worker_streams: int = 1, ranks=(0, 1), buffer: int = 5, seed: int = 0, **options):
    read_errors = options.pop("read_errors", None)
    data = DataConfig(source="webdataset", path="x", shuffle_buffer=buffer, **options)
    return Stream(shards, CROP, data, 3, seed, 3, batches, worker_streams, ranks, read_errors)


def batches(reader: Stream, epoch: int = 0, first: int = 0) -> list[dict]:
    """What a loader makes of an epoch, from a batch on."""
    size = reader.batch_size
    return [
        reader.__getitems__([(epoch, place) for place in range(at * size, (at + 1) * size)])
        for at in range(first, reader.batches)
    ]


def indices(found) -> list[int]:
    return [index for batch in found for index in batch["index"].tolist()]


@pytest.mark.parametrize("counts", [(7, 0, 12, 5), (24,), (1,) * 24])
@pytest.mark.parametrize(("processes", "worker_streams"), [(1, 1), (1, 3), (2, 2), (4, 1), (2, 5)])
def test_every_image_is_read_once_an_epoch_however_it_is_split(counts, processes, worker_streams):
    each = 24 // processes // 3
    seen = []
    for rank in range(processes):
        seen += indices(
            batches(stream(Memory(*counts), each, worker_streams=worker_streams, ranks=(rank, processes)), epoch=1)
        )
    assert sorted(seen) == list(range(24))


def test_a_rest_that_fills_no_batch_differs_by_epoch():
    reader = stream(Memory(20), 6)
    skipped = {tuple(set(range(20)) - set(indices(batches(reader, epoch)))) for epoch in range(8)}
    assert all(len(rest) == 2 for rest in skipped)
    assert len(skipped) > 4


def test_an_epoch_may_be_shorter_or_longer_than_the_shards():
    assert len(set(indices(batches(stream(Memory(7, 5), 2))))) == 6
    twice = indices(batches(stream(Memory(7, 5), 8)))
    assert sorted(twice) == sorted([*range(12)] * 2)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [indices(batches(stream(Memory(7, 12, 5), 8, seed=seed), epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert indices(batches(stream(Memory(7, 12, 5), 8), 1)) == orders[1]


def test_crops_do_not_depend_on_how_the_shards_are_split():
    whole = batches(stream(Memory(7, 12, 5), 8), epoch=2)
    split = batches(stream(Memory(7, 12, 5), 8, worker_streams=3), epoch=2)
    assert indices(whole) != indices(split)
    by_index = {i: image for batch in whole for i, image in zip(batch["index"].tolist(), batch["images"], strict=True)}
    for batch in split:
        assert torch.equal(batch["images"], torch.stack([by_index[i] for i in batch["index"].tolist()]))
        assert batch["label"].tolist() == [
            {0: i, 1: i - 7, 2: i - 19}[0 if i < 7 else 1 if i < 19 else 2] % 3 for i in batch["index"].tolist()
        ]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("worker_streams", [1, 2, 3])
def test_an_epoch_resumes_from_any_batch(worker_streams, counted):
    whole = batches(stream(Memory(7, 12, 5, counted=counted), 8, worker_streams=worker_streams))
    for first in range(9):
        rest = batches(stream(Memory(7, 12, 5, counted=counted), 8, worker_streams=worker_streams), first=first)
        for ours, theirs in zip(rest, whole[first:], strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in ("images", "label", "index"))


def test_resuming_reads_no_shard_that_is_behind():
    shards = Memory(*[10] * 10)
    batches(stream(shards, 33), first=0)
    assert len(shards.reads) == 11  # the epoch begins inside a shard, which is read at both ends
    shards.reads.clear()
    batches(stream(shards, 33, buffer=1), first=27)
    assert len(shards.reads) <= 3


def test_batches_of_one_epoch_are_read_in_one_pass():
    shards = Memory(12, 12)
    reader = stream(shards, 8)
    batches(reader)
    once = len(shards.reads)
    batches(reader, epoch=1)
    assert once <= 3
    assert len(shards.reads) <= 6


@pytest.mark.parametrize("size", [1, 4, 50])
def test_a_buffer_gives_out_every_number_once_and_none_before_it_is_in(size):
    buffer = Buffer(30, size, seed=0, epoch=0, first=0)
    order = list(buffer)
    assert sorted(order) == list(range(30))
    assert all(number < place + size for place, number in enumerate(order))
    assert (order == list(range(30))) == (size == 1)


def test_what_has_been_read_is_no_more_than_the_buffer_holds():
    shards, alive = Memory(*[5] * 100), []

    def read(shard):
        for sample in Memory.read(shards, shard):
            alive.append(sample)
            yield sample

    shards.read = read
    reader = stream(shards, 100, buffer=20)
    reader.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert len(alive) <= 22 + 4  # the epoch may begin at the end of a shard


def test_uncounted_shards_are_dealt_out_whole_and_again():
    shards = Memory(4, 4, 4, 4, counted=False)
    seen = [indices(batches(stream(shards, 8, worker_streams=2, ranks=(rank, 2), buffer=1))) for rank in range(2)]
    of = [{index // UNCOUNTED for index in found} for found in seen]
    assert of[0] | of[1] == {0, 1, 2, 3}
    assert not of[0] & of[1]
    assert all(len(found) == 24 and len(set(found)) == 8 for found in seen)


def test_more_readers_than_uncounted_shards_are_refused():
    with pytest.raises(
        ValueError, match=r"^data.path=x is 3 shards of unknown length for 2 x 2 processes and workers: "
    ):
        stream(Memory(1, 1, 1, counted=False), 1, worker_streams=2, ranks=(0, 2))


def test_shards_without_images_end_in_an_error_and_not_in_a_search():
    with pytest.raises(UnreadableImageError, match=r"^shard \d holds no images, nor does any other shard$"):
        batches(stream(Memory(0, 0, counted=False), 1))


def test_a_shard_that_ends_before_its_index_says_is_one_line():
    shards = Memory(5, 5)
    shards.counts = np.array([5, 9])
    with pytest.raises(
        UnreadableImageError, match=r"^shard 1 holds 5 images, its index says at least \d: copy it again, or"
    ):
        batches(stream(shards, 4))


def test_an_image_that_cannot_be_read_is_named():
    shards = Memory(3)
    shards.read = lambda shard: iter([Sample(b"no image", -1, f"{i} of a.tar") for i in range(3)])
    with pytest.raises(UnreadableImageError, match=r"^\d of a.tar is no image that can be read: delete or replace it$"):
        batches(stream(shards, 1))


class Unreadable(Memory):
    """Every fifth image of a shard cannot be read."""

    def read(self, shard: int):
        for position, sample in enumerate(Memory.read(self, shard)):
            yield sample._replace(encoded=b"no image") if position % 5 == 0 else sample


@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_an_image_that_cannot_be_read_changes_no_other(on_error):
    whole = batches(stream(Memory(7, 12, 5), 8))
    read_errors = ReadErrors(1.0)
    read_errors.images = 24
    with_errors = batches(stream(Unreadable(7, 12, 5), 8, on_error=on_error, read_errors=read_errors))
    unreadable = {0, 5, 7, 12, 17, 19}
    named = set()
    for ours, theirs in zip(with_errors, whole, strict=True):
        index = ours["index"].tolist()
        expected = [i for i in theirs["index"].tolist() if on_error == "replace" or i not in unreadable]
        assert index == expected
        for place, number in enumerate(index):
            assert (ours["label"][place] == -1) == (number in unreadable)
            then = theirs["index"].tolist().index(number)
            assert torch.equal(ours["images"][place], theirs["images"][then]) == (number not in unreadable)
        found = {name for name, _ in ours.get("read_errors", [])}
        assert len(found) == sum(i in unreadable for i in theirs["index"].tolist())
        assert ours.get("skipped", 0) == (len(found) if on_error == "skip" else 0)
        named |= found
    assert named == {"0/0", "0/5", "1/0", "1/5", "1/10", "2/0"}


def test_the_sampler_is_one_that_lightning_leaves_alone():
    sampler = EpochSampler(np.arange(6), seed=0, shuffle=False)
    sampler.set_epoch(3)
    sampler.skip = 4
    assert isinstance(sampler, torch.utils.data.DistributedSampler)
    assert list(sampler) == [(3, 4), (3, 5)]
    assert len(list(sampler)) == len(sampler) == 6


# With the data module


def module(path, **options) -> ImageDataModule:
    return ImageDataModule(CROP, source="webdataset", path=str(path), image_size=4, **{"seed": 0, **options})


@pytest.fixture
def packed(tmp_path, write):
    """30 images of two classes in several shards."""
    from ssl_vit.config.evaluation_schema import ShardsConfig
    from ssl_vit.data.shard_writer import make_shards

    for i in range(30):
        write(tmp_path / "images" / ("cat" if i < 20 else "dog") / f"{i:02}.png", 6, 6, seed=i)
    data = DataConfig(path=str(tmp_path / "images"))
    make_shards(ShardsConfig(data=data, out=str(tmp_path / "shards"), shard_mb=0.01))
    return tmp_path / "shards"


def test_read_errors_of_a_stream_are_counted(packed):
    from ssl_vit.data.sources.webdataset import scan

    file = min(packed.glob("*.tar"))
    offset, size, _ = scan(file).members[3].tolist()
    with file.open("r+b") as shard:
        shard.seek(offset)
        shard.write(bytes(size))
    data = module(packed, batch_size=5, workers=1, max_unreadable=0.1)
    assert sorted(indices(data.train_dataloader())) == list(range(30))
    assert list(data.read_errors.found) == [f"{min(packed.glob('*.tar'))} image 3"]
    strict = module(packed, batch_size=5, workers=1)
    with pytest.raises(ValueError, match=r"^1 of 30 images cannot be read, more than data.max_unreadable=0.01 of them"):
        list(strict.train_dataloader())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_loader_gives_every_image_once_an_epoch(packed, workers):
    loader = module(packed, batch_size=5, workers=workers, shuffle_buffer=8).train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append(indices(loader))
    assert len(loader) == 6
    assert [sorted(order) for order in orders] == [list(range(30))] * 2
    assert orders[0] != orders[1]


def test_every_process_has_as_many_batches(packed):
    seen = []
    for rank in range(2):
        data = module(packed, batch_size=4, workers=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        loader = data.train_dataloader()
        assert len(loader) == 3
        seen += indices(loader)
    assert len(seen) == len(set(seen)) == 24


def test_the_numbers_of_a_stream_are_those_that_evaluation_uses(packed):
    data = module(packed, batch_size=5, workers=0)
    labels = np.concatenate([[*batch["label"]] for batch in data.train_dataloader()])
    order = indices(data.train_dataloader())
    source = data._train
    assert labels.tolist() == source.labels[order].tolist()
    assert sorted(indices(data.eval_dataloader("train")) + indices(data.eval_dataloader("test"))) == list(range(30))
    assert data.classes == ["cat", "dog"]


def test_a_stream_takes_the_transform_of_the_module_that_is_trained(packed):
    data = ImageDataModule(source="webdataset", path=str(packed), batch_size=5, workers=0)
    data.setup()
    module = SimpleNamespace(transform=lambda: CROP)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=module)  # pyright: ignore
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, Stream)
    assert next(iter(loader))["images"].shape == (5, 3, *CROP.size)


def test_labeled_training_reads_shards_by_number(packed):
    loader = ImageDataModule(
        CROP, source="webdataset", path=str(packed), image_size=4, batch_size=4, labeled=True
    ).train_dataloader()
    assert len(indices(loader)) == 24
    assert loader.sampler.shuffle


def test_fewer_images_than_a_batch_make_a_smaller_one(packed, caplog):
    with caplog.at_level(logging.WARNING):
        (batch,) = module(packed, batch_size=64, workers=0).train_dataloader()
    assert sorted(batch["index"].tolist()) == list(range(30))
    assert caplog.messages == ["data.batch_size=64 is more than a process's 30 training images: a step takes 30"]


def test_an_epoch_has_the_size_of_the_config(packed):
    assert len(indices(module(packed, batch_size=5, workers=0, epoch_size=12).train_dataloader())) == 10


def test_images_of_a_remote_stream_are_evaluated_on_the_test_images(packed, monkeypatch):
    monkeypatch.setenv("SSL_VIT_ALLOW_PIPE", "1")
    remote = f"pipe:cat {packed}/train-000000.tar"
    data = module(remote, batch_size=5, workers=0, epoch_size=10, test_path=str(packed))
    assert len(indices(data.train_dataloader())) == 10
    assert data.split_note == "held-out 20 % of data.test_path, seed 0"
    assert sorted(indices(data.eval_dataloader("train")) + indices(data.eval_dataloader("test"))) == list(range(30))
    blind = module(remote, batch_size=5, workers=0, epoch_size=10)
    assert len(indices(blind.train_dataloader())) == 10
    line = r"is a remote stream, whose images cannot be read by number: give data.test_path, or bring them"
    with pytest.raises(ValueError, match=line):
        blind.eval_dataloader("test")
    with pytest.raises(ValueError, match=line):
        ImageDataModule(None, source="webdataset", path=remote, epoch_size=10, image_size=4).labels("test")
    labeled = ImageDataModule(
        CROP, source="webdataset", path=remote, epoch_size=10, image_size=4, labeled=True, test_path=str(packed)
    )
    with pytest.raises(ValueError, match=r"must be images on this machine to train on labels"):
        labeled.train_dataloader()
