"""data.source=auto: what lies at data.path says which source reads it, and nothing is guessed."""

import os
import re

import pytest

from ssl_vit.config.foreign import require_typed
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import DataConfig, RunConfig

KNOWN = {  # files of a place, and what reads it
    "one flat folder": (["a.jpg", "b.PNG"], "folder"),
    "class folders of splits": (["train/cat ü/a.webp", "val/dog/b.tif", "readme.txt"], "folder"),
    "images and a table of their labels": (["a.jpg", "labels.csv", "metadata.parquet", "x.json"], "folder"),
    "images and arrays, perhaps masks": (["a.jpg", "a.npy"], "folder"),
    "arrays alone": (["cat/a.npy", "dog/b.npz"], "folder"),
    "scans": (["study/series/1.dcm", "study/series/2.dicom"], "folder"),
    "a data set of the hub": (["README.md", ".gitattributes", "data/train-00000-of-00001.parquet"], "parquet"),
    "a table that is called as one of labels": (["metadata.parquet"], "parquet"),
    "shards of make_shards": (["train-000000.tar", "index.json", "members.npy"], "webdataset"),
    "nested shards": (["train/0.tar", "val/0.tar"], "webdataset"),
    "archives": (["train.zip", "val.zip"], "zip"),
    "saved rows": (["data-00000-of-00001.arrow", "state.json", "dataset_info.json"], "hf"),
    "saved splits": (["dataset_dict.json", "train/data.arrow", "train/state.json"], "hf"),
    "hidden files are not there": (["a.jpg", ".b.tar", "__MACOSX/c.parquet", "@eaDir/d.zip"], "folder"),
}


def made(root, files) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.mark.parametrize("name", KNOWN)
def test_what_lies_there_decides(name, tmp_path):
    files, source = KNOWN[name]
    assert DataConfig(path=made(tmp_path, files)).source == source
    assert DataConfig(path=str(tmp_path), source="torchvision").source == "torchvision"  # typed, it is not looked at


@pytest.mark.parametrize(
    ("name", "head", "source"),
    [
        *(("a.jpg", b"", "folder"), ("a.parquet", b"", "parquet"), ("a.tar", b"", "webdataset"), ("a.zip", b"", "zip")),
        *(("a.tar.gz", b"", "webdataset"), ("IM0001", b"\0" * 128 + b"DICM", "folder"), ("x", b"PAR1", "parquet")),
        *(("x", b"\0" * 257 + b"ustar", "webdataset"), ("x", b"\x89PNG", "folder"), ("x", b"PK\3\4", "zip")),
    ],
)
def test_one_file_is_known_by_its_ending_or_its_first_bytes(tmp_path, name, head, source):
    (tmp_path / name).write_bytes(head)
    assert DataConfig(path=str(tmp_path / name)).source == source


@pytest.mark.parametrize(
    "path", ["https://host/a.tar", "https://host/get?id=1", "pipe:cat a", "shards/{000..009}.tar", "file:///x/a.tar"]
)
def test_urls_and_braces_are_shards_and_are_not_opened(path):
    assert DataConfig(path=path).source == "webdataset"


REFUSED = {  # files, the path in them, and what is said
    "a stray shard": (
        [*(f"{i}.jpg" for i in range(12)), "stray.tar"],
        "",
        r"12 image files \(.*/0.jpg\) and 1 tar shards \(.*/stray.tar\): "
        "give data.source=folder for the image files, data.source=webdataset for the tar shards$",
    ),
    "images and tables": (["a.jpg", "train.parquet"], "", "data.source=parquet for the parquet files$"),
    "an archive beside what was in it": (["train.zip", "train/cat/a.jpg"], "", "data.source=zip for the zip archives$"),
    "a folder around a saved one": (["x/state.json", "x/a.arrow"], "", "give such a one, perhaps data.path=.*/x$"),
    "a text": (["a.txt"], "a.txt", "is no file that images are read from: give a folder of images, of parquet files"),
    "nothing": ([], "", "holds no images: 0 files seen; give a folder of images"),
    "nothing known": (["a.txt", "b.txt", "c"], "", r"holds no images: 3 files seen \(2 .txt, 1 no ending\); give"),
    "no such place": ([], "x", "does not exist: give a folder of images.*; a name on the hub takes data.source=hf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_is_refused_in_one_line(name, tmp_path):
    files, inner, line = REFUSED[name]
    path = os.path.join(made(tmp_path, files), inner)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^data.path={re.escape(path)}.*{line}") as caught:
        DataConfig(path=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["https://host/images.zip", "tables/{0..3}.parquet"])
def test_only_shards_are_read_by_url_or_braces(path):
    with pytest.raises(ValueError, match=r"^data.path=.*: tar shards alone are read by URL or braces"):
        DataConfig(path=path)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"is a pipe or a device"):
        DataConfig(path=str(tmp_path / "a.jpg"))
    (tmp_path / "b.jpg").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to("none")
    assert DataConfig(path=str(tmp_path)).source == "folder"


def test_training_and_test_images_are_of_one_kind(tmp_path):
    images, tables = made(tmp_path / "images", ["a.jpg"]), made(tmp_path / "tables", ["a.parquet"])
    line = f"^data.test_path={tables} holds parquet files, data.path={images} image files: give two of one kind"
    with pytest.raises(ValueError, match=line):
        DataConfig(path=images, test_path=tables)
    assert DataConfig(path=images, test_path=images).source == "folder"


def test_of_many_files_no_more_are_looked_at_than_it_takes(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("ssl_vit.config.auto_source._ENOUGH", 10)
    monkeypatch.setattr(
        "ssl_vit.config.auto_source.kind_of", lambda e: looked.append(e) or ["file", "folder"][e.is_dir()]
    )
    path = made(tmp_path, [f"{folder}/{number}.jpg" for folder in "abcdef" for number in range(8)])
    assert DataConfig(path=path).source == "folder"
    assert len(looked) == 6 + 2 * 8


def test_a_strangers_path_is_found_on_this_machine_alone(tmp_path):
    """A name of the hub is no path, and what is a URL has to be typed, as for any source."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {source: auto, path: a/b}")
    with pytest.raises(FileNotFoundError, match=r"^data.path=a/b does not exist"):
        resolve(RunConfig, ["method=mae", f"recipe={recipe}"])
    recipe.write_text("data: {path: 'http://h/x.tar'}\nmonitor: {every_epochs: 0}")
    resolved = resolve(RunConfig, ["method=mae", f"recipe={recipe}"])
    with pytest.raises(ConfigError, match=r"^data.path=http://h/x.tar comes from .*, and would open it as a URL"):
        require_typed(resolved, lambda data: True)
