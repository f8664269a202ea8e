"""Tar shards: where they lie, how many images each holds, and their images one after the other, or by number.

make_shards writes `index.json` (counts and classes) and `members.npy` (places); without them headers of local shards
are read. Letters: n images, m images of a shard.
"""

import bz2
import gzip
import io
import json
import logging
import lzma
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tarfile import ReadError
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.auto_source import PIPE, is_remote
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.labels import labels_of
from ssl_vit.data.sources.base import Sample, Shards, Source, Split, UnreadableImageError, one_line
from ssl_vit.data.splits import FileSource
from ssl_vit.data.tar import LARGEST, TarReader
from ssl_vit.data.tar_samples import Label, samples
from ssl_vit.data.urls import expanded, open_file, open_url, require_readable
from ssl_vit.models.decode import open_encoded

log = logging.getLogger(__name__)
INDEX, MEMBERS, UNFINISHED = "index.json", "members.npy", "unfinished"
DAMAGED = "a part of the shard is damaged: copy it again"
_LARGEST_INDEX = 2**28  # bytes
_UNCOMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


class Table(NamedTuple):
    """The images of a shard."""

    members: Int64[np.ndarray, "m 3"]  # offset and size in bytes, label; a negative size is that of a damaged part
    classes: list[str]  # names of the labels; empty where these are numbers
    skipped: Counter[str]  # what is neither image nor label, by its ending or kind


class TarShards(Shards):
    """Tar files, by URL or path, front to back."""

    def __init__(self, urls: list[str], counts: Int64[np.ndarray, " shards"] | None) -> None:
        self.names, self.counts = urls, counts
        self._warned = False

    def read(self, shard: int) -> Iterator[Sample]:
        url, skipped = self.names[shard], Counter[str]()
        try:
            with open_url(url) as file:
                reader = TarReader(_uncompressed(file), seekable=False)
                for position, found in enumerate(samples(reader, skipped, located=False)):
                    problem = DAMAGED if found.size < 0 else ""
                    label = found.label if isinstance(found.label, int) else -1
                    yield Sample(found.encoded, label, _place(url, position, found.offset, found.size), problem)
        except (MemoryError, UnreadableImageError):
            raise
        except Exception as error:  # a download's, or the file format's: they have nothing in common
            raise UnreadableImageError(f"{url} cannot be read to its end: {_reason(error)}: copy it again") from error
        if skipped and not self._warned:
            log.warning(f"{url}: {_listed(skipped)}; of other shards this is not logged")
            self._warned = True


class LocalShards(Shards):
    """The shards of TarImages."""

    def __init__(self, images: "TarImages") -> None:
        self.images = images
        self.names, self.counts = [str(file) for file in images.files], np.diff(images.ends, prepend=0)

    def read(self, shard: int) -> Iterator[Sample]:
        start, end = (int(self.images.ends[i]) if i >= 0 else 0 for i in (shard - 1, shard))
        try:
            with open_file(self.images.files[shard]) as file:
                for index in range(start, end):
                    label, name = int(self.images.labels[index]), self.images.name(index)
                    try:
                        yield Sample(self.images.encoded(file, index), label, name)
                    except ReadError as error:
                        yield Sample(b"", label, name, str(error))
        except OSError as error:
            raise UnreadableImageError(f"{self.names[shard]} cannot be read: {_reason(error)}") from error


