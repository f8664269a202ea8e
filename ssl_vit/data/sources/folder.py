"""Images in nested folders; unlike torchvision's ImageFolder, no Python object stays per file. Letters: n images."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.decode import open_encoded
from ssl_vit.data.sources.base import Source, Split

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
TEST_NAMES = ("test", "val", "validation")
_ENDINGS = tuple(f".{ending}".encode() for ending in ENDINGS)


@dataclass
class Listing:
    """Image files below a folder: paths relative to it in one array of bytes, whatever their number."""

    root: bytes
    names: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " n"]  # Where each name ends in names.
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    other: str  # What else was seen: number of files, and their commonest endings.

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """Full path of one file."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(os.path.join(self.root, self.names[start : self.ends[index]].tobytes()))


class Folder(Source):
    """The images of a Listing."""

    def __init__(self, data: DataConfig, channels: int, listing: Listing) -> None:
        super().__init__(data, channels, listing.labels, listing.classes)
        self.listing = listing

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Folder | None":
        """Training: images under data.path/train, or data.path without its test split. ValueError where there are none.

        Test: under data.test_path, or the test, val or validation folder of data.path: the first one with class
        folders, for ImageNet's `test` has no labels.
        """
        listing = _training_files(data) if split == "train" else _test_files(data)
        return cls(data, channels, listing) if listing else None

    @classmethod
    def count(cls, data: DataConfig) -> int:
        return len(_training_files(data))

    def open_image(self, index: int) -> Image.Image:
        return open_encoded(self.name(index))

    def name(self, index: int) -> str:
        return self.listing.path(index)


def _training_files(data: DataConfig) -> Listing:
    root = _folder("data.path", data.path)
    splits = _splits(root)
    tests = [splits[name] for name in TEST_NAMES if name in splits]
    if data.test_path:
        tests.append(_folder("data.test_path", data.test_path))
    return _filled("data.path", data.path, scan(splits.get("train", root), least_classes=2, without=tests))


def _test_files(data: DataConfig) -> Listing | None:
    if data.test_path:
        root = _folder("data.test_path", data.test_path)
        return _filled("data.test_path", data.test_path, scan(root, least_classes=1))
    splits = _splits(_folder("data.path", data.path))
    listings = [scan(splits[name], least_classes=1) for name in TEST_NAMES if name in splits]
    return min(filter(len, listings), key=lambda listing: not listing.classes, default=None)


def scan(root: bytes, least_classes: int, without: Iterable[bytes] = ()) -> Listing:
    """Every image below root, in the order of the names; hidden files and the folders of `without` are skipped.

    The class is the first folder below root, when every image lies in one and there are at least least_classes.
    """
    names, ends, tops = bytearray(), array("q"), array("q")
    numbers: dict[bytes | None, int] = {}
    other: Counter[str] = Counter()
    for top, relative in _files(root, {_identity(path) for path in without}):
        if relative.lower().endswith(_ENDINGS):
            names += relative
            ends.append(len(names))
            tops.append(numbers.setdefault(top, len(numbers)))
        else:
            other[os.fsdecode(os.path.splitext(relative)[1]).lower() or "no ending"] += 1
    labels, classes = np.full(len(ends), -1), []
    if None not in numbers and len(numbers) >= least_classes:
        folders = sorted(top for top in numbers if top is not None)
        order = np.argsort([numbers[folder] for folder in folders])
        labels, classes = order[np.array(tops, dtype=np.int64)], [os.fsdecode(folder) for folder in folders]
    stored = np.frombuffer(bytes(names), np.uint8), np.array(ends, dtype=np.int64)
    common = ", ".join(f"{number} {ending}" for ending, number in other.most_common(3))
    return Listing(root, *stored, labels, classes, f"{other.total()} files seen{f' ({common})' * bool(common)}")


def files_at(key: str, path: str) -> Listing:
    """An image file, or every image below a folder, without labels. FileNotFoundError; ValueError without images."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{key}={path}: there is no such file or folder")
    if os.path.isdir(path):
        return _filled(key, path, scan(os.fsencode(path), least_classes=2))
    root, name = os.path.split(os.fsencode(path))
    return Listing(root, np.frombuffer(name, np.uint8), np.array([len(name)]), np.array([-1]), [], "")


def _files(root: bytes, seen: set[tuple[int, int]]) -> Iterator[tuple[bytes | None, bytes]]:
    """(first folder below root or None, path relative to root) of every visible file; each folder once, links last."""
    seen.discard(_identity(root))
    stack, links = list[tuple[bytes | None, bytes]]([(None, b"")]), list[tuple[bytes | None, bytes]]()
    while stack or links:
        top, below = stack.pop() if stack else links.pop(0)
        folder, folders = os.path.join(root, below), []
        if (identity := _identity(folder)) in seen:
            continue
        seen.add(identity)
        for entry in _entries(folder):
            relative, kind = os.path.join(below, entry.name), _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append((top or entry.name, relative))
            elif kind == "file":
                yield top, relative
        stack += reversed(folders)


def _entries(path: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    except OSError as error:
        line = f"data.path={os.fsdecode(path)} cannot be opened: {error.strerror}: make it readable"
        raise ValueError(line) from error


def _kind(entry: os.DirEntry[bytes]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link that leads to itself
        return "other"


def _identity(path: bytes) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _splits(root: bytes) -> dict[str, bytes]:
    found = {os.fsdecode(entry.name).lower(): entry.path for entry in _entries(root) if _kind(entry) == "folder"}
    return {name: found[name] for name in ("train", *TEST_NAMES) if name in found}


def _folder(key: str, path: str) -> bytes:
    if not os.path.exists(path):
        raise ValueError(f"{key}={path} {'does not exist' if path else 'is empty'}: give the folder of your images")
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path} is a file: give a folder, or data.source=parquet for a parquet file")
    return os.fsencode(path)


def _filled(key: str, path: str, listing: Listing) -> Listing:
    if len(listing):
        return listing
    root = os.fsdecode(listing.root)
    where = "" if root == path else f"/{os.path.basename(root)}"
    raise ValueError(f"{key}={path}{where} holds no images: {listing.other}, images end in {', '.join(ENDINGS)}")
