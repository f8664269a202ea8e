"""Images in nested folders; unlike torchvision's ImageFolder, no Python object stays per file. Letters: n images."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split
from ssl_vit.data.splits import TEST_NAMES, File, entries_of, files_below, kind_of, require_nothing_hidden, split_of
from ssl_vit.models.decode import open_encoded

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
ARRAYS = ("npy", "npz")  # images where a folder has no others: beside those they may be masks or features
_ENDINGS = tuple(tuple(f".{ending}".encode() for ending in kind) for kind in (ENDINGS, ARRAYS))


class Folder(Source):
    """Image files by their paths below a root, which lie in one array of bytes, whatever their number."""

    def __init__(
        self,
        data: DataConfig,
        channels: int,
        root: bytes,
        files: Iterable[File],
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
        super().__init__(data, channels, labels, classes, "folder names" * bool(classes))
        self.root, self.names = root, np.frombuffer(bytes(names), np.uint8)
        self.ends = np.array(ends, dtype=np.int64)  # where each path ends in names
        common = ", ".join(f"{number} {ending}" for ending, number in other.most_common(3))
        self.other = f"{other.total()} files seen{f' ({common})' * bool(common)}"

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Folder | None":
        """Training: images under data.path/train, or data.path without its test split. ValueError where there are none.

        Test: under data.test_path, or the test folder of data.path: the first one with class folders, for ImageNet's
        `test` has no labels. ValueError where a train folder has images beside it: with data.test_path it is a class.
        """
        if split == "test" and data.test_path:
            root = _folder("data.test_path", data.test_path)
            return cls(data, channels, root, files_below(root), 1)._filled("data.test_path", data.test_path)
        root = _folder("data.path", data.path)
        folders = [entry for entry in entries_of(root) if kind_of(entry) == "folder"]
        splits = [(split_of(os.fsdecode(entry.name)), entry.path) for entry in folders]
        tests = [path for name in TEST_NAMES for found, path in splits if found == name]
        if split == "test":
            sources = (cls(data, channels, test, files_below(test), 1) for test in tests)
            return min(filter(len, sources), key=lambda source: not source.classes, default=None)
        tests += [_folder("data.test_path", data.test_path)] if data.test_path else []
        train = next((path for found, path in splits if found == "train"), None)
        if train is not None:
            others = files_below(root, [*tests, train])
            beside = (os.fsdecode(top or name) for top, name in others if name.lower().endswith(_ENDINGS[0]))
            if not data.test_path:
                require_nothing_hidden(data.path, os.path.basename(os.fsdecode(train)), beside)
            root = root if any(beside) else train
        return cls(data, channels, root, files_below(root, tests), 2)._filled("data.path", data.path)

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
            return cls(data, channels, os.fsencode(path), files_below(os.fsencode(path)), 2)._filled(key, path)
        if not os.path.isfile(path):
            raise ValueError(f"{key}={path} is a pipe or a device: give an image or a folder of images")
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


def _folder(key: str, path: str) -> bytes:
    if not os.path.exists(path):
        raise ValueError(f"{key}={path} {'does not exist' if path else 'is empty'}: give the folder of your images")
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path} is no folder: give one, or data.source=parquet for a parquet file")
    return os.fsencode(path)
