import gc
import os
import sys

import numpy as np
import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import Source, count, open_source


def opened(path, split="train", **options) -> Source | None:
    return open_source(DataConfig(path=str(path), **options), 3, split)


def names(source: Source, root) -> list[str]:
    return [os.path.relpath(source.name(i), root) for i in range(len(source))]


def test_class_folders_give_labels(tmp_path, write):
    for name in ("dog/deep/b.png", "cat/a.JPG", "cat/c.webp", "dog/a.tiff"):
        write(tmp_path / name)
    source = opened(tmp_path)
    assert names(source, tmp_path) == ["cat/a.JPG", "cat/c.webp", "dog/a.tiff", "dog/deep/b.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.read(1).shape == (8, 8, 3)


@pytest.mark.parametrize("files", [("a.png", "cat/a.png", "dog/a.png"), ("all/a.png", "all/b.png"), ("a.png",)])
def test_without_two_class_folders_there_are_no_labels(tmp_path, write, files):
    for name in files:
        write(tmp_path / name)
    source = opened(tmp_path)
    assert sorted(names(source, tmp_path)) == sorted(files)
    assert source.classes == []
    assert source.labels.tolist() == [-1] * len(files)


def test_hidden_and_other_files_are_skipped(tmp_path, write):
    for name in ("a.png", ".b.png", ".git/c.png", "__MACOSX/._a.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert names(opened(tmp_path), tmp_path) == ["a.png"]


def test_loops_of_links_end(tmp_path, write):
    for name in ("cat/a.png", "dog/b.png"):
        write(tmp_path / name)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "self").symlink_to("self")
    (tmp_path / "dog" / "other").symlink_to(tmp_path / "cat")
    (tmp_path / "damaged.png").symlink_to("nowhere.png")
    source = opened(tmp_path)
    assert names(source, tmp_path) == ["cat/a.png", "dog/b.png"]


def test_a_folder_counts_where_it_lies_not_where_a_link_shows_it(tmp_path, write):
    write(tmp_path / "b" / "1.png")
    write(tmp_path / "a" / "2.png")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    source = opened(tmp_path)
    assert dict(zip(names(source, tmp_path), source.labels.tolist(), strict=True)) == {"a/2.png": 0, "b/1.png": 1}


def test_linked_folders_from_elsewhere_are_classes(tmp_path, write):
    write(tmp_path / "store" / "cats" / "1.png")
    write(tmp_path / "data" / "dog" / "2.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "cats")
    source = opened(tmp_path / "data")
    assert source.classes == ["cat", "dog"]
    assert sorted(zip(names(source, tmp_path / "data"), source.labels.tolist(), strict=True)) == [
        ("cat/1.png", 0),
        ("dog/2.png", 1),
    ]


@pytest.mark.parametrize("folder", ["test", "val", "validation", "Test"])
def test_train_and_test_folders_are_the_splits(tmp_path, write, folder):
    for name in ("train/cat/a.png", "train/dog/b.png", f"{folder}/dog/c.png"):
        write(tmp_path / name)
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert names(train, tmp_path) == ["train/cat/a.png", "train/dog/b.png"]
    assert names(test, tmp_path) == [f"{folder}/dog/c.png"]
    assert test.classes == ["dog"]


def test_a_test_folder_beside_class_folders_is_not_trained_on(tmp_path, write):
    for name in ("cat/a.png", "dog/b.png", "val/cat/c.png"):
        write(tmp_path / name)
    assert opened(tmp_path).classes == ["cat", "dog"]
    assert names(opened(tmp_path, "test"), tmp_path) == ["val/cat/c.png"]


def test_of_several_test_folders_the_labeled_one_is_taken(tmp_path, write):
    """ImageNet's `test` has no labels."""
    for name in ("train/cat/a.png", "train/dog/b.png", "test/c.png", "val/cat/d.png", "val/dog/e.png"):
        write(tmp_path / name)
    assert names(opened(tmp_path, "test"), tmp_path) == ["val/cat/d.png", "val/dog/e.png"]


def test_no_test_folder_is_none(tmp_path, write):
    write(tmp_path / "cat" / "a.png")
    (tmp_path / "test").mkdir()
    assert opened(tmp_path, "test") is None


def test_test_path_overrides_and_is_not_trained_on(tmp_path, write):
    for name in ("cat/a.png", "dog/b.png", "held/cat/c.png", "test/cat/d.png"):
        write(tmp_path / name)
    train = opened(tmp_path, test_path=str(tmp_path / "held"))
    test = opened(tmp_path, "test", test_path=str(tmp_path / "held"))
    assert names(train, tmp_path) == ["cat/a.png", "dog/b.png"]
    assert names(test, tmp_path) == ["held/cat/c.png"]


def test_the_training_folder_may_be_tested_on(tmp_path, write):
    write(tmp_path / "cat" / "a.png")
    assert len(opened(tmp_path, test_path=str(tmp_path))) == 1


def test_count_is_the_number_of_training_images(tmp_path, write):
    for name in ("train/cat/a.png", "train/dog/b.png", "test/c.png"):
        write(tmp_path / name)
    (tmp_path / "train" / "damaged.jpg").write_bytes(b"")
    assert count(DataConfig(path=str(tmp_path))) == 3  # counted, not opened


@pytest.mark.parametrize(
    ("key", "make", "message"),
    [
        ("path", lambda root: "", "data.path= is empty: give the folder of your images"),
        ("path", lambda root: root / "a.txt", "data.path={} is no file that images are read from: give "),
        ("path", lambda root: root / "no", "data.path={} does not exist: give the folder of your images"),
        ("path", lambda root: root / "a.parquet", "data.path={} is no folder: give one, or data.source=auto "),
        ("test_path", lambda root: root / "no", "data.test_path={} does not exist: "),
    ],
)
def test_a_wrong_path_is_said(tmp_path, write, key, make, message):
    write(tmp_path / "a.png")
    for name in ("a.txt", "a.parquet"):
        (tmp_path / name).touch()
    given = str(make(tmp_path))
    with pytest.raises(ValueError, match=r"^data") as caught:
        open_source(DataConfig(source="folder", **({"path": str(tmp_path)} | {key: given})), 3, "train")
    assert str(caught.value).startswith(message.format(given))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_was_seen(tmp_path):
    for name in ("a.mhd", "b.mhd", "c.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^data") as caught:
        opened(tmp_path, source="folder")
    assert str(caught.value) == (
        f"data.path={tmp_path} holds no images: 4 files seen (2 .mhd, 1 no ending, 1 .txt), "
        "images end in jpg, jpeg, png, webp, bmp, tif, tiff, gif, dcm, dicom"
    )


def test_an_empty_training_folder_is_named(tmp_path, write):
    write(tmp_path / "test" / "a.png")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"^data.path=.*/train holds no images: 0 files seen, images end in jpg"):
        opened(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(ValueError, match=r"^/.*closed cannot be opened: Permission denied: make it readable"):
        opened(tmp_path)


def test_a_source_of_many_files_holds_no_object_per_file(tmp_path):
    """Lists of names grow in every worker, page by page, as reference counts are touched."""
    for number in range(4_000):
        (tmp_path / f"{number:05}.jpg").touch()
    gc.collect()
    before = len(gc.get_objects())
    source = opened(tmp_path)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    held = vars(source)
    assert all(isinstance(value, np.ndarray | int | bytes | str | list) for value in held.values())
    assert sum(sys.getsizeof(value) for value in held.values() if not isinstance(value, np.ndarray)) < 2000
    assert sum(value.nbytes for value in held.values() if isinstance(value, np.ndarray)) < 30 * 4_000
    assert source.name(1_234) == str(tmp_path / "01234.jpg")


def test_arrays_are_images_where_there_are_no_others(tmp_path, write):
    """Beside images they are masks or features, which no training may take for images."""
    for name in ("a", "b"):
        (tmp_path / "bands" / name).mkdir(parents=True)
        np.save(tmp_path / "bands" / name / "x.npy", np.zeros((4, 4, 10), np.uint8))
        write(tmp_path / "mixed" / name / "x.png")
        np.save(tmp_path / "mixed" / name / "x.npy", np.zeros((4, 4), np.uint8))
    bands = open_source(DataConfig(path=str(tmp_path / "bands")), 10, "train")
    assert [bands.name(i)[-7:] for i in range(len(bands))] == ["a/x.npy", "b/x.npy"]
    assert bands.classes == ["a", "b"]
    mixed = opened(tmp_path / "mixed")
    assert [mixed.name(i)[-7:] for i in range(len(mixed))] == ["a/x.png", "b/x.png"]
    assert mixed.classes == ["a", "b"]
