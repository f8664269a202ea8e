"""Images that cannot be read: epochs, labels and every other image stay as they were, and each is listed once."""

import multiprocessing
import os
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_vit.config.schema import DataConfig
from ssl_vit.data import corrupt
from ssl_vit.data.corrupt import ReadErrors, Replacements
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.loader import full_length
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import Source, UnreadableImageError
from ssl_vit.data.transforms.crops import RandomCrop

CROP = RandomCrop((16, 16), (0.2, 1.0))


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(64)))
    ends = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in (*chunks, (b"IEND", b""))]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b"\x02\x02\x4c\x01\x00;"


def tiff(width: int, height: int, tile: int = 0) -> bytes:
    """With tiles they are compressed (LZW), which libtiff decodes whole."""
    tags = [(256, width), (257, height), (258, 8), (259, 5 if tile else 1), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, 64)] if tile else [(273, 8), (278, height), (279, 64)]
    tags.sort()
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(64)


DAMAGE = {
    "a/03.png": lambda content: content[:100],
    "a/04.png": lambda _: b"this is text",
    "a/19.png": lambda _: b"",
    "b/20.png": lambda _: png(100_000, 100_000),
    "c/41.png": lambda _: png(1, 60_000),
    "c/59.png": lambda content: content[:60],
}


@pytest.fixture
def whole(tmp_path, write):
    """60 images, 20 of each of three classes, numbered through."""
    for i in range(60):
        write(tmp_path / "whole" / "abc"[i // 20] / f"{i:02}.png", 12 + i % 5, 14, seed=i)
    return tmp_path / "whole"


@pytest.fixture
def damaged(tmp_path, whole, write):
    """The same 60, six of which cannot be read."""
    for i in range(60):
        path = write(tmp_path / "damaged" / "abc"[i // 20] / f"{i:02}.png", 12 + i % 5, 14, seed=i)
        damage = DAMAGE.get(f"{path.parent.name}/{path.name}")
        if damage is not None:
            path.write_bytes(damage(path.read_bytes()))
    return tmp_path / "damaged"


NUMBERS = sorted(int(name[2:4]) for name in DAMAGE)


def module(folder, **options) -> ImageDataModule:
    options = {"batch_size": 7, "max_unreadable": 0.1, "workers": 0, "cache_gb": 0.0} | options
    return ImageDataModule(CROP, path=str(folder), image_size=16, **{"seed": 0, **options})


def batches_of(data, epochs: int = 2, rank: tuple[int, int] | None = None) -> list[dict]:
    if rank is not None:
        data.trainer = SimpleNamespace(global_rank=rank[0], world_size=rank[1])
    loader, batches = data.train_dataloader(), []
    try:
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            batches += list(loader)
            assert len(batches) == (epoch + 1) * len(loader)
    finally:
        if loader.num_workers:  # else they wait for the garbage collector, in the middle of another test
            loader._iterator._shutdown_workers()
    return batches


def same(ours: list[dict], theirs: list[dict]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    keys = ("images", "label", "index")
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in keys) for a, b in pairs)


@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_workers_and_memory_change_nothing(damaged, on_error):
    first = module(damaged, on_error=on_error)
    expected = batches_of(first)
    assert len(first.read_errors.found) == 6
    for options in ({"workers": 2}, {"cache_gb": 1.0}, {"workers": 1, "cache_gb": 1.0}):
        other = module(damaged, on_error=on_error, **options)
        assert same(batches_of(other), expected)
        assert other.read_errors.found == first.read_errors.found


@pytest.mark.parametrize("rank", [None, (0, 2), (1, 2)])
def test_all_other_images_stay_as_they_were(whole, damaged, rank):
    """Same batches, same labels, same places; an unreadable image's place has the crop of the next of its class."""
    pairs = zip(batches_of(module(whole), rank=rank), batches_of(module(damaged), rank=rank), strict=True)
    source = open_source(DataConfig(path=str(whole)), 3, "train")
    after = {3: 5, 4: 5, 19: 0, 20: 21, 41: 42, 59: 40}
    for kept, lost in pairs:
        assert kept.keys() == lost.keys()
        assert torch.equal(kept["label"], lost["label"])
        assert torch.equal(kept["index"], lost["index"])
        for place, index in enumerate(kept["index"].tolist()):
            equal = torch.equal(kept["images"][place], lost["images"][place])
            assert equal == (index not in after)
    replacements = module(damaged).train_dataloader().dataset.replacements
    for index, other in after.items():
        assert np.array_equal(replacements.replace(index, []), source.read(other))


@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_a_resumed_epoch_has_the_same_batches(damaged, on_error):
    whole_epoch = batches_of(module(damaged, on_error=on_error), 1)
    loader = module(damaged, on_error=on_error).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 3})
    assert same(list(loader), whole_epoch[3:])


def test_skipping_skips_the_unreadable_ones_and_nothing_else(whole, damaged):
    pairs = zip(batches_of(module(whole)), batches_of(module(damaged, on_error="skip")), strict=True)
    skipped = []
    for kept, lost in pairs:
        good = [place for place, index in enumerate(kept["index"].tolist()) if index not in NUMBERS]
        for key in ("images", "label", "index"):
            assert torch.equal(kept[key][good], lost[key])
        assert lost.get("skipped", 0) == 7 - len(good)
        assert full_length(lost | {"images": lost["images"].float()}) == 7
        skipped.append(7 - len(good))
    assert max(skipped) > 0


def test_a_batch_of_unreadable_images_alone_is_replaced(damaged):
    data = module(damaged, on_error="skip", batch_size=1)
    batches = batches_of(data, 1)
    assert len(batches) == 60
    assert all(len(batch["images"]) == 1 and "skipped" not in batch for batch in batches)
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(60))


