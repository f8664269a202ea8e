"""Where images lie: one table of the kinds of data.source. Needs no torch, so that a dry run can count images."""

from ssl_vit.config.auto_source import AUTO
from ssl_vit.config.recipes import imported, load_class
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Shards, Source, Split

SOURCES = {
    "digits": "ssl_vit.data.sources.digits:Digits",
    "folder": "ssl_vit.data.sources.folder:Folder",
    "parquet": "ssl_vit.data.sources.parquet:Parquet",
    "zip": "ssl_vit.data.sources.zip_archive:ZipImages",
    "torchvision": "ssl_vit.data.sources.torchvision:Torchvision",
    "hf": "ssl_vit.data.sources.hf:HFDataset",
    "webdataset": "ssl_vit.data.sources.webdataset:TarImages",
}
"""Name -> package.module:Class, a Source; data.source= also takes such a path of your own."""


def source_class(name: str) -> type[Source]:
    """The class of a data.source. ValueError where it is no Source that can be imported."""
    if name == AUTO:  # which has become another one where there is a path
        raise ValueError("data.path= is empty: give the folder of your images, or data.source=digits")
    found = load_class(SOURCES[name]) if name in SOURCES else imported("data.source", name)
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise ValueError(f"data.source={name} must be a class that inherits from {Source.__module__}.Source")
    return found


def open_source(data: DataConfig, channels: int, split: Split) -> Source | None:
    """The training or test images; None without any for testing, or where training is remote. Raises ValueError."""
    return None if split == "train" and data.remote else source_class(data.source).open(data, channels, split)


def open_labels(data: DataConfig, split: Split) -> Source | None:
    """The labels of a split, without its images where that spares reading them; None where they have to be loaded."""
    return None if split == "train" and data.remote else source_class(data.source).open_labels(data, split)


def open_shards(data: DataConfig, images: Source | None) -> Shards:
    """The training images of a stream. images: the same by number, where open_source has them. Raises as it does."""
    return source_class(data.source).open_shards(data, images)


def count(data: DataConfig) -> int | None:
    """Training images of an epoch, without decoding any; None where that takes opening them. Raises as open_source."""
    found = source_class(data.source).count(data)  # which also judges what data.path names
    return found if data.epoch_size is None else data.epoch_size
