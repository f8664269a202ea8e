"""Images in nested folders; unlike torchvision's ImageFolder, no Python object stays per file. Letters: n images."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split
from ssl_vit.models.decode import open_encoded

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
ARRAYS = ("npy", "npz")  # images where a folder has no others: beside those they may be masks or features
TEST_NAMES = ("test", "val", "validation")
_ENDINGS = tuple(tuple(f".{ending}".encode() for ending in kind) for kind in (ENDINGS, ARRAYS))
_File = tuple[bytes | None, bytes]  # first folder below a root, None where there is none, and path below the root


class Folder(Source):
    """Image files by their paths below a root, which lie in one array of bytes, whatever their number."""

    def __init__(
        self,
        data: DataConfig,
        channels: int,
        root: bytes,
        files: Iterable[_File],
        least_classes: int,
        endings: tuple[tuple[bytes, ...], ...] = _ENDINGS,
    ) -> None:
        """The class is the first folder below root, when every image lies in one and there are at least so many."""
        kinds = [(kind, bytearray(), array("q"), array("q"), dict[bytes | None, int]()) for kind in endings]
        other: Counter[str] = Counter()
        for top, relative in files:
            for ending, names, ends, tops, numbers in kinds:
                if relative.lower().endswith(ending):
                    names.extend(relative)
                    ends.append(len(names))
                    tops.append(numbers.setdefault(top, len(numbers)))
                    break
            else:
                other[os.fsdecode(os.path.splitext(relative)[1]).lower() or "no ending"] += 1
        _, names, ends, tops, numbers = next((kind for kind in kinds if kind[2]), kinds[0])
        labels, classes = np.full(len(ends), -1), []
        if None not in numbers and len(numbers) >= least_classes:
            folders = sorted(top for top in numbers if top is not None)
            order = np.argsort([numbers[folder] for folder in folders])
            labels, classes = order[np.array(tops, dtype=np.int64)], [os.fsdecode(folder) for folder in folders]
        super().__init__(data, channels, labels, classes)
        self.root, self.names = root, np.frombuffer(bytes(names), np.uint8)
        self.ends = np.array(ends, dtype=np.int64)  # where each path ends in names
        common = ", ".join(f"{number} {ending}" for ending, number in other.most_common(3))
        self.other = f"{other.total()} files seen{f' ({common})' * bool(common)}"

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Folder | None":
        """Training: images under data.path/train, or data.path without its test split. ValueError where there are none.

        Test: under data.test_path, or the test, val or validation folder of data.path: the first one with class
        folders, for ImageNet's `test` has no labels.
        """
        if split == "test" and data.test_path:
            root = _folder("data.test_path", data.test_path)
            return cls(data, channels, root, _files(root), 1)._filled("data.test_path", data.test_path)
        root = _folder("data.path", data.path)
        found = {os.fsdecode(entry.name).lower(): entry.path for entry in _entries(root) if _kind(entry) == "folder"}
        tests = [found[name] for name in TEST_NAMES if name in found]
        if split == "test":
            sources = (cls(data, channels, test, _files(test), 1) for test in tests)
            return min(filter(len, sources), key=lambda source: not source.classes, default=None)
        root = found.get("train", root)
        tests += [_folder("data.test_path", data.test_path)] if data.test_path else []
        return cls(data, channels, root, _files(root, tests), 2)._filled("data.path", data.path)

    @classmethod
    def count(cls, data: DataConfig) -> int:
        return len(cls.open(data, 3, "train") or ())

    @classmethod
    def at(cls, key: str, path: str, data: DataConfig, channels: int) -> "Folder":
        """An image file, or every image below a folder. FileNotFoundError; ValueError without images."""
        if not os.path.exists(path):
            raise FileNotFoundError(f"{key}={path}: there is no such file or folder")
        root, name = os.path.split(os.fsencode(path))
        if os.path.isdir(path):
            return cls(data, channels, os.fsencode(path), _files(os.fsencode(path)), 2)._filled(key, path)
        return cls(data, channels, root, [(None, name)], 2, endings=((b"",),))

    def open_image(self, index: int) -> Image.Image:
        return open_encoded(self.name(index))

    def name(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(os.path.join(self.root, self.names[start : self.ends[index]].tobytes()))

    def _filled(self, key: str, path: str) -> "Folder":
        if len(self):
            return self
        root = os.fsdecode(self.root)
        where = "" if root == path else f"/{os.path.basename(root)}"
        raise ValueError(f"{key}={path}{where} holds no images: {self.other}, images end in {', '.join(ENDINGS)}")


def _files(root: bytes, without: Iterable[bytes] = ()) -> Iterator[_File]:
    """Every visible file below root in the order of the names; each folder once, links last, those of `without` not."""
    seen = {_identity(path) for path in without} - {_identity(root)}
    stack, links = list[_File]([(None, b"")]), list[_File]()
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


def _folder(key: str, path: str) -> bytes:
    if not os.path.exists(path):
        raise ValueError(f"{key}={path} {'does not exist' if path else 'is empty'}: give the folder of your images")
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path} is a file: give a folder, or data.source=parquet for a parquet file")
    return os.fsencode(path)
