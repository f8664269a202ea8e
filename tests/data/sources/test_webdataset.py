"""Shards that others made, that are damaged, remote or hostile."""

import gzip
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.evaluation_schema import ShardsConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.shard_writer import make_shards
from ssl_vit.data.sources import count, open_source, webdataset
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.webdataset import LocalShards, TarImages, TarShards, remote_shards
from ssl_vit.models.preprocess import CenterCrop


def encoded(seed: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), seed, dtype=np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def tar(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            header = tarfile.TarInfo(name.rstrip(" "))  # so that a name can come twice
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))
    return path


def config(path, **options) -> DataConfig:
    return DataConfig(source="webdataset", path=str(path), **options)


def opened(path, split="train", **options):
    return open_source(config(path, **options), 3, split)


@pytest.fixture
def foreign(tmp_path):
    """Two shards as others make them: several files of a sample, labels of two kinds, folders, files of their own."""
    tar(
        tmp_path / "shards" / "a.tar",
        {
            "__meta__.json": b"{}", "0.png": encoded(0), "0.cls": b"2\n", "0.txt": b"a cat",
            "x/1.json": json.dumps({"label": 1}).encode(), "x/1.PNG": encoded(1), "x/1.seg.png": encoded(99),
            "2.txt": b"no image", "3.png": encoded(2), "3.jpg": encoded(3), "3.json": b"[1]",
        },
    )  # fmt: skip
    tar(tmp_path / "shards" / "b.tar", {"0.webp": encoded(4), "0.cls": b"-1", "1.png": encoded(5), "1.cls": b"0"})
    return tmp_path / "shards"


def values(source) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


def streamed(shards: TarShards) -> list[tuple[int, int]]:
    """(value, label) of every image, in order."""
    samples = [sample for shard in range(len(shards.names)) for sample in shards.read(shard)]
    return [(int(np.asarray(Image.open(io.BytesIO(s.encoded)))[0, 0, 0]), s.label) for s in samples]


def test_foreign_shards_are_read_by_number_and_as_a_stream_alike(foreign):
    source = opened(foreign)
    assert values(source) == [0, 1, 3, 4, 5]  # of two images of a sample jpg counts before png
    assert source.labels.tolist() == [2, 1, -1, -1, 0]
    assert source.classes == ["0", "1", "2"]
    assert source.name(1) == f"{foreign / 'a.tar'} image 1"
    assert source.name(3) == f"{foreign / 'b.tar'} image 0"
    assert count(config(foreign)) == 5
    pairs = streamed(TarShards([str(foreign / "a.tar"), str(foreign / "b.tar")], None))
    assert pairs == list(zip(values(source), source.labels.tolist(), strict=True))


def test_braces_and_file_urls_name_shards(foreign):
    assert values(opened(f"{foreign}/{{b,a}}.tar")) == [4, 5, 0, 1, 3]
    assert values(opened(f"file://{foreign}")) == [0, 1, 3, 4, 5]
    assert values(opened(foreign / "a.tar", "test", test_path=f"file://{foreign}/b.tar")) == [4, 5]
    assert values(opened(foreign / "b.tar")) == [4, 5]
    with pytest.raises(ValueError, match=r"\{a,c\}.tar names .*c\.tar, which does not exist$"):
        opened(f"{foreign}/{{a,c}}.tar")


def test_shards_are_split_by_name(tmp_path):
    for name in ("set-train-0.tar", "set-val-0.tar"):
        tar(tmp_path / name, {"0.png": encoded(len(name))})
    assert values(opened(tmp_path)) == [15]
    assert values(opened(tmp_path, "test")) == [13]
    assert opened(f"{tmp_path}/set-{{train,val}}-0.tar", "test") is None
    assert values(opened(f"{tmp_path}/set-{{train,val}}-0.tar", "test", test_path=str(tmp_path))) == [13]


def test_nothing_but_images_and_labels_is_read(tmp_path):
    """WebDataset's own decoders would unpickle 0.pyd."""
    flag = tmp_path / "flag"

    class Touch:
        def __reduce__(self):
            return (open, (str(flag), "w"))

    hostile = pickle.dumps(Touch())
    file = tar(tmp_path / "a.tar", {"0.pyd": hostile, "0.pickle": hostile, "0.pth": hostile, "0.png": encoded(1)})
    assert values(opened(tmp_path)) == [1]
    assert streamed(TarShards([str(file)], None)) == [(1, -1)]
    assert not flag.exists()