class TarImages(FileSource):
    """The images of local shards by number: those of data.path's braces, or of a folder by their names."""

    kind, ending = "tar shard", ".tar"

    def __init__(self, data: DataConfig, channels: int, files: list[Path]) -> None:
        tables = _tables(files)
        self.files, self.ends = files, np.cumsum([len(table.members) for table in tables])
        self.members = np.concatenate([table.members for table in tables])
        if not (self.members[:, 1] >= 0).any():
            raise ValueError(f"data.path={data.path} holds no images: {len(files)} tar shards without one")
        super().__init__(data, channels, *labels_of(*_labels(tables), ".cls files"))
        self._report(data, tables)

    @classmethod
    def find(cls, data: DataConfig, split: Split) -> list[Path] | None:
        """The local shards of a split; None without any for testing. ValueError where data.test_path is a URL."""
        if split == "test" and is_remote(data.test_path):
            raise ValueError(f"data.test_path={data.test_path} must be shards on this machine: they are read by number")
        if split == "test" and not data.test_path and (is_remote(data.path) or "{" in data.path):
            return None
        path, test_path = (given.removeprefix("file://") for given in (data.path, data.test_path))
        if split == "test" or "{" not in path:
            return super().find(replace(data, path=path, test_path=test_path), split)
        files = [Path(file) for file in expanded("data.path", path)]
        for file in files:
            if not file.is_file():
                raise ValueError(f"data.path={path} names {file}, which {_lacking(file)}")
        return files

    @classmethod
    def labeled(cls, files: list[Path]) -> bool:
        return any((table.members[:, 2] >= 0).any() for table in _tables(files))

    @classmethod
    def count(cls, data: DataConfig) -> int:
        """By the index beside the shards, or their headers."""
        if data.remote:
            counts = remote_shards(data).counts
            return 0 if counts is None else int(counts.sum())
        return sum(len(table.members) for table in _tables(cls.find(data, "train") or []))

    @classmethod
    def open_shards(cls, data: DataConfig, images: Source | None) -> Shards:
        return LocalShards(images) if isinstance(images, cls) else remote_shards(data)

    def open_image(self, index: int) -> Image.Image:
        with open_file(self.files[self._shard(index)]) as file:
            return open_encoded(self.encoded(file, index))

    def encoded(self, file: io.BufferedIOBase, index: int) -> bytes:
        """The bytes of an image of an open shard. ReadError where they are not there."""
        offset, size, _ = self.members[index].tolist()
        if offset < 0 or not 0 <= size <= LARGEST:
            raise ReadError(DAMAGED)
        with suppress(OSError):  # of a place beyond all files
            file.seek(offset)
            if len(encoded := file.read(size)) == size:
                return encoded
        raise ReadError("its shard ends before it")

    def name(self, index: int) -> str:
        shard = self._shard(index)
        offset, size, _ = self.members[index].tolist()
        return _place(str(self.files[shard]), index - int(self.ends[shard - 1] if shard else 0), offset, size)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))

    def _report(self, data: DataConfig, tables: list[Table]) -> None:
        """Log what of the shards is not read. ValueError where a part is damaged and data.on_error is raise."""
        where, damaged = f"data.path={data.path}", np.flatnonzero(self.members[:, 1] < 0)
        if len(damaged):
            first, rule = self.name(int(damaged[0])), "data.on_error says what becomes of such"
            line = f"{where} has {len(damaged)} damaged parts, such as {first}"
            if data.on_error == "raise":
                raise ValueError(f"{line}: copy the shards again, or set data.on_error=skip")
            log.warning(f"{line}: each counts as an unreadable image; {rule}")
        if empty := [file for file, table in zip(self.files, tables, strict=True) if not len(table.members)]:
            log.warning(f"{where}: {len(empty)} tar shards hold no images, such as {empty[0]}")
        if skipped := sum((table.skipped for table in tables), Counter[str]()):
            log.warning(f"{where}: {_listed(skipped)} of {sum(bool(table.skipped) for table in tables)} tar shards")


def remote_shards(data: DataConfig) -> TarShards:
    """The shards of URLs. ValueError: one that is not opened, or neither index nor data.epoch_size."""
    urls = expanded("data.path", data.path)
    for url in urls:
        require_readable("data.path", url)
    if data.epoch_size:
        return TarShards(urls, None)
    try:
        if urls[0].startswith(PIPE):
            raise ValueError("a command has nothing beside it")
        with open_url(f"{urls[0].rpartition('/')[0]}/{INDEX}") as file:
            shards, _ = _parsed(file.read(_LARGEST_INDEX))
        return TarShards(urls, np.array([shards[url.rpartition("/")[2]][0] for url in urls], dtype=np.int64))
    except Exception as error:  # a download's, or what a stranger's JSON may hold: they have nothing in common
        line = f"data.path={data.path} has no {INDEX} beside it that counts its images ({_reason(error)})"
        raise ValueError(f"{line}: give data.epoch_size") from error


def scan(file: Path) -> Table:
    """The images of a local shard, from its headers. ValueError where it does not end as a tar file does."""
    skipped, rows, labels = Counter[str](), list[tuple[int, int]](), list[Label]()
    try:
        with open_file(file) as shard:
            if _uncompressed(shard) is not shard:
                raise ValueError(f"data.path={file} is compressed, so no image in it has a place: decompress it")
            for found in samples(TarReader(shard, seekable=True), skipped, located=True):
                rows.append((found.offset, found.size))
                labels.append(found.label)
    except (OSError, ReadError) as error:
        raise ValueError(f"data.path={file} cannot be read to its end: {_reason(error)}: copy it again") from error
    classes, numbers = list[str](), labels
    if any(isinstance(label, str) for label in labels):
        classes = sorted({str(label) for label in labels if label != -1})
        numbers = [-1 if label == -1 else classes.index(str(label)) for label in labels]
    members = np.array([(*row, label) for row, label in zip(rows, numbers, strict=True)], dtype=np.int64)
    return Table(members.reshape(-1, 3), classes, skipped)


