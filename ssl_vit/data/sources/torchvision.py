"""Classification data sets of torchvision, by class name."""

import inspect
from typing import Any, get_args

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.checks import nearest
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.labels import labels_of
from ssl_vit.data.sources.base import Source, Split, one_line

DATASETS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), ("train", "test")),
    **dict.fromkeys(("SVHN", "Food101", "DTD", "GTSRB", "StanfordCars", "Country211"), ("train", "test")),
    **dict.fromkeys(("Flowers102", "FER2013", "RenderedSST2"), ("train", "test")),
    **dict.fromkeys(("OxfordIIITPet", "FGVCAircraft"), ("trainval", "test")),
    **dict.fromkeys(("ImageNet", "Imagenette"), ("train", "val")),
    **dict.fromkeys(("EuroSAT", "SUN397"), ("all", None)),
    "STL10": ("train+unlabeled", "test"),
}
"""Class -> its names of the training split and of the test split."""


class Torchvision(Source):
    """A data set of torchvision; downloaded where it is missing and the network allows."""

    downloads = True

    def __init__(self, data: DataConfig, channels: int, dataset: Any, split_name: str) -> None:
        self.dataset, self.split_name, names = dataset, split_name, [str(n) for n in getattr(dataset, "classes", [])]
        super().__init__(data, channels, *labels_of(_labels(dataset), names, type(dataset).__name__))

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Torchvision | None":
        """data.path=CLASS:ROOT; None where the class has no test split. ValueError also where a download failed."""
        name, root, split_name = _named(data, split)
        if split_name is None:
            return None
        try:
            return cls(data, channels, _opened(name, root, split_name, download=True), split_name)
        except Exception as error:  # what a download raises differs by class: URLError, RuntimeError, ...
            line = f"data.path={data.path} could not be opened or downloaded: {one_line(error)}"
            raise ValueError(f"{line}: put its files into {root} yourself") from error

    @classmethod
    def needs_download(cls, data: DataConfig) -> bool:
        for split in get_args(Split):
            name, root, split_name = _named(data, split)
            try:
                _ = split_name and _opened(name, root, split_name, download=False)
            except Exception:  # as above
                return True
        return False

    @classmethod
    def count(cls, data: DataConfig) -> None:
        """Not before it is opened, which may download. ValueError where data.path names no data set."""
        _named(data, "train")

    def open_image(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        return f"{type(self.dataset).__name__} {self.split_name} image {index}"


def _named(data: DataConfig, split: Split) -> tuple[str, str, str | None]:
    name, _, root = data.path.partition(":")
    if name not in DATASETS or not root:
        rule = f"CLASS:ROOT, such as CIFAR10:downloads, with CLASS one of {', '.join(DATASETS)}"
        raise ValueError(f"data.path={data.path} must be {rule}{nearest(name, DATASETS)}")
    return name, root, DATASETS[name][split == "test"]


def _opened(name: str, root: str, split_name: str, download: bool) -> Any:
    from torchvision import datasets

    dataset_class = getattr(datasets, name)
    legal: dict[str, Any] = {"split": split_name, "train": split_name == "train", "download": download}
    options = inspect.signature(dataset_class).parameters.keys() & legal
    return dataset_class(root, **{key: legal[key] for key in options})


def _labels(dataset: Any) -> Int64[np.ndarray, " n"]:
    kept = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    if kept is None and hasattr(dataset, "_samples"):
        kept = [sample[1] for sample in dataset._samples]
    labels = np.asarray(kept)
    legal = labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer)
    return labels.astype(np.int64) if legal else np.full(len(dataset), -1)
