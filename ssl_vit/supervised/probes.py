"""The evaluations as functions: an encoder and labeled images in, figures and predictions out; nothing is written.

Letters: n training images, m test images, H x W pixels, C channels, K classes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ssl_vit.config.auto_source import AUTO
from ssl_vit.config.evaluation_schema import EvaluationConfig, KNNConfig, LinearProbeConfig
from ssl_vit.config.schema import DataConfig, Pool
from ssl_vit.config.values import described
from ssl_vit.data.rng import seeded_globals
from ssl_vit.data.sources.base import Split
from ssl_vit.evaluate.backbones import Backbone, EncoderBackbone
from ssl_vit.evaluate.evaluation import Evaluation, readout_of
from ssl_vit.evaluate.features import Resources, local_device
from ssl_vit.evaluate.metrics import figures
from ssl_vit.methods.base import Method
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.supervised.report import evaluator_of, images_for, open_backbone, with_controls

OF_THE_RUN = ("batch_size", "eval_crop", "white_16bit", "cache_gb", "on_error", "max_unreadable")
"""Settings of data that an evaluation takes from the encoder's training, whatever its images are."""


@dataclass(frozen=True)
class ProbeScores:
    """What an evaluation finds, in its figures the same as the command's JSON."""

    task: str
    top1: float
    """Fraction of the test images whose most probable class is theirs."""
    interval: tuple[float, float]
    """Of top1: 95 % (Wilson), about the test images."""
    top5: float | None
    """Likewise among the five most probable; None for five classes or fewer."""
    calibration_error: float
    protocol: str
    head: dict[str, Any]
    """What was read, and chosen."""
    classes: list[str]
    labels: Int64[np.ndarray, " m"]
    """Of the test images, as numbers of classes."""
    predictions: Int64[np.ndarray, " m"]
    probabilities: Float32[np.ndarray, "m K"]
    seconds: float
    controls: dict[str, "ProbeScores"] = field(default_factory=dict)
    """The same of a random encoder and of raw pixels, with controls=True."""

    def summary(self) -> str:
        """The figures in one line."""
        low, high = self.interval
        beside = "".join(f"; {name} {each.top1:.1%}" for name, each in self.controls.items())
        images = f"{len(self.labels):,} test images of {len(self.classes)} classes"
        return f"{self.task}: top-1 {self.top1:.1%} ({low:.1%} .. {high:.1%}), {images}, {self.protocol}{beside}"


