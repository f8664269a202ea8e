"""Which files are of which split: the same rule for folders, parquet files and shards."""

import os

import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.parquet import Parquet
from ssl_vit.data.sources.webdataset import TarImages
from ssl_vit.data.splits import files_below, split_of

KINDS = {".parquet": Parquet, ".tar": TarImages}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004", "train"), ("training", "train"), ("train2017", "train"), ("TEST", "test"),
        ("data_val_01", "val"), ("validation", "validation"), ("valid-3", "valid"), ("my.test.set", "test"),
        ("carnival", ""), ("latest", ""), ("contest", ""), ("strain", ""), ("trainer", ""), ("interval_2", ""),
        ("invalid", ""), ("ovaltest", ""), ("TESTÄ", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_files_split_is_a_whole_word_of_its_name(name, split):
    """Pages of carnival.parquet were tested on, as `val` is in its name."""
    assert split_of(name, is_file=True) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Val", "val"), ("contest", ""), ("freight train", ""), ("test tube", ""), ("train2", "")],
)
def test_a_folders_split_is_its_whole_name(name, split):
    assert split_of(name) == split


def laid_out(root, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def found(kind: str, path: str, split="train", **options) -> list[str] | None:
    files = KINDS[kind].find(DataConfig(source="folder", path=path, **options), split)
    return files and [os.path.relpath(file, path) for file in files]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_of_the_split_that_they_are_named_by(tmp_path, kind):
    root = laid_out(tmp_path, *(name + kind for name in ("carnival", "latest", "a/contest", "set_val_1")))
    assert found(kind, root) == [name + kind for name in ("a/contest", "carnival", "latest")]
    assert found(kind, root, "test") == ["set_val_1" + kind]
    deep = laid_out(tmp_path / "deep", f"train/x/y{kind}", f"val/x/train-0{kind}")
    assert found(kind, deep) == [f"train/x/y{kind}"]
    assert found(kind, deep, "test") == [f"val/x/train-0{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_are_not_there(tmp_path, kind):
    """A notebook's checkpoint of a file doubled it, and what a Mac leaves in an archive was a damaged one."""
    hidden = (".ipynb_checkpoints/a", ".cache/a", "._a", "__MACOSX/._a", "__MACOSX/a", "x/.y/a", "@eaDir/a")
    root = laid_out(tmp_path / ".cache" / "set", "a" + kind, *(name + kind for name in hidden))
    (tmp_path / ".cache" / "set" / f"folder{kind}").mkdir()
    os.mkfifo(f"{root}/pipe{kind}")
    os.symlink(f"loop{kind}", f"{root}/loop{kind}")
    os.symlink(root, f"{root}/again")
    assert found(kind, root) == ["a" + kind]
    with pytest.raises(ValueError, match=r"1 files seen, none ends in .npy"):
        type("Npy", (KINDS[kind],), {"ending": ".npy"}).find(DataConfig(path=root), "train")


def test_hidden_folders_of_images_are_not_there(tmp_path):
    hidden = (".ipynb_checkpoints/a.png", ".cache/x/a.png", "__MACOSX/a.png", "cat/._a.png", "@eaDir/a.png")
    root = laid_out(tmp_path / ".cache", "cat/a.png", *hidden)
    assert [name for _, name in files_below(os.fsencode(root))] == [b"cat/a.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_a_training_split_would_hide_are_said(tmp_path, kind, monkeypatch):
    root = laid_out(tmp_path, f"train-0{kind}", f"train-1{kind}", f"extra{kind}", f"val{kind}")
    monkeypatch.setattr(KINDS[kind], "holds_images", lambda file: "table" not in file.name)
    line = f"data.path={root}: train-0{kind} looks like its training split, but there are images beside it"
    with pytest.raises(ValueError, match=line) as caught:
        found(kind, root)
    assert f"(extra{kind})" in str(caught.value)
    others = laid_out(tmp_path / "test set", f"t{kind}")
    assert found(kind, root, test_path=others) == [f"extra{kind}", f"train-0{kind}", f"train-1{kind}"]
    (tmp_path / f"extra{kind}").rename(tmp_path / f"table{kind}")
    (tmp_path / "test set" / f"t{kind}").unlink()
    assert found(kind, root) == [f"train-0{kind}", f"train-1{kind}"]


def opened(path, split="train", **options):
    return open_source(DataConfig(path=str(path), **options), 3, split)


@pytest.mark.parametrize(
    ("beside", "shown"),
    [
        (("airplane/a.png", "bus/b.png"), "airplane, bus"),
        (("train2/a.png",), "train2"),
        (("test/t.png", "extra/deep/a.png"), "extra"),
        (("loose.png",), "loose.png"),
        (("a/1.png", "b/1.png", "c/1.png", "d/1.png"), "a, b, c and 1 more"),
    ],
)
def test_a_train_folder_that_hides_images_is_refused_unless_told(tmp_path, beside, shown):
    """Of the classes airplane, bus and train, train alone was trained on, without a word."""
    laid_out(tmp_path, "train/t.png", *beside)
    with pytest.raises(ValueError, match="looks like its training split") as caught:
        opened(tmp_path)
    told = f"give data.path={tmp_path}/train to train on it alone, or data.test_path= to train on all of them"
    assert str(caught.value).endswith(f"({shown}): {told}")
    assert len(opened(tmp_path / "train")) == 1
    laid_out(tmp_path / "others", "0.png")
    everything = opened(tmp_path, test_path=str(tmp_path / "others"))
    assert len(everything) == 1 + sum(not name.startswith("test/") for name in beside)


@pytest.mark.parametrize("test", ["test", "val", "Validation", "valid"])
def test_layouts_with_a_training_split_are_read_as_ever(tmp_path, test):
    beside = ("README.md", "labels.csv", "meta/x.json", ".thumbs/a.png", "unused/.a.png")
    laid_out(tmp_path, "train/cat/0.png", "train/dog/1.png", f"{test}/cat/2.png", *beside)
    assert opened(tmp_path).classes == ["cat", "dog"]
    assert len(opened(tmp_path, "test")) == 1
    assert len(opened(tmp_path, test_path=str(tmp_path / "train" / "cat"))) == 1