@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_evaluation_replaces_within_its_split(damaged, whole, on_error):
    """Held-out images never replace training images, nor the other way round."""
    data, intact = module(damaged, on_error=on_error), module(whole)
    for split in ("train", "test"):
        ours, theirs = list(data.eval_dataloader(split)), list(intact.eval_dataloader(split))
        part = getattr(data.splits, split)
        assert [batch["label"].tolist() for batch in ours] == [batch["label"].tolist() for batch in theirs]
        replacements = data.eval_dataloader(split).dataset.replacements
        for index in set(NUMBERS) & set(part.index.tolist()):
            others = list(replacements._others(index))
            assert set(others) == {i for i in part.index.tolist() if part.labels[i] == part.labels[index]} - {index}
    labeled = ImageDataModule(CROP, path=str(damaged), image_size=16, labeled=True, max_unreadable=0.1, seed=0)
    members = labeled.train_dataloader().dataset.replacements.members
    assert np.array_equal(members, labeled.splits.train.index)


class Listed(Source):
    """Images of one pixel that is their number; some cannot be read."""

    def __init__(self, labels, unreadable) -> None:
        self.labels, self.classes, self.unreadable, self.tried = np.asarray(labels), [], unreadable, []

    def name(self, index):
        return f"image {index}"

    def read(self, index):
        self.tried.append(index)
        if index in self.unreadable:
            raise UnreadableImageError("of no use", "damaged")
        return np.full((1, 1, 1), index, np.uint8)


def record(images: int, max_unreadable: float = 1.0) -> ReadErrors:
    made = ReadErrors(max_unreadable)
    made.images = images
    return made


@pytest.mark.parametrize("window", [1, 3, 1024])
def test_the_replacement_is_the_next_one_of_the_label_round_to_the_first(monkeypatch, window):
    monkeypatch.setattr(corrupt, "_WINDOW", window)
    random = np.random.default_rng(0)
    for _ in range(50):
        labels = random.integers(-1, 3, 20)
        unreadable = set(np.flatnonzero(random.random(20) < 0.5).tolist())
        members = np.flatnonzero(random.random(20) < 0.8)
        replacements = Replacements(Listed(labels, unreadable), labels, members, record(20))
        for index in set(members.tolist()) & unreadable:
            round_trip = [(index + step) % 20 for step in range(1, 20)]
            alike = [i for i in round_trip if labels[index] in (-1, labels[i])]
            legal = [i for i in alike if i in members and i not in unreadable]
            pixels = replacements.replace(index, [])
            assert (None if pixels is None else int(pixels.item())) == (legal[0] if legal else None)