@pytest.mark.parametrize("left", [540, 1600])
def test_a_torn_shard_is_one_line(tmp_path, left):
    file = tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(3)})
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"^data.path=.*a\.tar cannot be read to its end: [\w ]+: copy it again$"):
        opened(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"^/.*a\.tar cannot be read to its end: [\w ]+: copy it again$"):
        streamed(TarShards([str(file)], None))


def test_a_shard_without_images_is_one_line(tmp_path):
    tar(tmp_path / "a.tar", {"0.txt": b"x"})
    with pytest.raises(ValueError, match=r"holds no images: 1 tar shards without one$"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"^data.path= is empty: give a tar shard, or a folder of them$"):
        opened("")
    (tmp_path / "a.tar").rename(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=r"holds no tar shards: 1 files seen, none ends in .tar$"):
        opened(tmp_path)


def test_names_are_class_names(tmp_path):
    tar(
        tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"dog\n", "1.png": encoded(1), "1.json": b'{"label": "ant"}'}
    )
    tar(tmp_path / "b.tar", {"0.png": encoded(2), "1.png": encoded(3), "1.cls": "\ufeffcat".encode()})
    source = opened(tmp_path)
    assert source.classes == ["ant", "cat", "dog"]
    assert source.labels.tolist() == [2, 0, -1, 1]
    tar(tmp_path / "c.tar", {"0.png": encoded(4), "0.cls": b"7"})
    assert opened(tmp_path).classes == ["7", "ant", "cat", "dog"]


UNUSABLE = [b"1.5", b"nan", b"", b"\xff\xfe", b"9" * 30, b"\x1b[2J", b"x" * 2_000_000]
UNUSABLE_JSON = [
    b"[" * 100_000,
    b'{"label": ' + b"9" * 5000 + b"}",
    b'{"label": [1]}',
    b'{"label": true}',
    b"{",
    b"\xff",
]


@pytest.mark.parametrize(("ending", "content"), [("cls", c) for c in UNUSABLE] + [("json", c) for c in UNUSABLE_JSON])
def test_a_label_that_is_none_stops_no_pretraining_and_is_counted(tmp_path, ending, content, caplog):
    file = tar(tmp_path / "a.tar", {"0.png": encoded(0), f"0.{ending}": content, "1.png": encoded(1), "1.cls": b"1"})
    source = opened(tmp_path)
    assert (source.labels.tolist(), source.classes) == ([-1, 0], ["1"])
    assert streamed(TarShards([str(file)], None)) == [(0, -1), (1, 1)]
    line = "skipped 1 members: 1 labels that are neither an integer nor a name"
    assert [line in message for message in caplog.messages] == [True, True]


def test_shards_of_several_indexes_have_one_numbering(indexed, tmp_path):
    """Class 0 of one folder is not class 0 of another."""
    pack_again = indexed.parent / "both"
    for name, classes in (("x", ["cat", "dog"]), ("y", ["dog", "eel"])):
        folder = tmp_path / name
        for number, label in enumerate(classes):
            (folder / label).mkdir(parents=True)
            (folder / label / "0.png").write_bytes(encoded(number + 10 * (name == "y")))
        make(folder, pack_again / name)
    source = opened(pack_again)
    assert source.classes == ["cat", "dog", "eel"]
    found = dict(zip(values(source), [source.classes[label] for label in source.labels], strict=True))
    assert found == {0: "cat", 1: "dog", 10: "dog", 11: "eel"}


def both_ways(path) -> list[tuple[int, int]]:
    """(value, label as it is stored) of a shard's images, by number and front to back alike."""
    source = opened(path)
    by_number = list(zip(values(source), source.labels.tolist(), strict=True))
    assert streamed(TarImages.open_shards(config(path), source)) == by_number
    stored = [(value, -1 if label < 0 else int(source.classes[label])) for value, label in by_number]
    assert streamed(TarShards([str(path)], None)) == stored
    return stored


