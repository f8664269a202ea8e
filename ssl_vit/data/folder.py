"""Pictures in nested folders, with or without a folder for each class; made for millions of files.

Letters: n pictures.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.pictures import Source, open_picture

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
TEST_WORDS = ("test", "val", "validation")
_ENDINGS = tuple(f".{ending}".encode() for ending in ENDINGS)


@dataclass
class Listing:
    """Picture files below a folder: paths relative to it in one array of bytes, whatever their number."""

    root: bytes
    names: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " n"]
    """Where each name ends in names."""
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    other: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures, by ending."""

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, index: int) -> str:
        """Full path of one file."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(os.path.join(self.root, self.names[start : self.ends[index]].tobytes()))


class Folder(Source):
    """The pictures of a Listing."""

    def __init__(self, data: DataConfig, channels: int, listing: Listing) -> None:
        super().__init__(data, channels, listing.labels, listing.classes)
        self.listing = listing

    def open(self, index: int) -> Image.Image:
        return open_picture(self.listing.path(index))

    def name(self, index: int) -> str:
        return self.listing.path(index)


def training_files(data: DataConfig) -> Listing:
    """Pictures under data.path/train, or under data.path without its test part.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """
    root = _folder("data.path", data.path)
    parts = _parts(root)
    tests = [parts[word] for word in TEST_WORDS if word in parts]
    if data.test_path:
        tests.append(_folder("data.test_path", data.test_path))
    return _filled("data.path", data.path, scan(parts.get("train", root), least_classes=2, without=tests))


def test_files(data: DataConfig) -> Listing | None:
    """Pictures under data.test_path, or of the test, val or validation folder of data.path; None without any.

    Where several exist, the first one with class folders: ImageNet's `test` has no labels, its `val` has.
    """
    if data.test_path:
        root = _folder("data.test_path", data.test_path)
        return _filled("data.test_path", data.test_path, scan(root, least_classes=1))
    parts = _parts(_folder("data.path", data.path))
    listings = [scan(parts[word], least_classes=1) for word in TEST_WORDS if word in parts]
    listings = [listing for listing in listings if len(listing)]
    labelled = [listing for listing in listings if listing.classes]
    return next(iter(labelled + listings), None)


def scan(root: bytes, least_classes: int, without: list[bytes] | None = None) -> Listing:
    """Every picture below root, in the order of the names; hidden files and the folders of `without` are left out.

    The class is the first folder below root, when every picture lies in one and there are at least least_classes.
    """
    names, ends, tops = bytearray(), array("q"), array("q")
    other: Counter[str] = Counter()
    folders: list[bytes] = []
    for top, relative in _files(root, {_identity(path) for path in without or []}):
        if not relative.lower().endswith(_ENDINGS):
            other[os.fsdecode(os.path.splitext(relative)[1]).lower() or "no ending"] += 1
            continue
        if top is not None and (not folders or folders[-1] != top):
            folders.append(top)
        names += relative
        ends.append(len(names))
        tops.append(-1 if top is None else len(folders) - 1)
    labels = np.array(tops, dtype=np.int64)
    labelled = len(folders) >= least_classes and not (labels < 0).any()
    if not labelled:
        labels[:] = -1
    classes = [os.fsdecode(folder) for folder in folders] if labelled else []
    ends_array = np.array(ends, dtype=np.int64)
    return Listing(root, np.frombuffer(bytes(names), np.uint8), ends_array, labels, classes, other)


def _files(root: bytes, seen: set[tuple[int, int]]) -> Iterator[tuple[bytes | None, bytes]]:
    """(first folder below root or None, path relative to root) of every visible file; each folder once.

    Links are followed; `seen` holds the identity of folders already visited, so a loop of links ends.
    """
    stack: list[tuple[bytes | None, bytes]] = [(None, b"")]
    while stack:
        top, below = stack.pop()
        folders = []
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                relative = os.path.join(below, entry.name)
                if entry.name.startswith(b"."):
                    continue
                if _is_folder(entry):
                    folders.append((top or entry.name, relative))
                elif entry.is_file():
                    yield top, relative
        for folder in reversed(folders):
            identity = _identity(os.path.join(root, folder[1]))
            if identity not in seen:
                seen.add(identity)
                stack.append(folder)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(path: bytes) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _parts(root: bytes) -> dict[str, bytes]:
    """The folders named train, test, val, validation directly under root, in any case."""
    with os.scandir(root) as entries:
        found = {os.fsdecode(entry.name).lower(): entry.path for entry in entries if _is_folder(entry)}
    return {word: found[word] for word in ("train", *TEST_WORDS) if word in found}


def _folder(key: str, path: str) -> bytes:
    if not path:
        raise ValueError(f"{key}= is empty: give the folder of your pictures")
    if not os.path.exists(path):
        raise ValueError(f"{key}={path} does not exist: give the folder of your pictures")
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path} is a file: give a folder, or data.source=parquet for a parquet file")
    return os.fsencode(path)


def _filled(key: str, path: str, listing: Listing) -> Listing:
    if len(listing):
        return listing
    common = ", ".join(f"{number} {ending}" for ending, number in listing.other.most_common(3))
    seen = f"{listing.other.total()} files seen" + (f" ({common})" if common else "")
    where = "" if os.fsdecode(listing.root) == path else f"/{os.path.basename(os.fsdecode(listing.root))}"
    raise ValueError(f"{key}={path}{where} holds no pictures: {seen}, pictures end in {', '.join(ENDINGS)}")