def test_trying_ends_where_the_run_would_stop_anyway():
    source = Listed(np.zeros(1000, np.int64), set(range(1000)))
    replacements, found = Replacements(source, source.labels, np.arange(1000), record(1000, 0.01)), []
    assert replacements.read(7, found) is None
    assert replacements.replace(7, found) is None
    assert len(found) == len(source.tried) == 11
    replacements.read_errors.note(found)
    with pytest.raises(
        ValueError, match=r"^11 of 1000 images cannot be read, more than data.max_unreadable=0.01 of them, "
    ):
        replacements.read_errors.check()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_a_class_without_any_readable_image_stops_with_one_line(damaged, workers, on_error):
    for path in (damaged / "b").iterdir():
        path.unlink()
    (damaged / "b" / "20.png").write_bytes(b"")
    data = module(damaged, on_error=on_error, workers=workers, batch_size=1, max_unreadable=0.2)
    with pytest.raises(UnreadableImageError) as caught:
        batches_of(data, 1)
    name = damaged / "b" / "20.png"
    line = f"{name} cannot be read (no known image format), nor any that may replace it: repair it"
    assert str(caught.value) == line


@pytest.mark.parametrize("options", [{}, {"on_error": "skip"}, {"workers": 2}, {"cache_gb": 1.0}])
def test_more_unreadable_images_than_allowed_stop_with_one_line(damaged, tmp_path, options):
    data = module(damaged, max_unreadable=0.09, **options)
    data.read_errors.list_in(tmp_path / "list")
    with pytest.raises(
        ValueError, match=r"^6 of 60 images cannot be read, more than data.max_unreadable=0.09"
    ) as caught:
        batches_of(data)
    assert str(caught.value).endswith(
        f"{tmp_path}/list lists them: repair them and delete that list, or raise data.max_unreadable="
    )
    assert "\n" not in str(caught.value)
    assert len((tmp_path / "list").read_text().splitlines()) == 6


@pytest.mark.parametrize(("count", "images", "max_unreadable", "stops"), [
    (0, 10, 0.0, False), (1, 10, 0.0, True), (29, 100, 0.29, False), (30, 100, 0.29, True), (7, 100, 0.07, False),
    (100, 100, 1.0, False), (600, 60_000, 0.01, False), (601, 60_000, 0.01, True),
])  # fmt: skip
def test_the_fraction_is_exact(count, images, max_unreadable, stops):
    assert record(images, max_unreadable).too_many(count) is stops


def test_the_list_is_one_line_an_image_whatever_its_name(tmp_path):
    names = ["a b.png", "\x1b[31m.png", "tab\t.png", "line\nbreak\r.png", os.fsdecode(b"latin-\xe9.png"), "\u2028.png"]
    first = record(10)
    first.note([(name, "a\nreason") for name in names])
    first.list_in(tmp_path / "list")
    lines = (tmp_path / "list").read_bytes().split(b"\n")
    assert lines[1] == rb"\x1b[31m.png" + b"\t" + rb"a\nreason"  # whoever reads the list in a terminal
    assert lines[2] == rb"tab\t.png" + b"\t" + rb"a\nreason"
    assert len(lines) == len(names) + 1
    again = record(10)
    again.list_in(tmp_path / "list")
    assert again.found == first.found
    again.note([(name, "another reason") for name in [*names, "new.png"]])
    assert again.count() == first.count() == len(names) + 1
    assert len((tmp_path / "list").read_bytes().split(b"\n")) == len(names) + 2


