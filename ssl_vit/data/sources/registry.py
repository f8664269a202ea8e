"""Where images lie: digits, folder, parquet, torchvision, hf, webdataset; each a Source that reads one at a time.

Streams are read as Shards besides. Needs numpy and PIL only, so that a dry run can count images without torch. A
source holds its file names or encoded bytes in one array each: a Python object per image would be copied into every
worker, page by page, as it is touched.
"""

import inspect
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from ssl_vit.config.checks import nearest
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.rng import stratified, uniforms
from ssl_vit.data.sources import folder, hf, parquet, webdataset
from ssl_vit.data.sources.base import Source

Split = Literal["train", "test"]
DIGITS_TRAIN, DIGITS_TEST = 1437, 360
TORCHVISION: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), ("train", "test")),
    **dict.fromkeys(("SVHN", "Food101", "DTD", "GTSRB", "StanfordCars", "Country211"), ("train", "test")),
    **dict.fromkeys(("Flowers102", "FER2013", "RenderedSST2"), ("train", "test")),
    **dict.fromkeys(("OxfordIIITPet", "FGVCAircraft"), ("trainval", "test")),
    **dict.fromkeys(("ImageNet", "Imagenette"), ("train", "val")),
    **dict.fromkeys(("EuroSAT", "SUN397"), ("all", None)),
    "STL10": ("train+unlabeled", "test"),
}
"""Classification sets of torchvision: their name for the training part, and for the test part."""


class Digits(Source):
    """scikit-learn's 1,797 real handwritten digits, each at a random size and place and in a random color."""

    def __init__(self, data: DataConfig, channels: int, split: Split) -> None:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        labels = np.asarray(digits.target, dtype=np.int64)
        chosen = np.zeros(len(labels), dtype=bool)
        chosen[stratified(labels, DIGITS_TEST, seed=0)] = True
        self.numbers = np.flatnonzero(chosen if split == "test" else ~chosen)
        self.canvases = np.stack([draw_digit(digits.images[i], i) for i in self.numbers.tolist()])
        super().__init__(data, channels, labels[self.numbers], [str(digit) for digit in range(10)])

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.canvases[index])

    def name(self, index: int) -> str:
        return f"digit {self.numbers[index]} of scikit-learn's load_digits"


def draw_digit(strokes: np.ndarray, number: int) -> UInt8[np.ndarray, "32 32 3"]:
    """One digit (8 x 8, 0 to 16) on a black canvas: 24 to 32 pixels a side, any place that holds it, any bright color.

    A function of the digit and its number, so the data set is the same everywhere.
    """
    side_draw, top_draw, left_draw, *color_draws = uniforms(0, 0, np.array([number]), 6)[0]
    side = 24 + int(side_draw * 9)
    top, left = int(top_draw * (33 - side)), int(left_draw * (33 - side))
    glyph = Image.fromarray((strokes * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    color = 0.25 + 0.75 * np.array(color_draws)
    color /= color.max()
    canvas = np.zeros((32, 32, 3), dtype=np.uint8)
    canvas[top : top + side, left : left + side] = (np.asarray(glyph)[:, :, None] * color).astype(np.uint8)
    return canvas


class Torchvision(Source):
    """A data set of torchvision, by class name; downloaded where it is missing and the network allows."""

    def __init__(self, data: DataConfig, channels: int, dataset: Any, part: str) -> None:
        labels = _torchvision_labels(dataset)
        self.dataset, self.part = dataset, part
        named = [str(name) for name in getattr(dataset, "classes", [])]
        classes = named or [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
        super().__init__(data, channels, labels, classes if (labels >= 0).any() else [])

    def open(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        return f"{type(self.dataset).__name__} {self.part} image {index}"


def open_torchvision(data: DataConfig, channels: int, split: Split) -> Torchvision | None:
    """data.path=CLASS:ROOT; None where the class has no test part.

    Raises:
        ValueError: no such class, no ROOT, or a download that failed.
    """
    name, _, root = data.path.partition(":")
    if name not in TORCHVISION or not root:
        rule = f"CLASS:ROOT, such as CIFAR10:downloads, with CLASS one of {', '.join(TORCHVISION)}"
        raise ValueError(f"data.path={data.path} must be {rule}{nearest(name, TORCHVISION)}")
    from torchvision import datasets

    make = getattr(datasets, name)
    train, test = TORCHVISION[name]
    part = train if split == "train" else test
    if part is None:
        return None
    parameters = inspect.signature(make).parameters
    options: dict[str, Any] = {"split": part} if "split" in parameters else {}
    options |= {"train": split == "train"} if "train" in parameters else {}
    options |= {"download": True} if "download" in parameters else {}
    try:
        return Torchvision(data, channels, make(root, **options), part)
    except Exception as error:  # what a download raises differs by class: URLError, RuntimeError, ModuleNotFoundError
        reason = " ".join(str(error).split())
        line = f"data.path={data.path} could not be opened or downloaded: {reason}: put its files into {root} yourself"
        raise ValueError(line) from error


def _torchvision_labels(dataset: Any) -> Int64[np.ndarray, " n"]:
    """The classes' numbers, from wherever this class keeps them; -1 where they are no single integers."""
    kept = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    if kept is None and hasattr(dataset, "_samples"):
        kept = [sample[1] for sample in dataset._samples]
    labels = np.asarray(kept)
    legal = labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer)
    return labels.astype(np.int64) if legal else np.full(len(dataset), -1)


def open_source(data: DataConfig, channels: int, split: Split) -> Source | None:
    """The training or the test images of data; None where there is no test part, or training is a remote stream.

    Raises:
        ValueError: the key as typed, what is wrong with it, and what to do.
    """
    if data.source == "digits":
        return Digits(data, channels, split)
    if data.source == "torchvision":
        return open_torchvision(data, channels, split)
    if split == "train" and data.remote:
        return None
    if data.source == "hf":
        return hf.training_rows(data, channels) if split == "train" else hf.test_rows(data, channels)
    if data.source in ("parquet", "webdataset"):
        kind, made = (parquet, parquet.Parquet) if data.source == "parquet" else (webdataset, webdataset.TarImages)
        files = kind.training_files(data) if split == "train" else kind.test_files(data)
        return made(data, channels, files) if files else None
    listing = folder.training_files(data) if split == "train" else folder.test_files(data)
    return folder.Folder(data, channels, listing) if listing else None


def open_shards(data: DataConfig, images: Source | None) -> webdataset.Shards:
    """The training images of a stream. images: the same by number, where open_source has them.

    Raises:
        ValueError: as open_source.
    """
    if data.streaming:
        return hf.streamed_rows(data)
    if isinstance(images, webdataset.TarImages):
        return webdataset.TarShards([str(file) for file in images.files], images.counts)
    return webdataset.remote_shards(data)


def count(data: DataConfig) -> int | None:
    """Training images of an epoch, without decoding any; None for torchvision and hf, which cannot tell cheaply.

    Raises:
        ValueError: as open_source.
    """
    if data.epoch_size is not None:
        return data.epoch_size
    if data.source == "webdataset":
        return webdataset.count(data)
    if data.source == "hf":
        return hf.count(data)
    if data.source == "digits":
        return DIGITS_TRAIN
    if data.source == "torchvision":
        return None
    if data.source == "parquet":
        return sum(parquet.rows(file) for file in parquet.training_files(data))
    return len(folder.training_files(data))