@pytest.mark.parametrize(
    ("files", "found"),
    [
        # names with dots: 20 of 40 images were not there
        (
            {"2024.05.07.png": 0, "2024.05.08.png": 1, "2024.06.01.PNG": 2, "a/v1.2/x.png": 3, "a/v1.2/y.png": 4},
            "01234",
        ),
        ({"img.left.png": 0, "img.right.png": 1, "img.cls": b"7"}, [(0, 7), (1, 7)]),
        ({"b.1.cls": b"4", "b.1.png": 0, "b.2.png": 1, "b.2.cls": b"5"}, [(0, 4), (1, 5)]),
        # a sample of several files: the image without a further dot counts, wherever it comes
        ({"x.jpg": 0, "x.seg.png": 9, "x.cls": b"1"}, [(0, 1)]),
        ({"x.depth.png": 9, "x.jpg": 0, "x.mask.png": 9, "x.1.cls": b"3"}, "0"),
        ({"x.png": 9, "x.jpg": 0, "x.jpeg": 9}, "0"),
        # a name that comes again is another image, with its own label
        ({"x.png": 0, "x.cls": b"1", "x.png ": 1, "x.cls ": b"2"}, [(0, 1), (1, 2)]),
        # names only, whatever they say; hidden ones are not there
        ({"/etc/x.png": 0, "../../y.png": 1, "./z.png": 2, "é/\udcff.png": 3}, "0123"),
        ({"._0.png": 9, ".hidden/1.png": 9, "__MACOSX/._2.png": 9, "a/._b.png": 9, "0.png": 0}, "0"),
        ({"d" * 120 + "/" + "e" * 120 + ".png": 0, "d" * 120 + "/" + "e" * 120 + ".cls": b"5"}, [(0, 5)]),
    ],
)
def test_which_members_are_images(tmp_path, files, found):
    file = tar(
        tmp_path / "a.tar",
        {name: encoded(content) if isinstance(content, int) else content for name, content in files.items()},
    )
    assert both_ways(file) == ([(int(value), -1) for value in found] if isinstance(found, str) else found)


def test_a_hundred_dates_are_a_hundred_images_and_their_labels(tmp_path):
    """WebDataset takes all for one sample: they agree up to the first dot."""
    files = {}
    for day in range(100):
        files |= {f"2024.{day:03}.cls": str(day).encode(), f"2024.{day:03}.png": encoded(day)}
    assert both_ways(tar(tmp_path / "a.tar", files)) == [(day, day) for day in range(100)]


def test_what_is_skipped_is_counted_and_named(tmp_path, caplog):
    files = {"0.png": encoded(0), "0.seg.png": encoded(1), "1.mp4": b"", "1.cls": b"1", "._2.png": b"", "README": b""}
    file = tar(tmp_path / "s" / "a.tar", files | {f"{i}.txt": b"" for i in range(5)} | {"\x1b[2J.\x1b[2J": b""})
    with tarfile.open(file, "a") as shard:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("p.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            shard.addfile(member)
    tar(tmp_path / "s" / "b.tar", {"0.png": encoded(0)})
    tar(tmp_path / "s" / "c.tar", {})
    assert len(opened(tmp_path / "s")) == 2
    counted = "skipped 14 members: 5 .txt, 2 of other names, 2 links, 1 .mp4, 1 .seg.png, ..."
    assert caplog.messages == [
        f"data.path={tmp_path}/s: 1 tar shards hold no images, such as {tmp_path}/s/c.tar",
        f"data.path={tmp_path}/s: {counted} of 1 tar shards",
    ]
    caplog.clear()
    assert len(streamed(TarShards([str(file)] * 2, None))) == 2
    assert caplog.messages == [f"{file}: {counted}; of other shards this is not logged"]


def test_one_flipped_bit_in_a_header_is_one_unreadable_image(tmp_path, caplog):
    """tarfile takes it for the end of the shard: 9 of 10 images were gone, without a word."""
    file = tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(10)})
    whole, size = file.read_bytes(), 512 + 512
    for at in (0, 4, 9):
        damaged = bytearray(whole)
        damaged[at * size + 100] ^= 8
        file.write_bytes(damaged)
        source = opened(tmp_path)
        assert len(source) == count(config(tmp_path)) == 10
        assert source.name(at) == f"{file} bytes {at * size} to {at * size + size if at < 9 else len(whole)}"
        assert f"has 1 damaged parts, such as {source.name(at)}: each counts as an unreadable image" in caplog.text
        with pytest.raises(
            UnreadableImageError, match=rf"a\.tar bytes {at * size} to \d+ cannot be used: a part of the"
        ):
            source.read(at)
        readable = [i for i in range(10) if i != at]
        assert [int(source.read(i)[0, 0, 0]) for i in readable] == readable
        for shards in (TarShards([str(file)], None), TarImages.open_shards(config(tmp_path), source)):
            samples = list(shards.read(0))
            assert [sample.name for sample in samples] == [source.name(i) for i in range(10)]
            assert [i for i, sample in enumerate(samples) if sample.problem] == [at]
        with pytest.raises(
            ValueError, match=r"^data.path=.* has 1 damaged parts, such as .*: copy the shards again, or"
        ):
            opened(tmp_path, on_error="raise")


