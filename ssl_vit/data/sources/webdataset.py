"""Tar shards: where they lie, how many images each holds, and their images one after the other, or by number.

A sample is the files of one name up to its first dot: an image, and where there are classes a `cls` (an integer as
text) or a `json` with a `label`. Nothing else in a shard is looked at, so nothing is unpickled. `index.json`, which
tools/make_shards.py writes beside the shards, says how many images each holds and what the classes are called;
`members.npy` where in its shard each image lies. Without them the headers of a shard are read, if it is a local file.

Letters: n images, m images of a shard.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.schema import PIPE, DataConfig, is_remote
from ssl_vit.data import splits
from ssl_vit.data.sources.base import Source, UnreadableImageError, open_image
from ssl_vit.data.sources.folder import ENDINGS

KIND = splits.Kind("tar shard", ".tar")
INDEX, MEMBERS = "index.json", "members.npy"
IMAGES = (*ENDINGS, "gif")
"""Endings of a sample's image; of several the first counts."""
TRUSTED = "SSL_VIT_ALLOW_PIPE"
"""Environment variable that lets a URL be a shell command: a person sets it, a recipe or an encoder.json cannot."""
_LOOKED_AT = {*IMAGES, "cls", "json"}
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own files


class Sample(NamedTuple):
    """An image of a stream, not yet decoded."""

    encoded: bytes
    label: int
    """-1: none."""
    name: str
    """What a person finds it by."""


class Shards:
    """Images in shards that are read from the front."""

    names: list[str]
    counts: Int64[np.ndarray, " shards"] | None
    """Images of each; None where nobody has counted them."""

    def read(self, shard: int) -> Iterator[Sample]:
        """The images of one shard. UnreadableImageError where it cannot be read to its end."""
        raise NotImplementedError


class TarShards(Shards):
    """Tar files, by path or URL; WebDataset reads them."""

    def __init__(self, urls: list[str], counts: Int64[np.ndarray, " shards"] | None) -> None:
        _require_webdataset()
        self.names, self.counts = urls, counts

    def read(self, shard: int) -> Iterator[Sample]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url = self.names[shard]
        try:
            stream = gopen(url)
            files = tar_file_expander([{"url": url, "stream": stream}], select_files=_looked_at)
            found = filter(None, (_image(sample, url, bytes) for sample in group_by_keys(files)))
            for position, (encoded, label) in enumerate(found):
                yield Sample(encoded, label, f"{url} image {position}")
            stream.close()  # a download that broke off says so here
        except UnreadableImageError:
            raise
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            raise UnreadableImageError(f"{url} cannot be read to its end: {_reason(error)}: copy it again") from error


class TarImages(Source):
    """The images of local shards by number: each read from where it lies."""

    def __init__(self, data: DataConfig, channels: int, files: list[Path]) -> None:
        tables = _tables(files)
        self.files, self.ends = files, np.cumsum([len(table) for table in tables])
        self.members = np.concatenate(tables)
        if not len(self.members):
            raise ValueError(f"data.path={data.path} holds no images: {len(files)} tar shards without one")
        labels = np.ascontiguousarray(self.members[:, 2])
        index = _index(files[0].parent)
        classes = list(index["classes"]) if index else []
        classes += [str(label) for label in range(len(classes), int(labels.max()) + 1)]
        super().__init__(data, channels, labels, classes if (labels >= 0).any() else [])

    @property
    def counts(self) -> Int64[np.ndarray, " shards"]:
        """Images of each shard."""
        return np.diff(self.ends, prepend=0)

    def open(self, index: int) -> Image.Image:
        offset, size, _ = self.members[index].tolist()
        with self.files[self._shard(index)].open("rb") as file:
            file.seek(offset)
            encoded = file.read(size)
        if len(encoded) < size:
            raise OSError("its shard ends before it")
        return open_image(BytesIO(encoded))

    def name(self, index: int) -> str:
        shard = self._shard(index)
        return f"{self.files[shard]} image {index - (self.ends[shard - 1] if shard else 0)}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))


def training_files(data: DataConfig) -> list[Path]:
    """Local shards: those that data.path's braces name, or of a folder those whose name contains train; without any,
    all that are not test shards.

    Raises:
        ValueError: no such path, or no shards for training there.
    """
    data = _local(data)
    if "{" in data.path:
        return [_existing(data, Path(file)) for file in _expanded(data.path)]
    return splits.training_files(data, KIND, _labeled)


def test_files(data: DataConfig) -> list[Path] | None:
    """Shards of data.test_path, or those of data.path whose name contains test, val or validation; None without any.

    Raises:
        ValueError: data.test_path is no local path.
    """
    if is_remote(data.test_path):
        raise ValueError(f"data.test_path={data.test_path} must be shards on this machine: they are read by number")
    by_name = is_remote(data.path) or "{" in data.path
    if by_name and not data.test_path:
        return None
    return splits.test_files(_local(data), KIND, _labeled)