def _tables(files: list[Path]) -> list[Table]:
    known, tables = {folder: _index(folder) for folder in {file.parent for file in files}}, []
    for file in files:
        if not file.is_file():
            raise ValueError(f"data.path={file} {_lacking(file)}: remove it from the shards")
        if (index := known[file.parent]) is None:
            tables.append(scan(file))
            continue
        if file.name not in index:
            raise ValueError(f"data.path={file} is not in the {INDEX} beside it: delete the one or the other")
        size, (written, table) = file.stat().st_size, index[file.name]
        if size != written:
            raise ValueError(f"data.path={file} has {size} bytes, the {INDEX} beside it says {written}: copy it again")
        tables.append(table)
    return tables


def _index(folder: Path) -> dict[str, tuple[int, Table]] | None:
    """Bytes and images of each shard that index.json of a folder names; None where there is none."""
    if not (folder / INDEX).exists():
        return None
    try:
        with open_file(folder / INDEX) as file:
            shards, classes = _parsed(file.read(_LARGEST_INDEX))
        open_file(folder / MEMBERS).close()  # NumPy would wait for a pipe
        members = np.load(folder / MEMBERS, mmap_mode="r", allow_pickle=False)
        ends = np.cumsum([images for images, _ in shards.values()])
        if members.shape != (int(ends[-1]), 3) or members.dtype != np.int64:
            raise ValueError(f"{MEMBERS} has {len(members)} rows for {ends[-1]} images")
    except Exception as error:  # whatever a stranger's JSON and array may hold
        line = f"data.path={folder / INDEX} cannot be used: {_reason(error)}"
        raise ValueError(f"{line}: delete it, or make the shards again") from error
    tables = (Table(part, classes, Counter()) for part in np.split(members, ends[:-1]))
    return {name: (size, table) for (name, (_, size)), table in zip(shards.items(), tables, strict=True)}


def _parsed(index: bytes) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(images, bytes) of each shard by its name, and the classes, of an index.json. Raises anything of what is none."""
    content = json.loads(index)
    if content.get(UNFINISHED):
        raise ValueError("its packing was interrupted")
    shards = {name: (int(shard["images"]), int(shard["bytes"])) for name, shard in content["shards"].items()}
    if any(images < 0 for images, _ in shards.values()):
        raise ValueError("a shard has less than no images")
    return shards, [str(name) for name in content["classes"]]


def _labels(tables: list[Table]) -> tuple[Int64[np.ndarray, " n"], list[str]]:
    """Labels of all images, and the classes' names; of shards whose classes differ, by their names."""
    parts = [np.ascontiguousarray(table.members[:, 2]) for table in tables]
    kinds = {tuple(table.classes) for table, labels in zip(tables, parts, strict=True) if (labels >= 0).any()}
    if len(kinds) <= 1:
        return np.concatenate(parts), list(next(iter(kinds), ()))
    values = [np.unique(labels) for labels in parts]
    named = [
        ["" if value < 0 else table.classes[value] if value < len(table.classes) else str(value) for value in known]
        for table, known in zip(tables, values, strict=True)
    ]
    numbers = {name: number for number, name in enumerate(sorted({name for names in named for name in names} - {""}))}
    new = ([numbers.get(name, -1) for name in names] for names in named)
    found = zip(new, values, parts, strict=True)
    return np.concatenate([np.array(to)[np.searchsorted(known, labels)] for to, known, labels in found]), list(numbers)


def _uncompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    found = next((opener for magic, opener in _UNCOMPRESSED.items() if file.peek(2).startswith(magic)), None)
    return found(file) if found else file


def _place(shard: str, position: int, offset: int, size: int) -> str:
    """What a person finds an image by, or a damaged part."""
    return f"{shard} bytes {offset} to {offset - size}" if size < 0 else f"{shard} image {position}"


def _listed(skipped: Counter[str]) -> str:
    """skipped 12 members: 10 .txt, 2 .npy."""
    listed = [f"{count} {kind}" for kind, count in skipped.most_common(6)]
    return f"skipped {skipped.total()} members: {', '.join(listed[:5] + ['...'] * (len(listed) > 5))}"


def _lacking(file: Path) -> str:
    return "is no regular file" if file.exists() else "does not exist"


def _reason(error: BaseException) -> str:
    """In one line; what the system says, with its file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return one_line(error)