def test_a_flipped_bit_in_a_header_does_not_matter_where_there_is_an_index(indexed):
    """members.npy says where the images are."""
    before = values(opened(indexed))
    for file in indexed.glob("*.tar"):
        content = bytearray(file.read_bytes())
        content[100] ^= 8
        file.write_bytes(content)
    source = opened(indexed)
    assert values(source) == before
    assert [value for value, _ in streamed(TarImages.open_shards(config(indexed), source))] == before


def test_a_damaged_shard_is_trained_on_and_listed(tmp_path):
    """Under data.on_error: replaced, skipped, or the end of the run."""
    file = tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(8)})
    content = bytearray(file.read_bytes())
    content[3 * 1024 + 100] ^= 8
    file.write_bytes(content)
    for on_error, images in (("replace", 8), ("skip", 7)):
        data = ImageDataModule(
            CenterCrop((4, 4), 1.0), source="webdataset", path=str(tmp_path), batch_size=8, workers=0,
            on_error=on_error, max_unreadable=0.2, image_size=4, seed=0,
        )  # fmt: skip
        (batch,) = data.train_dataloader()
        assert len(batch["images"]) == images
        assert data.read_errors.found == {f"{file} bytes 3072 to 4096": "a part of the shard is damaged: copy it again"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_files_are_shards(tmp_path, monkeypatch):
    """A named pipe would be waited for; a name with a command in it is a name."""
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "pipe:touch MARK |.tar", {"0.png": encoded(1)})
    for path in (".", "./pipe:touch MARK |.tar", "{pipe:touch MARK |.tar,./pipe:touch MARK |.tar}"):
        assert set(streamed(TarImages.open_shards(config(path), opened(path)))) == {(1, -1)}
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(ValueError, match=r"names b.tar, which is no regular file$"):
        opened("{b.tar,}")
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s" / "index.json")
    tar(tmp_path / "s" / "a.tar", {"0.png": encoded(1)})
    with pytest.raises(ValueError, match=r"index.json cannot be used: it is no regular file: delete it"):
        opened("s")
    assert not (tmp_path / "MARK").exists()


HOSTILE = ["[]", "{}", "[" * 100_000, '{"shards": {}}', '{"shards": [1]}', '{"shards": {"a.tar": 1}, "classes": []}']
HOSTILE += [
    f'{{"classes": [], "shards": {{"a.tar": {{"images": {n}, "bytes": 1}}}}}}' for n in ("-1", "1e400", "9" * 99)
]


@pytest.mark.parametrize("content", HOSTILE)
def test_an_index_of_a_stranger_is_one_line(tmp_path, content):
    tar(tmp_path / "a.tar", {"0.png": encoded(1)})
    np.save(tmp_path / "members.npy", np.zeros((1, 3), np.int64))
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"^data.path=[^\n]*index\.json cannot be used: [^\n]*: delete it, or make"):
        opened(tmp_path)


@pytest.mark.parametrize("row", [(-1, 5, 0), (0, 2**60, 0), (2**62, 5, 0), (0, -(2**63), 0)])
def test_places_that_are_not_there_are_unreadable_images(indexed, row):
    members = np.load(indexed / "members.npy")
    members[3] = row
    np.save(indexed / "members.npy", members)
    source = opened(indexed)
    with pytest.raises(UnreadableImageError):
        source.read(3)
    problems = [sample.problem for shard in range(2) for sample in LocalShards(source).read(shard)]
    assert [i for i, problem in enumerate(problems) if problem] == [3]