def remote_shards(data: DataConfig) -> TarShards:
    """The shards of a URL, its braces expanded; counted by the index beside them, where data.epoch_size says nothing.

    Raises:
        ValueError: a shell command that nobody has allowed, or no index and no data.epoch_size.
    """
    if data.path.startswith(PIPE) and os.environ.get(TRUSTED) != "1":
        raise ValueError(f"data.path={data.path} is a shell command: set {TRUSTED}=1 in the environment to run it")
    urls = _expanded(data.path)
    if data.epoch_size:
        return TarShards(urls, None)
    _require_webdataset()
    from webdataset.gopen import gopen

    try:
        if data.path.startswith(PIPE):
            raise ValueError("a command has nothing beside it")
        shards = json.loads(gopen(f"{urls[0].rpartition('/')[0]}/{INDEX}").read())["shards"]
        return TarShards(urls, np.array([shards[url.rpartition("/")[2]]["images"] for url in urls], dtype=np.int64))
    except (OSError, ValueError, KeyError) as error:
        line = f"data.path={data.path} has no {INDEX} beside it that counts its images ({_reason(error)})"
        raise ValueError(f"{line}: give data.epoch_size") from error


def count(data: DataConfig) -> int:
    """Number of training images: the index's, or that of the headers. Raises ValueError as the functions above."""
    if data.remote:
        counts = remote_shards(data).counts
        return 0 if counts is None else int(counts.sum())
    return sum(len(table) for table in _tables(training_files(data)))


def scan(file: Path) -> Int64[np.ndarray, "m 3"]:
    """Offset and size in bytes, and label, of each image of a local shard, from its headers.

    Raises:
        ValueError: it is no whole tar file, or a label is no integer.
    """
    _require_webdataset()
    from webdataset.tariterators import group_by_keys

    def headers(shard: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        for member in shard:
            if member.isreg() and _looked_at(member.name):
                yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": str(file)}

    try:
        with tarfile.open(file, "r:") as shard, file.open("rb") as content:

            def read(place: tuple[int, int]) -> bytes:
                content.seek(place[0])
                return content.read(place[1])

            found = (_image(sample, str(file), read) for sample in group_by_keys(headers(shard)))
            rows = [(*place, label) for place, label in filter(None, found)]
    except UnreadableImageError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"data.path={file} cannot be read to its end: {_reason(error)}: copy it again") from error
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _tables(files: list[Path]) -> list[Int64[np.ndarray, "m 3"]]:
    """scan() of each file, from the index of its folder where there is one."""
    tables, known = [], dict[Path, Any]()
    for file in files:
        if file.parent not in known:
            known[file.parent] = _index(file.parent)
        index = known[file.parent]
        tables.append(scan(file) if index is None else _indexed(file, index))
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


def _indexed(file: Path, index: dict[str, Any]) -> Int64[np.ndarray, "m 3"]:
    """Where a shard's images lie. ValueError where the file is not the one that was indexed."""
    if file.name not in index["shards"]:
        raise ValueError(f"data.path={file} is not in the {INDEX} beside it: delete the one or the other")
    size, written = file.stat().st_size, index["shards"][file.name]["bytes"]
    if size != written:
        raise ValueError(f"data.path={file} has {size} bytes, the {INDEX} beside it says {written}: copy it again")
    return index["members"][file.name]


def _image(sample: dict[str, Any], url: str, read: Callable[[Any], bytes]) -> tuple[Any, int] | None:
    """A sample's image and label; None where it has no image. read: bytes of one of its files."""
    ending = next((ending for ending in IMAGES if ending in sample), None)
    if ending is None:
        return None
    label: Any = -1
    if "cls" in sample:
        text = read(sample["cls"]).decode(errors="replace").strip()
        if not re.fullmatch(r"-?\d+", text):
            raise UnreadableImageError(
                f"{sample['__key__']}.cls of {url} holds {text[:40]!r}: a label must be an integer"
            )
        label = int(text)
    elif "json" in sample:
        metadata = json.loads(read(sample["json"]))
        label = metadata.get("label", -1) if isinstance(metadata, dict) else -1
    return sample[ending], max(label, -1) if type(label) is int else -1


def _looked_at(name: str) -> bool:
    return name.rpartition("/")[2].partition(".")[2].lower() in _LOOKED_AT and not _META.match(name)


def _labeled(files: list[Path]) -> bool:
    return any((table[:, 2] >= 0).any() for table in _tables(files))


def _expanded(path: str) -> list[str]:
    _require_webdataset()
    from braceexpand import braceexpand

    return list(braceexpand(path))


def _local(data: DataConfig) -> DataConfig:
    """With paths for file:// URLs."""
    path, test_path = (given.removeprefix("file://") for given in (data.path, data.test_path))
    return replace(data, path=path, test_path=test_path)


def _existing(data: DataConfig, file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"data.path={data.path} names {file}, which does not exist")
    return file


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; WebDataset adds the stream to it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = error.args[0] if error.args else error
    return " ".join(str(text).partition(" @ <")[0].split()) or type(error).__name__


def _require_webdataset() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        advice = "uv sync --extra webdataset, or pip install 'ssl_vit[webdataset]'"
        raise ImportError(f"data.source=webdataset needs webdataset: {advice}") from error