def linear_probe(
    encoder: Any,
    train: Any,
    test: Any = None,
    protocol: str = "auto",
    *,
    pool: Pool | None = None,
    layer: int | str | None = None,
    blocks: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    base_lr: float | None = None,
    train_limit: int = 10000,
    seed: int = 0,
    controls: bool = False,
    data: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> ProbeScores:
    """A linear classifier on the frozen features of labeled images: what `linear_probe` finds of the same images.

    encoder: a VisionTransformer, a Method, or what the command takes: a run, a file, timm:NAME. It stays as it is.
    train, test: a map-style Dataset of (image, label), an image being PIL, a uint8 tensor [C, H, W] or a uint8 array
    [H, W, C]; a pair of uint8 arrays or tensors (images [n, H, W, C] or [n, C, H, W], labels [n]); or a path. Without
    test it is the test split of the path, or a held-out fifth.
    data: settings of `data.`, such as mean and std where the encoder does not say them; all others as the command has
    them. progress: lines on standard error. ValueError, OSError: as the command.
    """
    config = LinearProbeConfig(
        protocol=protocol,
        pool=pool,
        layer=layer,  # pyright: ignore[reportArgumentType]
        blocks=blocks,
        epochs=epochs,
        batch_size=batch_size,
        base_lr=base_lr,
        train_limit=train_limit,
        seed=seed,
        controls=controls,
    )
    return scores_on(config, encoder, train, test, data, progress)


def knn(
    encoder: Any,
    train: Any,
    test: Any = None,
    neighbors: int | Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    *,
    pool: Pool | None = None,
    layer: int | str | None = None,
    blocks: int | None = None,
    train_limit: int = 10000,
    seed: int = 0,
    controls: bool = False,
    data: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> ProbeScores:
    """Weighted k-nearest neighbors of frozen features, as the command `knn`; the rest as of linear_probe."""
    config = KNNConfig(
        neighbors=[neighbors] if isinstance(neighbors, int) else list(neighbors),
        temperature=temperature,
        pool=pool,
        layer=layer,  # pyright: ignore[reportArgumentType]
        blocks=blocks,
        train_limit=train_limit,
        seed=seed,
        controls=controls,
    )
    return scores_on(config, encoder, train, test, data, progress)


def scores_on(
    config: EvaluationConfig, encoder: Any, train: Any, test: Any, data: Mapping[str, Any] | None, progress: bool
) -> ProbeScores:
    """Evaluate by a command's settings, but for encoder and data, which are given as linear_probe takes them."""
    with seeded_globals(config.seed, torch.device(local_device())):
        backbone, name = backbone_of(encoder, config)
        where = f"encoder={name}"
        readout = readout_of(backbone, config, where)
        if isinstance(config, LinearProbeConfig) and config.protocol == "auto":
            config = replace(config, protocol=readout.protocol)
        known = {key: value for key, value in backbone.metadata.get("data", {}).items() if key in OF_THE_RUN}
        config.data = described(config.data, known | dict(data or {}) | paths_of(train, test), where)
        images = images_for(backbone, name, config)
        given: dict[Split, Any] = {"train": train, "test": test}
        for split, source in given.items():
            if not isinstance(source, str | Path | None):
                images.datasets[split] = as_dataset(source, backbone.channels)
        own = None if isinstance(encoder, str | Path) else next(backbone.module.parameters(), None)
        device = torch.device(local_device()) if own is None else own.device  # a user's own stays where it is
        evaluation, rows = Evaluation(config, images, Resources(str(device)), readout), dict[str, ProbeScores]()
        for label, each in with_controls(backbone, config).items():
            evaluation.title = label if progress else ""
            modes = [(module, module.training) for module in each.module.modules()]
            each.module.to(device).eval()
            try:
                rows[label] = row_of(evaluation, each)
            finally:
                for module, training in modes:
                    module.training = training
    found = rows.pop("encoder")
    found.controls.update(rows)
    return found


def row_of(evaluation: Evaluation, backbone: Backbone) -> ProbeScores:
    """The figures of a backbone, and its predictions."""
    started, config, labels, classes = time.time(), evaluation.config, evaluation.test_labels, evaluation.data.classes
    result = evaluator_of(config)(evaluation, backbone)
    probabilities = result.probabilities.float().cpu()
    known = figures(probabilities, labels, classes)
    low, high = known["top1_interval"]
    return ProbeScores(
        task=config.task,
        top1=known["top1"],
        interval=(low, high),
        top5=known["top5"],
        calibration_error=known["calibration_error"],
        protocol=f"{result.how}; {len(evaluation.train_labels)} training images; {evaluation.data.split_note}",
        head=result.head,
        classes=list(classes),
        labels=labels.numpy(),
        predictions=probabilities.argmax(1).numpy(),
        probabilities=probabilities.numpy(),
        seconds=round(time.time() - started, 1),
    )


def backbone_of(encoder: Any, config: EvaluationConfig) -> tuple[Backbone, str]:
    """The features of what a user calls an encoder, and what errors call it."""
    if isinstance(encoder, str | Path):
        config.encoder = str(encoder)
        return open_backbone(config)[:2]
    name = type(encoder).__name__
    if isinstance(encoder, Backbone):
        return encoder, name
    if isinstance(encoder, Method):
        backbone = EncoderBackbone(encoder.export_encoder())
        data = getattr(getattr(encoder._trainer, "datamodule", None), "data", None)
        own = {"readout": asdict(encoder.readout), "data": asdict(data) if isinstance(data, DataConfig) else {}}
        backbone.metadata = backbone.metadata | own | encoder.statistics()
        return backbone, name
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(f"an encoder is a VisionTransformer, a Method, a path or timm:NAME, not a {name}")
    return EncoderBackbone(encoder), name


def paths_of(train: Any, test: Any) -> dict[str, str]:
    """Settings of data for images at paths; where they are a Dataset its name stands for one in errors."""
    if not isinstance(train, str | Path):
        named = {"source": "folder", "path": type(train).__name__}
    else:
        named = {"source": AUTO, "path": str(train)}
    return named | ({"test_path": str(test)} if isinstance(test, str | Path) else {})


class ImageArray:
    """Images and labels in arrays as a map-style Dataset; they are not copied."""

    def __init__(self, images: Any, labels: Any, channels: int) -> None:
        """ValueError: they are no uint8 images, or not as many as labels."""
        self.images, self.targets = (
            values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values) for values in (images, labels)
        )
        shape, dtype = list(self.images.shape), self.images.dtype
        if dtype != np.uint8 or self.images.ndim not in (3, 4):
            raise ValueError(f"images {dtype} {shape} must be uint8 [n, H, W, C], [n, C, H, W] or [n, H, W]")
        if self.targets.shape != (len(self.images),):
            raise ValueError(f"labels {list(self.targets.shape)} must be one for each of {len(self.images)} images")
        sizes = {channels, 1, 3}
        first = self.images.ndim == 4 and shape[1] in sizes  # or last, which is an array's custom, a tensor's is first
        if first and (isinstance(images, Tensor) or shape[3] not in sizes):
            self.images = self.images.transpose(0, 2, 3, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.images[index], self.targets[index]


def as_dataset(source: Any, channels: int) -> Any:
    """A map-style Dataset: the one given, or that of a pair of arrays."""
    pair = isinstance(source, tuple | list) and len(source) == 2 and hasattr(source[0], "ndim")
    return ImageArray(source[0], source[1], channels) if pair else source