def test_a_compressed_shard_is_a_stream_alone(foreign, monkeypatch):
    packed = foreign / "a.tar.gz"
    packed.write_bytes(gzip.compress((foreign / "a.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"a.tar.gz is compressed, so no image in it has a place: decompress it$"):
        opened(packed)
    assert streamed(TarShards([str(packed)], None)) == [(0, 2), (1, 1), (3, -1)]
    content = bytearray(packed.read_bytes())
    for at in (len(content) // 2, len(content) - 6):  # its data, its checksum
        changed = content.copy()
        changed[at] ^= 16
        packed.write_bytes(changed)
        with pytest.raises(UnreadableImageError, match=r"a.tar.gz cannot be read to its end: [^\n]*: copy it again$"):
            streamed(TarShards([str(packed)], None))
    packed.write_bytes(content[:-20])
    with pytest.raises(UnreadableImageError, match=r"a.tar.gz cannot be read to its end"):
        streamed(TarShards([str(packed)], None))


def make(folder, out):
    return make_shards(ShardsConfig(data=DataConfig(path=str(folder)), out=str(out), shard_mb=0.006))


@pytest.fixture
def indexed(tmp_path):
    """Two shards with the index that make_shards writes."""
    for i in range(12):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i))
    make(tmp_path / "images", tmp_path / "s")
    return tmp_path / "s"


def test_the_index_spares_reading_the_shards(indexed, monkeypatch):
    monkeypatch.setattr(webdataset, "scan", lambda file: 1 / 0)
    assert count(config(indexed)) == 12
    assert sorted(values(opened(indexed))) == list(range(12))


def test_a_shard_that_the_index_does_not_fit_is_one_line(indexed):
    first, second = sorted(indexed.glob("*.tar"))
    second.rename(indexed / "other.tar")
    with pytest.raises(
        ValueError, match=r"other\.tar is not in the index\.json beside it: delete the one or the other$"
    ):
        count(config(indexed / "other.tar"))
    first.write_bytes(first.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"has \d+ bytes, the index\.json beside it says \d+: copy it again$"):
        count(config(first))


@pytest.mark.parametrize("name", ["members.npy", "index.json"])
def test_a_damaged_index_is_one_line(indexed, name):
    (indexed / name).write_bytes((indexed / name).read_bytes()[:20])
    with pytest.raises(ValueError, match=r"index\.json cannot be used: .*: delete it, or make the shards again$"):
        count(config(indexed))


def test_a_shell_command_is_run_only_where_a_person_allows_it(foreign, monkeypatch):
    path = f"pipe:cat {foreign}/{{a,b}}.tar"
    with pytest.raises(ValueError, match=r"is a shell command: set SSL_VIT_ALLOW_PIPE=1 in the environment to run it$"):
        remote_shards(config(path, epoch_size=5))
    monkeypatch.setenv("SSL_VIT_ALLOW_PIPE", "1")
    assert [value for value, _ in streamed(remote_shards(config(path, epoch_size=5)))] == [0, 1, 3, 4, 5]
    with pytest.raises(ValueError, match=r"\(a command has nothing beside it\): give data.epoch_size$"):
        remote_shards(config(path))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(indexed):
    """The URL of the indexed shards."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(indexed)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_behind_a_url_are_counted_by_their_index_and_read(served, indexed):
    url = f"{served}/train-{{000000..000001}}.tar"
    assert opened(url) is None
    assert count(config(url)) == 12
    assert count(config(url, epoch_size=5)) == 5
    shards = remote_shards(config(url))
    assert shards.counts.sum() == 12
    assert sorted(value for value, _ in streamed(shards)) == list(range(12))
    assert remote_shards(config(url, epoch_size=5)).counts is None
    (indexed / "index.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no index.json beside it that counts its images .*: give data.epoch_size$"
    ):
        count(config(url))


def test_every_url_that_braces_stand_for_is_judged(tmp_path, monkeypatch):
    """The command inside the braces was run without the permission that it needs, also out of a stranger's recipe."""
    monkeypatch.chdir(tmp_path)
    for path in (
        "{pipe:touch MARK; true /,http://127.0.0.1:9/x.tar}", "{http://127.0.0.1:9/x.tar,pipe:touch MARK}",
        "{{a,pipe:touch MARK},file://b}", "{rclone:touch MARK,http://127.0.0.1:9/x.tar}://x", "{ht,ft}p://127.0.0.1:9/x.tar",
    ):  # fmt: skip
        for options in ({}, {"epoch_size": 5}):
            with pytest.raises(
                ValueError, match=r"is a shell command|is of a kind that is not opened|names a, which does"
            ):
                count(config(path, **options)) if not options else list(remote_shards(config(path, **options)).read(0))
    assert not list(tmp_path.iterdir())


def test_a_url_that_does_not_answer_is_one_line(served):
    shards = remote_shards(config(f"{served}/nothing.tar", epoch_size=5))
    with pytest.raises(UnreadableImageError, match=r"/nothing\.tar cannot be read to its end: .*: copy it again$"):
        streamed(shards)


def test_images_to_evaluate_on_lie_on_this_machine():
    with pytest.raises(ValueError, match=r"^data.test_path=http://x/a.tar must be shards on this machine"):
        opened("http://x/a.tar", "test", test_path="http://x/a.tar")