def _rank(path, rank: int, barrier) -> None:
    mine = record(1000)
    mine.list_in(path)
    barrier.wait()
    for i in range(0, 200, 4):
        mine.note([(f"image {(rank * 50 + i + k) % 200}", "damaged") for k in range(4)])
    barrier.wait()
    assert mine.count() == 200


def test_processes_list_an_image_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    ranks = [context.Process(target=_rank, args=(tmp_path / "list", rank, barrier)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    lines = (tmp_path / "list").read_text().splitlines()
    assert sorted(lines) == sorted(f"image {i}\tdamaged" for i in range(200))


def test_a_list_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    mine = record(10)
    mine.list_in(tmp_path / "absent" / "list")
    mine.note([("a", "damaged")])
    mine.note([("b", "damaged")])
    assert mine.count() == 2
    assert sum("cannot be written" in message for message in caplog.messages) == 1


def test_the_first_few_are_said_and_where_the_rest_is(tmp_path, caplog):
    mine = record(100)
    mine.list_in(tmp_path / "list")
    for _ in range(2):
        mine.note([(f"image {i}", "damaged") for i in range(8)])
    assert caplog.messages[:-1] == [f"image {i} cannot be read: damaged" for i in range(5)]
    assert (
        caplog.messages[-1] == f"more images cannot be read, which are not named here; {tmp_path}/list lists them all"
    )


CRAFTED = [
    ("bomb.png", png(100_000, 100_000), r"10000000000 pixels"),
    ("limit.png", png(10_000, 10_000), r"10000 x 10000 pixels are more than PIL's limit"),
    ("slim.png", png(1, 60_000), r"1 x 60000 pixels: one side is more than 100 times the other"),
    ("wide.bmp", bmp(60_000, 2), r"60000 x 2 pixels: one side is more than 100 times the other"),
    ("none.png", png(0, 10), r"is no image|cannot be used"),
    ("none.bmp", bmp(0, 10), r"is no image|cannot be used"),
    ("bomb.gif", gif(65_535, 65_535), r"4294836225 pixels"),
    ("bomb.tif", tiff(100_000, 100_000), r"10000000000 pixels"),
    ("tile.tif", tiff(16, 16, tile=30_000), r"tiles of 30000 x 30000 pixels are more than PIL's limit"),
    ("bomb.bmp", bmp(100_000, 100_000), r"10000000000 pixels"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "content", "reason"), CRAFTED, ids=[name for name, _, _ in CRAFTED])
def test_a_few_bytes_that_claim_an_absurd_size_are_refused(tmp_path, name, content, reason):
    assert len(content) < 500
    kept = name if name.endswith(("png", "bmp", "tif")) else f"{name}.png"  # PIL goes by content
    (tmp_path / kept).write_bytes(content)
    source = open_source(DataConfig(path=str(tmp_path)), 3, "train")
    for look in (source.read, source.size):
        with pytest.raises(UnreadableImageError, match=reason):
            look(0)


def test_a_hundred_to_one_is_still_read(tmp_path, write):
    write(tmp_path / "strip.png", 2, 200)
    assert open_source(DataConfig(path=str(tmp_path)), 3, "train").read(0).shape == (2, 200, 3)


def test_refusing_takes_no_memory(tmp_path):
    for name, content, _ in CRAFTED:
        (tmp_path / f"{name}.png").write_bytes(content)
    code = (
        "import resource, sys, warnings; warnings.simplefilter('ignore')\n"
        "from ssl_vit.config.schema import DataConfig\n"
        "from ssl_vit.data.sources.base import UnreadableImageError\n"
        "from ssl_vit.data.sources import open_source\n"
        f"source = open_source(DataConfig(path={str(tmp_path)!r}), 3, 'train')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for index in range(len(source)):\n"
        "    for look in (source.size, source.read):\n"
        "        try: look(index); sys.exit('was read: ' + source.name(index))\n"
        "        except UnreadableImageError: pass\n"
        "print(len(source), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = map(int, answer.stdout.split())
    assert count == len(CRAFTED)
    assert grown < 20_000  # kB
