"""Images in nested folders; unlike torchvision's ImageFolder, no Python object stays per file. Letters: n images."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from ssl_vit.config.auto_source import ARRAYS, IMAGES, source_of_file
from ssl_vit.config.file_tree import File, entries_of, files_below, kind_of
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split
from ssl_vit.data.splits import TEST_NAMES, require_nothing_hidden, split_of
from ssl_vit.models.decode import open_encoded

_ENDINGS = tuple(tuple(f".{ending}".encode() for ending in kind) for kind in (IMAGES, ARRAYS))


class FolderTree:
    """A folder, or one file of it. Another kind of tree has the same attributes and methods."""

    endings = _ENDINGS  # of images; of the second kind where there are none of the first

    def __init__(self, path: str, root: bytes, file: bytes = b"") -> None:
        self.path, self.root, self.file = path, root, file  # path: as a person knows it
        if file:
            self.endings = ((b"",),)

    @classmethod
    def at(cls, key: str, path: str) -> "FolderTree":
        """What lies at a path. ValueError: neither a folder nor an image file."""
        if not os.path.exists(path):
            raise ValueError(f"{key}={path} {'does not exist' if path else 'is empty'}: give the folder of your images")
        if os.path.isdir(path):
            return cls(path, os.fsencode(path))
        if not os.path.isfile(path) or source_of_file(key, path) != "folder":
            raise ValueError(f"{key}={path} is no folder: give one, or data.source=auto to read it as what it is")
        return cls(path, *os.path.split(os.fsencode(path)))

    def folders(self) -> list[bytes]:
        """Names of the folders right in it."""
        entries = [] if self.file else entries_of(self.root)
        return [entry.name for entry in entries if kind_of(entry) == "folder"]

    def below(self, name: bytes) -> "FolderTree":
        """One of its folders."""
        return FolderTree(os.path.join(self.path, os.fsdecode(name)), os.path.join(self.root, name))

    def files(self, without: Sequence["FolderTree"] = ()) -> Iterable[File]:
        """The files in it, by name."""
        return [(None, self.file)] if self.file else files_below(self.root, [tree.root for tree in without])


class Folder(Source):
    """Image files by their paths below a root, which lie in one array of bytes, whatever their number."""

    tree_at: Any = FolderTree.at

    def __init__(self, data: DataConfig, channels: int, tree: Any, files: Iterable[File], least_classes: int) -> None:
        """The class is the first folder below tree, when every image lies in one and there are at least so many."""
        kinds = [(kind, bytearray(), array("q"), array("q"), dict[bytes | None, int]()) for kind in tree.endings]
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
        self.root, self.names = tree.root, np.frombuffer(bytes(names), np.uint8)
        self.ends = np.array(ends, dtype=np.int64)  # where each path ends in names
        common = ", ".join(f"{number} {ending}" for ending, number in other.most_common(3))
        self.other = f"{other.total()} files seen{f' ({common})' * bool(common)}"

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Folder | None":
        """Training: images under data.path/train, or data.path without its test split. ValueError where there are none.

        Test: under data.test_path, or the test folder of data.path: the first one with class folders, for ImageNet's
        `test` has no labels. ValueError where a train folder has images beside it: with data.test_path it is a class.
        """
        given = cls.tree_at("data.test_path", data.test_path) if data.test_path else None
        if split == "test" and given:
            return cls(data, channels, given, given.files(), 1)._filled("data.test_path", given.path)
        tree = cls.tree_at("data.path", data.path)
        splits = [(split_of(os.fsdecode(name)), tree.below(name)) for name in tree.folders()]
        tests = [folder for name in TEST_NAMES for found, folder in splits if found == name]
        if split == "test":
            sources = (cls(data, channels, test, test.files(), 1) for test in tests)
            return min(filter(len, sources), key=lambda source: not source.classes, default=None)
        tests += [given] if given else []
        train = next((folder for found, folder in splits if found == "train"), None)
        if train is not None:
            others = tree.files([*tests, train])
            beside = (os.fsdecode(top or name) for top, name in others if name.lower().endswith(_ENDINGS[0]))
            if not data.test_path:
                require_nothing_hidden(data.path, os.path.basename(train.path), beside)
            tree = tree if any(beside) else train
        return cls(data, channels, tree, tree.files(tests), 2)._filled("data.path", tree.path)

    @classmethod
    def count(cls, data: DataConfig) -> int:
        return len(cls.open(data, 3, "train") or ())

    @classmethod
    def at(cls, key: str, path: str, data: DataConfig, channels: int) -> "Folder":
        """An image file, or every image below a folder. FileNotFoundError; ValueError without images."""
        if not os.path.exists(path):
            raise FileNotFoundError(f"{key}={path}: there is no such file or folder")
        root, name = os.path.split(os.fsencode(path))
        if not (os.path.isdir(path) or os.path.isfile(path)):
            raise ValueError(f"{key}={path} is a pipe or a device: give an image or a folder of images")
        tree = FolderTree(path, os.fsencode(path)) if os.path.isdir(path) else FolderTree(path, root, name)
        return cls(data, channels, tree, tree.files(), 2)._filled(key, path)

    def open_image(self, index: int) -> Image.Image:
        return open_encoded(self.name(index))

    def relative(self, index: int) -> bytes:
        """An image's path below the root."""
        start = self.ends[index - 1] if index else 0
        return self.names[start : self.ends[index]].tobytes()

    def name(self, index: int) -> str:
        return os.fsdecode(os.path.join(self.root, self.relative(index)))

    def _filled(self, key: str, path: str) -> "Folder":
        if not len(self):
            raise ValueError(f"{key}={path} holds no images: {self.other}, images end in {', '.join(IMAGES)}")
        if self.relative(0).lower().endswith((b".dcm", b".dicom")) and find_spec("pydicom") is None:
            raise ImportError(f"{key}={path} holds DICOM images, which take pydicom: pip install 'ssl_vit[dicom]'")
        return self
