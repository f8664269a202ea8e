"""What a folder is packed into: every image once, its bytes and label kept, shards whole or absent."""

import json
import logging
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.evaluation_schema import ShardsConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.shard_writer import make_shards
from ssl_vit.data.sources import count, open_source


def pack(folder, out, shard_mb: float = 0.02, **options):
    return make_shards(ShardsConfig(data=DataConfig(path=str(folder)), out=str(out), shard_mb=shard_mb, **options))


def shards(out, split="train", **options):
    return open_source(DataConfig(source="webdataset", path=str(out), **options), 3, split)


@pytest.fixture
def labeled(tmp_path, write):
    """20 cats and 10 dogs."""
    for i in range(30):
        write(tmp_path / "images" / ("cat" if i < 20 else "dog") / f"{i:02}.png", 12 + i % 5, 14, seed=i)
    return tmp_path / "images"


def test_every_image_is_packed_once_with_its_bytes_and_its_label(labeled, tmp_path):
    result = pack(labeled, tmp_path / "out")
    source = shards(tmp_path / "out")
    packed = {}
    for file in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(file) as shard:
            packed |= {member.name: shard.extractfile(member).read() for member in shard}
    images = {content for name, content in packed.items() if name.endswith(".png")}
    assert images == {path.read_bytes() for path in labeled.rglob("*.png")}
    assert result == {
        "out": str(tmp_path / "out"), "shards": 4, "images": 30, "skipped": 0,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")),
    }  # fmt: skip
    assert len(source) == count(DataConfig(source="webdataset", path=str(tmp_path / "out"))) == 30
    assert source.classes == ["cat", "dog"]
    original = open_source(DataConfig(path=str(labeled)), 3, "train")
    by_pixels = {original.read(i).tobytes(): original.labels[i] for i in range(30)}
    assert [by_pixels[source.read(i).tobytes()] for i in range(30)] == source.labels.tolist()


def test_the_order_is_mixed_and_always_the_same(labeled, tmp_path):
    for name in ("a", "b"):
        pack(labeled, tmp_path / name)
    labels = shards(tmp_path / "a").labels
    assert 0 < labels[:10].sum() < 10
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_test_split_has_shards_of_its_own(labeled, write, tmp_path):
    write(labeled / "val" / "dog" / "x.png", seed=99)
    pack(labeled, tmp_path / "out")
    test = shards(tmp_path / "out", "test")
    assert len(shards(tmp_path / "out")) == 30
    assert [test.classes[label] for label in test.labels] == ["dog"]


def test_large_images_are_scaled_to_the_short_side_and_small_ones_stay(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[274] = 6  # on its side
    Image.fromarray(pixels).save(tmp_path / "in" / "a.jpg", exif=turned)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "in" / "b.png")
    Image.fromarray(pixels[:16, :18]).save(tmp_path / "in" / "c.jpg")
    pack(tmp_path / "in", tmp_path / "out", size=20)
    source = shards(tmp_path / "out")
    assert sorted((source.open_image(i).format, source.read(i).shape) for i in range(3)) == [
        ("JPEG", (16, 18, 3)), ("JPEG", (30, 20, 3)), ("PNG", (20, 30, 3)),
    ]  # fmt: skip
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as shard:
        assert (tmp_path / "in" / "c.jpg").read_bytes() in [shard.extractfile(member).read() for member in shard]


def test_a_source_without_files_is_packed_as_png(tmp_path):
    make_shards(ShardsConfig(data=DataConfig(source="digits"), out=str(tmp_path / "out"), shard_mb=1))
    packed, digits = shards(tmp_path / "out"), open_source(DataConfig(source="digits"), 3, "train")
    assert len(packed) == len(digits)
    assert sorted(packed.labels) == sorted(digits.labels)
    assert {packed.read(i).tobytes() for i in range(20)} <= {canvas.tobytes() for canvas in digits.canvases}
    assert len(shards(tmp_path / "out", "test")) == 360


