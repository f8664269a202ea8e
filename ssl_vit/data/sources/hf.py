"""Data sets of Hugging Face: by number, or with data.streaming shard after shard. Needs the extra hf.

data.path is a folder that `save_to_disk` wrote, or what `load_dataset` takes: a name on the hub, NAME:CONFIG where it
has several, or a local folder of parquet files.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import (
    Sample,
    Shards,
    Source,
    Split,
    UnreadableImageError,
    import_extra,
    one_line,
)
from ssl_vit.data.sources.parquet import column_labels
from ssl_vit.data.splits import TEST_NAMES, split_of
from ssl_vit.models.decode import open_encoded

_ROWS = 16  # of a stream, read at once


class HFDataset(Source):
    """The rows of a data set, by number; they stay in the files that they are mapped from."""

    downloads = True

    def __init__(self, data: DataConfig, channels: int, path: str, rows: Any) -> None:
        column = image_column(path, rows.features)
        if not len(rows):
            raise ValueError(f"data.path={path} holds no images: it has no rows")
        self.rows, self.column, self.path = _undecoded(rows, column).select_columns([column]), column, path
        names = list(getattr(rows.features.get("label"), "names", None) or [])
        super().__init__(data, channels, *column_labels(_label_columns(rows), names))

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "HFDataset | None":
        """Training: the split `train`, or all of it. Test: test, val or validation, the first one with labels."""
        if split == "train":
            return cls(data, channels, data.path, _train_split(data))
        if data.remote and not data.test_path:
            return None
        key, path = ("data.test_path", data.test_path) if data.test_path else ("data.path", data.path)
        rows = _loaded(key, path)
        tests = [name for test in TEST_NAMES for name in rows if split_of(name) == test]
        names = tests or list(rows)[: bool(data.test_path)]
        found = [cls(data, channels, path, rows[name]) for name in names]
        return min(found, key=lambda source: not source.classes, default=None)

    @classmethod
    def needs_download(cls, data: DataConfig) -> bool:
        return not all(map(_is_saved, filter(None, (data.path, data.test_path))))

    @classmethod
    def count(cls, data: DataConfig) -> int | None:
        """Of a saved folder; others have to be loaded first, but their names are checked."""
        _require_name("data.path", data.path)
        if data.test_path:
            _require_name("data.test_path", data.test_path)
        return None if data.streaming or not _is_saved(data.path) else len(_train_split(data))

    @classmethod
    def open_labels(cls, data: DataConfig, split: Split) -> Source | None:
        """Of saved folders; others have to be loaded first."""
        saved = all(_is_saved(path) for path in (data.path, data.test_path) if path)
        return cls.open(data, len(data.mean), split) if saved else None

    @classmethod
    def open_shards(cls, data: DataConfig, images: Source | None) -> "StreamedRows":
        return StreamedRows(data.path, _train_split(data, streaming=True))

    def open_image(self, index: int) -> Image.Image:
        return open_encoded(_bytes(self.rows[index][self.column]))

    def name(self, index: int) -> str:
        return f"{self.path} row {index}"


class StreamedRows(Shards):
    """The rows of a data set from where it lies, a file of it after the other."""

    def __init__(self, path: str, rows: Any) -> None:
        self.column = image_column(path, rows.features or {"image": None})
        self.rows, self.counts = _undecoded(rows, self.column), None
        self.names = [f"{path} file {number}" for number in range(rows.num_shards)]

    def read(self, shard: int) -> Iterator[Sample]:
        row = 0
        try:
            # iter() and not for: that would share the rows among a loader's workers once more.
            for batch in self.rows.shard(num_shards=len(self.names), index=shard).iter(_ROWS):
                for value, label in zip(batch[self.column], batch.get("label", [None] * _ROWS), strict=False):
                    name = f"{self.names[shard]} row {row}"
                    yield Sample(_bytes(value), label if type(label) is int and label >= 0 else -1, name)
                    row += 1
        except Exception as error:  # a download's, or the file format's: they have nothing in common
            line = f"{self.names[shard]} cannot be read past row {row}: {one_line(error)}: try again"
            raise UnreadableImageError(line) from error


def _train_split(data: DataConfig, streaming: bool = False) -> Any:
    splits = _loaded("data.path", data.path, streaming)
    rows = next((splits[name] for name in splits if split_of(name) == "train"), splits.get(""))
    if rows is None:
        raise ValueError(f"data.path={data.path} has no split train, only {', '.join(splits)}")
    return rows


def _is_saved(path: str) -> bool:
    return any((Path(path) / name).exists() for name in ("dataset_dict.json", "state.json"))


def image_column(path: str, features: Any) -> str:
    """`image`, or the only column of images. ValueError where there is neither."""
    if "image" in features:
        return "image"
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        line = f"data.path={path} has no column image, only {', '.join(features)}"
        raise ValueError(f"{line}: rename the one with the images")
    return images[0]


def _loaded(key: str, path: str, streaming: bool = False) -> dict[str, Any]:
    """The splits of a data set by name; "" for one that has none."""
    datasets = import_extra("hf", "datasets")
    _require_name(key, path)
    if streaming and _is_saved(path):
        raise ValueError(f"{key}={path} is on this machine, and saved: read it with data.streaming=false")
    name, _, config = (path, "", "") if os.path.exists(path) else path.partition(":")
    try:
        if _is_saved(path):
            whole = datasets.load_from_disk(path)
        else:
            whole = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:  # no network, no such name, a damaged file: they have nothing in common
        raise ValueError(f"{key}={path} could not be loaded: {one_line(error)}") from error
    return dict(whole) if isinstance(whole, dict) else {"": whole}


def _require_name(key: str, path: str) -> None:
    """ValueError unless a path is a folder with data, or may be a name on the hub, which is not asked."""
    patterns_of = import_extra("hf", "datasets.data_files").get_data_patterns
    if not path:
        raise ValueError(f"{key}= is empty: give a folder that save_to_disk wrote, or a name on the hub")
    try:
        if not os.path.exists(path):
            import_extra("hf", "huggingface_hub.utils").validate_repo_id(path.partition(":")[0])
        elif not _is_saved(path):
            patterns_of(path)
    except Exception as error:  # each has its own
        raise ValueError(f"{key}={path} could not be loaded: {one_line(error)}") from error


def _undecoded(rows: Any, column: str) -> Any:
    encoded = import_extra("hf", "datasets").Image(decode=False)
    return rows.cast_column(column, encoded) if hasattr((rows.features or {}).get(column), "decode") else rows


def _bytes(value: Any) -> bytes:
    """Of an image: bytes, or {bytes, path} of Hugging Face, whose path may be a file of this machine."""
    row: Any = {"bytes": value} if isinstance(value, bytes) else value or {}
    found, path = row.get("bytes"), row.get("path")
    if found is None and path and os.path.isfile(path):
        found = Path(path).read_bytes()
    if not found:
        raise OSError("its row holds no image bytes")
    return found


def _label_columns(rows: Any) -> list[Any]:
    if "label" not in rows.features:
        return [import_extra("hf", "pyarrow").nulls(len(rows))]
    return rows.select_columns(["label"]).with_format("arrow")[:].column("label").chunks
