"""An evaluation: labeled images, settings and resources; how a head is trained in it.

Letters: n training images, m test images, K classes, D feature channels.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from ssl_vit.config.checks import ConfigError, require
from ssl_vit.config.evaluation_schema import EvaluationConfig, LinearProbeConfig
from ssl_vit.config.schema import ReadoutConfig
from ssl_vit.config.values import described
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources.base import Split
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.features import FeatureBank, Resources, best_feature, cover, extract_features, waiting
from ssl_vit.optim.param_groups import scaled_lr

SEEN = 100_000  # images that a head is trained on at least, where its protocol has no more
PASSES = 70  # over a set so small that they are fewer images
ConfigT = TypeVar("ConfigT", bound=EvaluationConfig)


@dataclass(frozen=True)
class Result:
    """What a protocol finds of a backbone."""

    probabilities: Float[Tensor, "m K"]  # of the test images' classes
    how: str  # the protocol in short
    head: dict[str, Any]  # which feature was read, and what was chosen


class Evaluation(Generic[ConfigT]):
    """Labeled images and an evaluation's settings; ValueError as require_classes.

    readout: what is read where the settings are silent; best stands for the last block with shots= or fraction=.
    """

    title = ""  # of what is evaluated, which begins the lines of its progress; empty: it is silent

    def __init__(
        self, config: ConfigT, data: ImageDataModule, resources: Resources, readout: ReadoutConfig | None = None
    ) -> None:
        self.config, self.data, self.resources = config, data, resources
        self.readout = readout or ReadoutConfig()
        require_classes(data, config.train_limit, config.seed)
        self.classes = data.num_classes

    @cached_property
    def train_labels(self) -> Int64[Tensor, " n"]:
        """Of the training images, in the order of every bank."""
        return torch.from_numpy(self.data.labels("train", self.config.train_limit, self.config.seed))

    @cached_property
    def test_labels(self) -> Int64[Tensor, " m"]:
        """Of the test images."""
        return torch.from_numpy(self.data.labels("test"))

    def readable(self, backbone: Backbone) -> list[Feature]:
        """The feature that the settings, else the readout, name; of each block with layer=best."""
        config, readout = self.config, self.readout
        layer = config.layer or ("last" if config.few and readout.layer == "best" else readout.layer)
        blocks = config.blocks or (1 if layer == "best" else readout.blocks)
        layers = range(1, 1 + backbone.depth) if layer == "best" else [layer]
        return [backbone.feature(config.pool or readout.pool, layer, blocks) for layer in layers]

    def bank(self, backbone: Backbone, features: list[Feature], split: Split, normed: bool = True) -> FeatureBank:
        """Frozen features of a split's images; ValueError where they are not finite."""
        holds = cover(features)
        return FeatureBank(*self.extract(backbone.extractor(holds, normed), split), holds)

    def banks(self, backbone: Backbone, features: list[Feature]) -> Iterator[FeatureBank]:
        """Frozen features of the training images, then of the test images."""
        return (self.bank(backbone, features, split) for split in ("train", "test"))

    def extract(
        self, extractor: Callable[[Tensor], Tensor], split: Split
    ) -> tuple[Shaped[Tensor, "n ..."], Int64[Tensor, " n"]]:
        """What an extractor makes of a split's images, and labels; ValueError where it is not finite."""
        limit = self.config.train_limit if split == "train" else 0
        bar = self.bar(f"{split} features")
        values, labels = extract_features(extractor, self.data, split, limit, self.config.seed, self.resources, bar)
        if not all(bool(some.isfinite().all()) for some in values.split(8192)):
            advice = "the encoder's weights are damaged; go back to an earlier checkpoint"
            raise ValueError(f"features are not finite: {advice}")
        return values, labels

    def bar(self, work: str) -> str:
        """The name of a piece of work in the lines of its progress; empty where that is not to be shown."""
        return self.title and f"{self.title}: {work}"

    def best_of(
        self, backbone: Backbone, scores_of: Callable[[Tensor, Tensor, Tensor], list[Tensor]], count: int = 1
    ) -> tuple[Float[Tensor, "m K"], Feature, int]:
        """Test scores of one of `count` classifiers on a readable feature, the feature, the classifier's number.

        Where there are several of either, held-out training images choose. scores_of: as best_feature takes it.
        """
        features, which = self.readable(backbone), 0
        train, test = self.banks(backbone, features)
        best = features[0]
        with waiting(self.bar("classifying")):
            if len(features) * count > 1:
                best, which = best_feature(scores_of, train, features, self.config.seed)
            scores = scores_of(train.select(best), train.labels, test.select(best))[which]
        return self.as_classes(scores), best, which

    def as_classes(self, scores: Float[Tensor, "m _"]) -> Float[Tensor, "m K"]:
        """Scores with a column for every class; those of classes after the last trained one are 0."""
        return F.pad(scores, (0, self.classes - scores.shape[1]))