@pytest.mark.parametrize("make", [lambda out: (out / "x").mkdir(parents=True), lambda out: out.write_text("")])
def test_only_an_empty_folder_is_written_to(labeled, tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(ValueError, match=r"^out=.*/out must be an empty or a new folder$"):
        pack(labeled, tmp_path / "out")


def test_it_needs_a_place_to_write_to(labeled):
    with pytest.raises(ValueError, match=r"^out= must be an empty or a new folder$"):
        pack(labeled, "")


def test_what_cannot_be_read_is_named_and_skipped(labeled, tmp_path, caplog):
    (labeled / "cat" / "damaged.jpg").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        result = pack(labeled, tmp_path / "out")
    assert (result["images"], result["skipped"]) == (30, 1)
    name = labeled / "cat" / "damaged.jpg"
    assert caplog.messages == [f"skipped: {name} is no image that can be read: delete or replace it"]


def test_a_full_disk_leaves_whole_shards_alone(labeled, tmp_path, monkeypatch):
    add, written = tarfile.TarFile.addfile, []

    def failing(self, *member):
        written.append(1)
        if len(written) == 49:
            raise OSError(28, "No space left on device")
        return add(self, *member)

    monkeypatch.setattr(tarfile.TarFile, "addfile", failing)
    with pytest.raises(
        OSError, match=r"out/train-000003.tar was not written \(No space left on device\): free some space"
    ):
        pack(labeled, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["index.json", "train-000000.tar", "train-000001.tar", "train-000002.tar"]
    for name in names[1:]:
        with tarfile.open(tmp_path / "out" / name) as shard:
            assert len(shard.getnames()) > 10
    with pytest.raises(ValueError, match=r"index\.json cannot be used: its packing was interrupted: delete"):
        shards(tmp_path / "out")  # a part of the images would be trained on as if it were all


def test_the_index_counts_each_shard(labeled, tmp_path):
    pack(labeled, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["classes"] == ["cat", "dog"]
    for name, metadata in index["shards"].items():
        with tarfile.open(tmp_path / "out" / name) as shard:
            assert metadata["images"] * 2 == len(shard.getnames())
    assert BytesIO((tmp_path / "out" / "members.npy").read_bytes()).read(6) == b"\x93NUMPY"


def test_shards_are_those_that_webdataset_reads(labeled, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="a development package")
    pack(labeled, tmp_path / "out", shard_mb=1)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False))
    assert {sample["png"] for sample in samples} == {path.read_bytes() for path in labeled.rglob("*.png")}
    assert sorted(sample["cls"] for sample in samples) == [b"0"] * 20 + [b"1"] * 10


@pytest.mark.parametrize(
    "data",
    [
        {"source": "webdataset", "path": "http://127.0.0.1:9/train-{000..009}.tar"},
        {"source": "webdataset", "path": "http://127.0.0.1:9/a.tar", "epoch_size": 5},
        {"source": "webdataset", "path": "pipe:touch MARK"},
        {"source": "hf", "path": "name", "streaming": True},
    ],
)
def test_a_remote_stream_is_refused_and_not_packed_as_nothing(data, tmp_path):
    """It was a success with 0 images."""
    with pytest.raises(ValueError, match=r"^data.path=.* is a remote stream, whose images cannot be mixed: bring its"):
        make_shards(ShardsConfig(data=DataConfig(**data), out=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_nothing_packed_is_an_error_and_leaves_no_shards(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^data.path=.*images: none of 2 images can be read, nothing is packed$"):
        pack(tmp_path / "images", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_shards_are_packed_again_with_the_names_of_their_classes(labeled, tmp_path):
    pack(labeled, tmp_path / "first")
    make_shards(
        ShardsConfig(data=DataConfig(source="webdataset", path=str(tmp_path / "first")), out=str(tmp_path / "b"))
    )
    first, again = shards(tmp_path / "first"), shards(tmp_path / "b")
    assert again.classes == ["cat", "dog"]
    pairs = [sorted((source.read(i).tobytes(), source.labels[i]) for i in range(30)) for source in (first, again)]
    assert pairs[0] == pairs[1]
