"""Shards that others made, that are damaged, remote or hostile."""

import http.server
import io
import json
import pickle
import sys
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import count, open_source, webdataset
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.webdataset import TarShards, remote_shards


def encoded(seed: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), seed, dtype=np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def tar(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
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


def test_a_label_that_is_no_integer_is_one_line(tmp_path):
    file = tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"cat"})
    line = r"0\.cls of .*a\.tar holds 'cat': a label must be an integer$"
    with pytest.raises(UnreadableImageError, match=line):
        opened(tmp_path)
    with pytest.raises(UnreadableImageError, match=line):
        streamed(TarShards([str(file)], None))


@pytest.fixture
def indexed(tmp_path):
    """Two shards with the index that make_shards writes."""
    from ssl_vit.config.evaluation_schema import ShardsConfig
    from ssl_vit.data.shard_writer import make_shards

    for i in range(12):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i))
    make_shards(ShardsConfig(data=DataConfig(path=str(tmp_path / "images")), out=str(tmp_path / "s"), shard_mb=0.006))
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


def test_a_url_that_does_not_answer_is_one_line(served):
    shards = remote_shards(config(f"{served}/nothing.tar", epoch_size=5))
    with pytest.raises(UnreadableImageError, match=r"/nothing\.tar cannot be read to its end: .*: copy it again$"):
        streamed(shards)


def test_images_to_evaluate_on_lie_on_this_machine():
    with pytest.raises(ValueError, match=r"^data.test_path=http://x/a.tar must be shards on this machine"):
        opened("http://x/a.tar", "test", test_path="http://x/a.tar")


def test_a_missing_extra_is_named(foreign, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"uv sync --extra webdataset, or pip install 'ssl_vit\[webdataset\]'"):
        opened(foreign)
