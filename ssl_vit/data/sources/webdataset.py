"""Tar shards: where they lie, how many images each holds, and their images one after the other, or by number.

A sample is the files of one name up to its first dot: an image, and where there are classes a `cls` (an integer) or a
`json` with a `label`; nothing is unpickled. make_shards writes `index.json` (counts and classes) and `members.npy`
(places); without them headers of local shards are read. Letters: n images, m images of a shard.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.schema import PIPE, DataConfig, is_remote
from ssl_vit.data.labels import labels_of
from ssl_vit.data.sources.base import Sample, Shards, Source, Split, UnreadableImageError, import_extra
from ssl_vit.data.sources.folder import ARRAYS, ENDINGS
from ssl_vit.data.splits import FileSource
from ssl_vit.models.decode import open_encoded

INDEX, MEMBERS = "index.json", "members.npy"
IMAGES = (*ENDINGS, *ARRAYS)  # Endings of a sample's image; of several the first counts.
TRUSTED = "SSL_VIT_ALLOW_PIPE"  # environment variable that lets a URL be a shell command
_USED = {*IMAGES, "cls", "json"}
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own files


class TarShards(Shards):
    """Tar files, by path or URL; WebDataset reads them."""

    def __init__(self, urls: list[str], counts: Int64[np.ndarray, " shards"] | None) -> None:
        import_extra("webdataset", "webdataset")
        self.names, self.counts = urls, counts

    def read(self, shard: int) -> Iterator[Sample]:
        from webdataset.gopen import gopen

        url = self.names[shard]
        try:
            stream: Any = gopen(url)
            with tarfile.open(fileobj=stream, mode="r|*") as shard_file:
                for position, (encoded, label) in enumerate(_samples(shard_file, url, located=False)):
                    yield Sample(encoded, label, f"{url} image {position}")
            stream.close()  # a download that broke off says so here
        except UnreadableImageError:
            raise
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            raise UnreadableImageError(f"{url} cannot be read to its end: {_reason(error)}: copy it again") from error


class TarImages(FileSource):
    """The images of local shards by number: those of data.path's braces, or of a folder by their names."""

    kind, ending = "tar shard", ".tar"

    def __init__(self, data: DataConfig, channels: int, files: list[Path]) -> None:
        tables, index = _tables(files), _index(files[0].parent)
        self.files, self.ends, self.members = files, np.cumsum([*map(len, tables)]), np.concatenate(tables)
        if not len(self.members):
            raise ValueError(f"data.path={data.path} holds no images: {len(files)} tar shards without one")
        names = list(index["classes"]) if index else []
        super().__init__(data, channels, *labels_of(np.asarray(self.members[:, 2]), names, ".cls files"))

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
        files = [Path(file) for file in _expanded(path)]
        for file in files:
            if not file.is_file():
                raise ValueError(f"data.path={path} names {file}, which does not exist")
        return files

    @classmethod
    def labeled(cls, files: list[Path]) -> bool:
        return any((table[:, 2] >= 0).any() for table in _tables(files))

    @classmethod
    def count(cls, data: DataConfig) -> int:
        """By the index beside the shards, or their headers."""
        if data.remote:
            counts = remote_shards(data).counts
            return 0 if counts is None else int(counts.sum())
        return sum(len(table) for table in _tables(cls.find(data, "train") or []))

    @classmethod
    def open_shards(cls, data: DataConfig, images: Source | None) -> TarShards:
        if isinstance(images, cls):
            return TarShards([str(file) for file in images.files], np.diff(images.ends, prepend=0))
        return remote_shards(data)

    def open_image(self, index: int) -> Image.Image:
        offset, size, _ = self.members[index].tolist()
        with self.files[self._shard(index)].open("rb") as file:
            file.seek(offset)
            encoded = file.read(size)
        if len(encoded) < size:
            raise OSError("its shard ends before it")
        return open_encoded(encoded)

    def name(self, index: int) -> str:
        shard = self._shard(index)
        return f"{self.files[shard]} image {index - (self.ends[shard - 1] if shard else 0)}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))


