"""Encoded images in parquet files: a column `image`, and `label` where there are classes. Needs pyarrow."""

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.labels import Labels, number, unused
from ssl_vit.data.sources.base import Source, Split, import_extra, one_line
from ssl_vit.data.splits import FileSource
from ssl_vit.models.decode import open_encoded

MEMORY_LIMIT = 4 * 10**9  # encoded bytes; more go to a temporary file (in TMPDIR) that is mapped into memory
_ROWS = 1024


class Parquet(FileSource):
    """The rows of some parquet files, their encoded images in one array, shared with forked workers."""

    kind, ending = "parquet file", ".parquet"

    def __init__(self, data: DataConfig, channels: int, files: list[Path]) -> None:
        size = sum(_image_bytes(file) for file in files)
        with io.BytesIO() if size <= MEMORY_LIMIT else tempfile.TemporaryFile() as store:
            sizes, columns = [np.zeros(0, np.int64)], []
            for batch in (batch for file in files for batch in _batches(file, ["image", "label"])):
                values, lengths = _encoded(batch.column("image"))
                store.write(values.data)
                sizes.append(lengths)
                columns.append(label_column(batch))
            lengths = np.concatenate(sizes)
            store.flush()
            in_memory = isinstance(store, io.BytesIO)
            self.values = np.frombuffer(store.getvalue(), np.uint8) if in_memory else np.memmap(store, np.uint8, "r")
        if not len(lengths):
            raise ValueError(f"data.path={data.path} holds no images: {len(files)} parquet files without a row")
        self.files, self.offsets = files, np.concatenate([[0], np.cumsum(lengths)])
        self.first_rows = np.cumsum([0] + [_opened(file).metadata.num_rows for file in files])
        if data.on_error == "raise" and not lengths.all():
            empty = self.name(int(np.argmin(lengths)))
            raise ValueError(f"data.path={empty} holds no image bytes: embed them, or drop the row")
        super().__init__(data, channels, *column_labels(columns, _known_names(files[0])))

    @classmethod
    def count(cls, data: DataConfig) -> int:
        return sum(_opened(file).metadata.num_rows for file in cls.find(data, "train") or [])

    @classmethod
    def labeled(cls, files: list[Path]) -> bool:
        return bool(_labels(files).classes)

    @classmethod
    def open_labels(cls, data: DataConfig, split: Split) -> Source | None:
        files = cls.find(data, split)
        for file in files or ():
            _image_bytes(file)
        return Source(data, len(data.mean), *_labels(files)) if files else None

    @classmethod
    def holds_images(cls, file: Path) -> bool:
        return "image" in _opened(file).schema_arrow.names

    def open_image(self, index: int) -> Image.Image:
        if self.offsets[index] == self.offsets[index + 1]:
            raise ValueError("it holds no image bytes, embed them")
        return open_encoded(self.values[self.offsets[index] : self.offsets[index + 1]].tobytes())

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        return f"{self.files[file]} row {index - self.first_rows[file]}"


def _opened(file: Path) -> Any:
    try:
        return import_extra("parquet", "pyarrow.parquet").ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"data.path={file} cannot be read as parquet: {one_line(error)}") from error


def _image_bytes(file: Path) -> int:
    """Size of the image column in bytes; checks that it holds encoded images."""
    opened = _opened(file)
    import pyarrow as pa

    schema, metadata = opened.schema_arrow, opened.metadata
    if "image" not in schema.names:
        columns = ", ".join(schema.names)
        raise ValueError(f"data.path={file} has no column image, only {columns}: rename the one with the images")
    kind = schema.field("image").type
    encoded = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        rule = "encoded bytes (binary) or Hugging Face's {bytes, path}"
        raise ValueError(f"data.path={file} has a column image of type {kind}: it must hold {rule}")
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    leaves = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema in ("image", "image.bytes"))


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    opened = _opened(file)
    present = [name for name in columns if name in opened.schema_arrow.names]
    try:
        yield from opened.iter_batches(batch_size=_ROWS, columns=present)
    except OSError as error:
        raise ValueError(f"data.path={file} cannot be read to its end: {one_line(error)}: copy it again") from error


def _encoded(column: Any) -> tuple[np.ndarray, Int64[np.ndarray, " rows"]]:
    """Bytes of the rows one after the other, and the length of each; 0 where there are none."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]
    column = column.fill_null(b"").cast(pa.large_binary())
    _, offset_buffer, value_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(value_buffer or b"", np.uint8)[offsets[0] : offsets[-1]], np.diff(offsets)


def label_column(rows: Any) -> Any:
    """The column label of an Arrow table or batch; nulls where there is none."""
    import pyarrow as pa

    return rows.column("label") if "label" in rows.schema.names else pa.nulls(rows.num_rows)


def column_labels(columns: list[Any], names: list[str]) -> Labels:
    """Labels of a column, in Arrow arrays. names: of the first classes, where the data set has some."""
    import pyarrow as pa

    known, parts = dict[Any, int](), [np.zeros(0, np.int64)]  # value -> its place
    for column in columns:
        kind = column.type
        if pa.types.is_nested(kind):
            rows = sum(map(len, columns))
            return Labels(np.full(rows, -1), [], unused("column label", str(kind)))
        if not pa.types.is_null(kind):
            encoded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
            places = [known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()]
            index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            parts.append(np.array([*places, -1])[index])
        else:
            parts.append(np.full(len(column), -1))
    return number(list(known), np.concatenate(parts), names, "column label")


def _labels(files: list[Path]) -> Labels:
    columns = [label_column(batch) for file in files for batch in _batches(file, ["label"])]
    return column_labels(columns, _known_names(files[0]))


def _known_names(file: Path) -> list[str]:
    """From the schema's metadata: `classes` (a JSON list), or Hugging Face's ClassLabel."""
    metadata = _opened(file).schema_arrow.metadata or {}
    if b"classes" in metadata:
        return [str(name) for name in json.loads(metadata[b"classes"])]
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return list(features.get("label", {}).get("names", []))
