"""Zip archives as the folders that they would unpack to, read where they lie."""

import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import count, open_source
from ssl_vit.data.sources.base import UnreadableImageError


@pytest.fixture
def folder(tmp_path):
    root, noise = tmp_path / "images", np.random.default_rng(0)
    for name in ("train/cat/b.png", "train/cat/a.png", "train/dog ü/1/x.png", "train/dog ü/y.png", "val/cat/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(root / name)
    return root


def packed(path, root, prefix="", skip="", **options):
    with zipfile.ZipFile(path, "w", options.pop("kind", zipfile.ZIP_DEFLATED)) as archive:
        for file in sorted(root.rglob("*.png"), reverse=True):
            if not skip or skip not in str(file):
                archive.write(file, f"{prefix}{file.relative_to(root)}")
    return path


def opened(path, split="train", **options):
    return open_source(DataConfig(path=str(path), **options), 3, split)


def same(found, expected) -> bool:
    whole = range(len(expected))
    return (
        len(found) == len(expected)
        and found.classes == expected.classes
        and (found.labels == expected.labels).all()
        and all((found.read(i) == expected.read(i)).all() for i in whole)
    )


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "a folder/around/"])
def test_an_archive_is_read_as_its_folder_in_the_same_order(folder, tmp_path, kind, prefix):
    """So a run on the one is a run on the other, to the bit."""
    path = packed(tmp_path / "a.zip", folder, prefix, kind=kind)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "of no folder")
        archive.writestr("__MACOSX/train/cat/._a.png", "no image")
    for split in ("train", "test"):
        assert same(opened(path, split), opened(folder, split))
    assert count(DataConfig(path=str(path))) == 4
    assert opened(path).name(0) == f"{path}/{prefix}train/cat/a.png"
    before = set(os.listdir(tmp_path))
    opened(path).read(3)
    assert set(os.listdir(tmp_path)) == before


def test_archives_of_a_folder_are_one_data_set_and_their_names_are_splits(folder, tmp_path):
    place = tmp_path / "zips"
    place.mkdir()
    packed(place / "train-1.zip", folder / "train", "train/", skip="dog")
    packed(place / "train-2.zip", folder / "train", "train/", skip="cat")
    packed(place / "val.zip", folder / "val")
    for split in ("train", "test"):
        assert same(opened(place, split), opened(folder, split))
    held = {"test_path": str(place / "train-2.zip")}
    trained, tested = (opened(place, split, **held) for split in ("train", "test"))
    assert [os.path.basename(trained.name(i)) for i in range(len(trained))] == ["a.png", "b.png"]
    assert [os.path.basename(tested.name(i)) for i in range(len(tested))] == ["y.png", "x.png"]
    assert tested.classes == ["dog ü"]


def damaged(path, place, value):
    """The archive with other bytes in the central directory's entry of its first member."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (24, struct.pack("<I", 2**31), "its 2,147,483,648 bytes are more than 1,073,741,824"),
        (24, struct.pack("<I", 10), "a part of the archive is damaged, copy it again"),  # it unpacks to more
        (16, b"\1\2\3\4", "a part of the archive is damaged, copy it again"),
        (42, struct.pack("<I", 2), "a part of the archive is damaged, copy it again"),
        (10, struct.pack("<H", 12), "its compression, method 12 of zip, is not read"),
    ],
)
def test_a_member_that_cannot_be_read_is_an_unreadable_image_and_the_others_are_read(
    folder, tmp_path, place, value, reason
):
    source = opened(damaged(packed(tmp_path / "a.zip", folder / "train"), place, value))
    unreadable = []
    for index in range(len(source)):
        try:
            source.read(index)
        except UnreadableImageError as error:
            unreadable.append(str(error))
    (line,) = unreadable
    assert line.startswith(f"{tmp_path / 'a.zip'}/")
    assert reason in line
    assert "\n" not in line


def test_what_is_no_archive_of_images_is_said_at_once(folder, tmp_path):
    encrypted = damaged(packed(tmp_path / "encrypted.zip", folder), 8, b"\1\0")
    (tmp_path / "torn.zip").write_bytes(packed(tmp_path / "whole.zip", folder).read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "no image")
    answers = {
        encrypted: "holds encrypted images, such as .*png: pack them without a password",
        tmp_path / "torn.zip": "cannot be read as a zip archive: .*: copy it again",
        tmp_path / "texts.zip": r"holds no images: 1 files seen \(1 .txt\), images end in jpg",
    }
    for path, line in answers.items():
        with pytest.raises(ValueError, match=rf"^data.path={path} {line}") as caught:
            opened(path)
        assert "\n" not in str(caught.value)
