"""An exam: the images, what is asked, and where it is worked out; the same one for an encoder and its controls.

Letters: n training images, m test images, K classes, D feature channels.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.evaluation_schema import EvaluationConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources.base import Split
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.features import FeatureBank, Resources, cover, extract, feature_extractor

SEEN = 100_000
"""Images that a head is trained on at least, where its protocol says no more."""
ConfigT = TypeVar("ConfigT", bound=EvaluationConfig)


@dataclass(frozen=True)
class Result:
    """What a protocol says of a subject."""

    probabilities: Float[Tensor, "m K"]
    """Of the test images' classes."""
    how: str
    """The protocol in a few words."""
    head: dict[str, Any]
    """Which feature was read, and what was chosen."""


class Evaluation(Generic[ConfigT]):
    """Labeled images and an evaluation's settings.

    Raises:
        ValueError: the images have no labels, training has one class, or test images a class that it lacks.
    """

    def __init__(self, config: ConfigT, data: ImageDataModule, resources: Resources) -> None:
        self.config, self.data, self.resources = config, data, resources
        require_classes(data, config.train_limit, config.seed)

    @cached_property
    def train_labels(self) -> Int64[Tensor, " n"]:
        """Of the training images, in the order of every bank."""
        return torch.from_numpy(self.data.labels("train", self.config.train_limit, self.config.seed))

    @cached_property
    def test_labels(self) -> Int64[Tensor, " m"]:
        """Of the test images."""
        return torch.from_numpy(self.data.labels("test"))

    @property
    def classes(self) -> int:
        return self.data.num_classes

    def readable(self, backbone: Backbone) -> list[Feature]:
        """The feature that the settings name, by default the mean of the last block's patches.

        With layer=best one for each block, of which held-out training images are to choose.
        """
        pool, layer = self.config.pool or "mean", "last" if self.config.layer is None else self.config.layer
        if layer != "best":
            return [backbone.feature(pool, layer, self.config.blocks or 1)]
        return [backbone.feature(pool, 1 + block, 1) for block in range(backbone.depth)]

    def bank(self, backbone: Backbone, features: list[Feature], split: Split, normed: bool = True) -> FeatureBank:
        """Frozen features of a split's images; ValueError where they are not finite."""
        holds = cover(features)
        limit = self.config.train_limit if split == "train" else 0
        backbone.module.to(self.resources.device).eval()
        extract_features = feature_extractor(backbone, holds, normed)
        values, labels = extract(
            extract_features, self.data, split, limit, self.config.seed, self.resources, f"{split} features"
        )
        require_finite(values)
        return FeatureBank(values, labels, holds)

    def as_classes(self, scores: Float[Tensor, "m _"]) -> Float[Tensor, "m K"]:
        """Scores with a column for every class; those of classes after the last trained one are 0."""
        return F.pad(scores, (0, self.classes - scores.shape[1]))


def require_classes(data: ImageDataModule, limit: int = 0, seed: int | None = None) -> None:
    """ValueError where there is nothing to learn, or something asked that was not taught.

    Args:
        limit, seed: of the training images, as ImageDataModule.labels takes them.
    """
    data.setup()
    path, test_path = data.data.path, data.data.test_path
    if not data.has_labels:
        raise ValueError(
            f"data.path={path} has no labels: give data.path= with a folder for each class, or a parquet file with a "
            "label column"
        )
    taught, asked = set(data.labels("train", limit, seed).tolist()), set(data.labels("test").tolist())
    if len(taught) < 2:
        only = data.classes[taught.pop()]
        raise ValueError(f"data.path={path} has training images of one class alone, {only}: two are needed at least")
    unknown = list(dict.fromkeys([*data.foreign_classes, *(data.classes[label] for label in sorted(asked - taught))]))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        where = f"data.test_path={test_path}" if test_path else f"data.path={path}"
        raise ValueError(
            f"{where}: the test images have the class {', '.join(unknown[:3])}{more}, of which there is no training "
            "image: add some, or leave it out of the test" + (f", or raise train_limit={limit}" if limit else "")
        )


def enough_epochs(count: int, least: int) -> int:
    """Passes over so many training images: `least`, over a small set as many as show SEEN images."""
    return max(least, math.ceil(SEEN / count))


def require_finite(features: Tensor) -> None:
    """ValueError unless every feature is a number."""
    if not all(bool(some.isfinite().all()) for some in features.split(8192)):
        raise ValueError("features are not finite: the encoder's weights are broken; go back to an earlier checkpoint")
