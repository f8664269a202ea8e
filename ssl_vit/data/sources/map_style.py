"""Any map-style Dataset: whatever has __len__ and gives an item for an integer. Letters: n images, C H W of one."""

import logging
import math
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.labels import Labels, labels_of
from ssl_vit.data.sources.base import Source, Split, one_line
from ssl_vit.models.decode import pixels, require_sane

log = logging.getLogger(__name__)
LEGAL = "a PIL image, a uint8 tensor [C, H, W] or a uint8 array [H, W, C]"


class MapStyle(Source):
    """A data set whose items are an image, as LEGAL says, or (image, label, ...), the label an integer or a text.

    Images are read anew each time; whether they lie in memory is the data set's own affair. Labels are those of its
    `targets` or `labels` where it has one for each item, else -1 until find_labels() reads them.
    """

    cacheable = False

    def __init__(self, data: DataConfig, channels: int, dataset: Any, split: Split) -> None:
        """ValueError where it has no items, or its first one has an image of another kind."""
        self.dataset, self.split = dataset, split
        name, count = type(dataset).__name__, len(dataset) if hasattr(dataset, "__len__") else 0
        if not count or not hasattr(dataset, "__getitem__"):
            rule = "a name, or a Dataset with __len__ and __getitem__ by integer that is not empty"
            raise ValueError(f"source={name} must be {rule}")
        first = None
        with suppress(Exception):  # an image that cannot be read is met again, and counted, in its turn
            first = dataset[0]
        if first is not None:
            hwc(image_of(first), f"{name} gives")
        values, self._origin = targets_of(dataset, count)
        self._found = values is not None or not data.labels
        whole = dataset
        while isinstance(whole, Subset):
            whole = whole.dataset
        self._names = [str(name) for name in getattr(whole, "classes", None) or []]
        none = Labels(np.full(count, -1), [], "")
        super().__init__(data, channels, *(none if values is None else labels_of(values, self._names, self._origin)))

    def find_labels(self) -> None:
        if self._found:
            return
        log.info("reading the labels of %d images; a data set with `targets` needs no such pass", len(self))
        values = list[Any]()
        for index in range(len(self)):
            try:
                values.append(label_of(self.dataset[index]))
            except Exception as error:  # what cannot be read has no label; the image says so in its turn
                values.append(None)
                log.debug("%s has no label: %s", self.name(index), one_line(error))
        self._found = True
        self.labels[:], self.classes, self.label_note = labels_of(values, self._names, self._origin)

    def name(self, index: int) -> str:
        return f"{type(self.dataset).__name__} {self.split} image {index}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        return self.guarded(index, lambda: self._pixels(image_of(self.dataset[index])))

    def size(self, index: int) -> tuple[int, int]:
        height, width, _ = self.read(index).shape
        return height, width

    def _pixels(self, image: Any) -> UInt8[np.ndarray, "H W C"]:
        image = hwc(image, "it is")
        if isinstance(image, np.ndarray):
            if image.shape[2] == self.channels:
                return image
            if image.shape[2] not in (1, 3):
                raise ValueError(f"it has {image.shape[2]} channels, encoder.channels={self.channels} needs as many")
            image = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
        require_sane(image)
        return pixels(image, self.channels, self.white_16bit)


def image_of(item: Any) -> Any:
    """The image of an item."""
    return item[0] if isinstance(item, tuple | list) and item else item


def label_of(item: Any) -> Any:
    """The label of an item; None where it has none."""
    label = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
    if isinstance(label, Tensor | np.ndarray | np.generic):
        return label.item() if math.prod(label.shape) == 1 else label.tolist()
    return label


def targets_of(dataset: Any, count: int) -> tuple[Any, str]:
    """Labels that a data set, or that which it is a subset of, has in one attribute, and where; None: in its items."""
    if isinstance(dataset, Subset):
        whole, origin = targets_of(dataset.dataset, len(dataset.dataset))  # pyright: ignore[reportArgumentType]
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)], origin
    name = type(dataset).__name__
    for key in ("targets", "labels"):
        with suppress(ValueError):  # of lists of different lengths, which are no labels
            values = np.asarray(getattr(dataset, key, None))
            if values.shape == (count,):
                return values, f"{name}.{key}"
    return None, f"{name}'s items"


def hwc(image: Any, given: str) -> Image.Image | UInt8[np.ndarray, "H W C"]:
    """A PIL image as it is, a tensor or an array as [H, W, C]. ValueError for what is none of them, or not uint8."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor) and image.ndim == 3 and image.dtype == torch.uint8:
        return image.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.ndim in (2, 3) and image.dtype == np.uint8:
        return image if image.ndim == 3 else image[:, :, None]
    kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor | np.ndarray) else type(image).__name__
    advice = "a source gives uint8, which is augmented and then normalized on the device"
    raise ValueError(f"{given} {kind}, but must give {LEGAL}: {advice}")