def readout_of(backbone: Backbone, config: EvaluationConfig, where: str) -> ReadoutConfig:
    """What the evaluation of an encoder's own run reads, by protocols that read as it says; ConfigError for no such.

    where: begins its line.
    """
    reads = config.as_trained or getattr(config, "protocol", "") == "auto"
    readout = described(ReadoutConfig(), backbone.metadata.get("readout", {}) if reads else {}, where)
    for name, blocks in (("blocks", config.blocks or 1), ("readout.blocks", readout.blocks)):
        require(blocks <= backbone.depth, name, blocks, f"at most {backbone.depth}, the encoder's blocks", ConfigError)
    return readout


def require_classes(data: ImageDataModule, limit: int = 0, seed: int | None = None) -> None:
    """ValueError without labels, with one training class alone, or with a test class that training lacks."""
    data.setup()
    path, test_path = data.data.path, data.data.test_path
    if not data.has_labels:
        why = f" ({data.splits.label_note})" * bool(data.splits.label_note)
        raise ValueError(
            f"data.path={path} has no labels{why}: give data.path= with a folder for each class, or a parquet file "
            "with a label column"
        )
    trained, tested = set(data.labels("train", limit, seed).tolist()), set(data.labels("test").tolist())
    if len(trained) < 2:
        only = data.classes[trained.pop()]
        raise ValueError(f"data.path={path} has training images of one class alone, {only}: two are needed at least")
    unknown = list(dict.fromkeys([*data.foreign_classes, *(data.classes[label] for label in sorted(tested - trained))]))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        where = f"data.test_path={test_path}" if test_path else f"data.path={path}"
        raise ValueError(
            f"{where}: the test images have the class {', '.join(unknown[:3])}{more}, of which there is no training "
            "image: add some, or leave it out of the test" + (f", or raise train_limit={limit}" if limit else "")
        )


def schedule_of(evaluation: Evaluation[LinearProbeConfig], seen: int = 0) -> tuple[int, int, float]:
    """(epochs, images a step, peak learning rate): as set, else the protocol's.

    Its epochs show `seen` images at least, but in at most PASSES over them: the work follows from their number.
    """
    config, count = evaluation.config, len(evaluation.train_labels)
    epochs, batch_size, base_lr = config.schedule
    batch_size, most = min(batch_size, count), min(PASSES, math.ceil(seen / count))
    return config.epochs or max(epochs, most), batch_size, scaled_lr(base_lr, batch_size)


def shuffled_rows(rows: Int64[Tensor, " n"], seed: int, epochs: int, batch_size: int) -> Iterator[Int64[Tensor, " _"]]:
    """The rows in the random order of each epoch, a batch at a time; the last, smaller one is kept."""
    for epoch in range(epochs):
        yield from rows[torch.from_numpy(permutation(seed, epoch, len(rows)))].split(batch_size)


def train_head(
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Float[Tensor, ""]],
    rate: Callable[[int], float],
) -> None:
    """A step for each batch whose loss has a gradient, at the optimizer's learning rate times rate(batches before)."""
    peak = optimizer.param_groups[0]["lr"]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step)
        loss = loss_of(batch)
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