def remote_shards(data: DataConfig) -> TarShards:
    """The shards of a URL. ValueError: a shell command nobody allowed, or neither index nor data.epoch_size."""
    if data.path.startswith(PIPE) and os.environ.get(TRUSTED) != "1":
        raise ValueError(f"data.path={data.path} is a shell command: set {TRUSTED}=1 in the environment to run it")
    urls = _expanded(data.path)
    if data.epoch_size:
        return TarShards(urls, None)
    from webdataset.gopen import gopen

    try:
        if data.path.startswith(PIPE):
            raise ValueError("a command has nothing beside it")
        shards = json.loads(gopen(f"{urls[0].rpartition('/')[0]}/{INDEX}").read())["shards"]
        return TarShards(urls, np.array([shards[url.rpartition("/")[2]]["images"] for url in urls], dtype=np.int64))
    except (OSError, ValueError, KeyError) as error:
        line = f"data.path={data.path} has no {INDEX} beside it that counts its images ({_reason(error)})"
        raise ValueError(f"{line}: give data.epoch_size") from error


def scan(file: Path) -> Int64[np.ndarray, "m 3"]:
    """Offset and size in bytes, and label, of each image of a local shard, from its headers. ValueError if damaged."""
    import_extra("webdataset", "webdataset")
    try:
        with tarfile.open(file, "r:") as shard:
            rows = [(*place, label) for place, label in _samples(shard, str(file), located=True)]
    except UnreadableImageError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"data.path={file} cannot be read to its end: {_reason(error)}: copy it again") from error
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _tables(files: list[Path]) -> list[Int64[np.ndarray, "m 3"]]:
    known, tables = {folder: _index(folder) for folder in {file.parent for file in files}}, []
    for file in files:
        if (index := known[file.parent]) is None:
            tables.append(scan(file))
            continue
        if file.name not in index["shards"]:
            raise ValueError(f"data.path={file} is not in the {INDEX} beside it: delete the one or the other")
        size, written = file.stat().st_size, index["shards"][file.name]["bytes"]
        if size != written:
            raise ValueError(f"data.path={file} has {size} bytes, the {INDEX} beside it says {written}: copy it again")
        tables.append(index["members"][file.name])
    return tables


def _index(folder: Path) -> dict[str, Any] | None:
    """index.json of a folder with where its images lie, shard by shard; None where there is none."""
    if not (folder / INDEX).exists():
        return None
    try:
        index = json.loads((folder / INDEX).read_text())
        members = np.load(folder / MEMBERS, mmap_mode="r", allow_pickle=False)
        ends = np.cumsum([shard["images"] for shard in index["shards"].values()])
        if members.shape != (int(ends[-1]), 3):
            raise ValueError(f"{MEMBERS} has {len(members)} rows for {ends[-1]} images")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        line = f"data.path={folder / INDEX} cannot be used: {_reason(error)}"
        raise ValueError(f"{line}: delete it, or make the shards again") from error
    return index | {"members": dict(zip(index["shards"], np.split(members, ends[:-1]), strict=True))}


def _samples(shard: tarfile.TarFile, url: str, located: bool) -> Iterator[tuple[Any, int]]:
    """The image and label of each sample that has an image: its bytes, or where it is located (offset, size)."""
    from webdataset.tariterators import group_by_keys

    def used() -> Iterator[dict[str, Any]]:
        for member in shard:
            shard.members = []  # type: ignore  # which would grow
            ending = member.name.rpartition("/")[2].partition(".")[2].lower()
            if member.isreg() and ending in _USED and not _META.match(member.name):
                place = (member.offset_data, member.size) if located and ending in IMAGES else None
                content: Any = place or shard.extractfile(member)
                yield {"fname": member.name, "data": place or content.read(), "__url__": url}

    for sample in group_by_keys(used()):
        found = [sample[ending] for ending in IMAGES if ending in sample]
        if found:
            yield found[0], _label(sample, url)


def _label(sample: dict[str, Any], url: str) -> int:
    if "cls" in sample:
        text = sample["cls"].decode(errors="replace").strip()
        if not re.fullmatch(r"-?\d+", text):
            line = f"{sample['__key__']}.cls of {url} holds {text[:40]!r}: a label must be an integer"
            raise UnreadableImageError(line)
        return max(int(text), -1)
    metadata = json.loads(sample.get("json", "{}"))
    label = metadata.get("label") if isinstance(metadata, dict) else None
    return max(label, -1) if type(label) is int else -1


def _expanded(path: str) -> list[str]:
    import_extra("webdataset", "webdataset")
    from braceexpand import braceexpand

    return list(braceexpand(path))


def _reason(error: BaseException) -> str:
    """In one line; WebDataset adds the stream to an error's arguments."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
