"""Classification data sets of torchvision, by class name."""

import inspect
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from ssl_vit.config.checks import nearest
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split, class_names, one_line

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
        labels = _labels(dataset)
        self.dataset, self.split_name = dataset, split_name
        super().__init__(data, channels, labels, class_names([str(n) for n in getattr(dataset, "classes", [])], labels))

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Torchvision | None":
        """data.path=CLASS:ROOT; None where the class has no test split. ValueError also where a download failed."""
        cls.count(data)
        name, _, root = data.path.partition(":")
        from torchvision import datasets

        dataset_class, split_name = getattr(datasets, name), DATASETS[name][split == "test"]
        if split_name is None:
            return None
        legal: dict[str, Any] = {"split": split_name, "train": split == "train", "download": True}
        options = {key: legal[key] for key in inspect.signature(dataset_class).parameters.keys() & legal}
        try:
            return cls(data, channels, dataset_class(root, **options), split_name)
        except Exception as error:  # what a download raises differs by class: URLError, RuntimeError, ...
            line = f"data.path={data.path} could not be opened or downloaded: {one_line(error)}"
            raise ValueError(f"{line}: put its files into {root} yourself") from error

    @classmethod
    def count(cls, data: DataConfig) -> None:
        """Not before it is opened, which may download. ValueError where data.path names no data set."""
        name, _, root = data.path.partition(":")
        if name not in DATASETS or not root:
            rule = f"CLASS:ROOT, such as CIFAR10:downloads, with CLASS one of {', '.join(DATASETS)}"
            raise ValueError(f"data.path={data.path} must be {rule}{nearest(name, DATASETS)}")

    def open_image(self, index: int) -> Image.Image:
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        return f"{type(self.dataset).__name__} {self.split_name} image {index}"


def _labels(dataset: Any) -> Int64[np.ndarray, " n"]:
    kept = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    if kept is None and hasattr(dataset, "_samples"):
        kept = [sample[1] for sample in dataset._samples]
    labels = np.asarray(kept)
    legal = labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer)
    return labels.astype(np.int64) if legal else np.full(len(dataset), -1)
