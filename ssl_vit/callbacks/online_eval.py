"""A look every few epochs: images that the method draws, health of the features, how good they are with labels."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Shaped, UInt8
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from ssl_vit.config.schema import MonitorConfig, ReadoutConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.features import (
    FeatureBank,
    Resources,
    best_feature,
    cover,
    extract_features,
    feature_std,
    rankme,
)
from ssl_vit.evaluate.knn import knn_scores
from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.metrics import top_k
from ssl_vit.run.files import write_atomic

log = logging.getLogger("ssl_vit")


def image_grid(
    columns: dict[str, Shaped[Tensor, "B _ H W"]], mean: list[float], std: list[float]
) -> UInt8[Tensor, "3 height width"]:
    """One row an image, the columns side by side, in display colors; white lines between.

    A column of floats is normalized as the training images are, one of uint8 is shown as it is. Images with other
    than 3 channels show their first one in gray.
    """
    from torchvision.utils import make_grid

    shape, shown = (1, -1, 1, 1), []
    for column in columns.values():
        column = column.cpu()
        if column.dtype != torch.uint8:
            column = (column * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1) * 255
        column = column.round().to(torch.uint8)
        shown.append(column if column.shape[1] == 3 else column[:, :1].expand(-1, 3, -1, -1))
    return make_grid(torch.stack(shown, dim=1).flatten(0, 1), nrow=len(columns), padding=2, pad_value=255)


class ImageLogger(pl.Callback):
    """Draws an objective's images every `every_epochs` epochs and at the end: TensorBoard, and <run>/images."""

    def __init__(self, config: MonitorConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.logged_at = -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # pyright: ignore
        if self.config.every_epochs and (trainer.current_epoch + 1) % self.config.every_epochs == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # pyright: ignore
        if self.config.every_epochs and self.logged_at != trainer.global_step:
            self.look(trainer, pl_module)

    @torch.no_grad()
    def look(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure and draw, on the first process; the others wait at the next step of the strategy."""
        data: ImageDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.logged_at = trainer.global_step
        judged = pl_module.whole()
        if judged is None:
            return
        training = judged.training
        judged.eval()
        figures = self.measure(judged, data)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        self.draw(trainer, judged, data)
        judged.train(training)

    def measure(self, objective: Any, data: ImageDataModule) -> dict[str, float]:
        """Figures to log as monitor/*; none here."""
        return {}

    def draw(self, trainer: pl.Trainer, objective: Any, data: ImageDataModule) -> None:
        """The objective's own images of a few test images, where it draws any."""
        batch = next(iter(data.eval_dataloader("test", self.config.images)))
        pixels = batch["images"][: self.config.images].to(objective.device)
        columns = objective.visualize(data.normalize(pixels), pixels.float() / 255)
        if not columns:
            return
        grid = image_grid(columns, data.data.mean, data.data.std)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(" | ".join(columns), grid, trainer.global_step)
        save_image(grid, self.run_dir / "images" / f"step-{trainer.global_step:07}.png")


class OnlineProbe(ImageLogger):
    """Judges the encoder as well: monitor/feature_std and rankme, and with labels linear_top1 and knn_top1.

    Labels are used by a classifier on frozen features: no gradient, no random state of the training is touched, so a
    run learns the same with looks and without.
    """

    def __init__(self, config: MonitorConfig, readout: ReadoutConfig, run_dir: Path) -> None:
        super().__init__(config, run_dir)
        self.readout = readout

    def measure(self, objective: Any, data: ImageDataModule) -> dict[str, float]:
        """With readout.layer=best the block is the one whose k-NN is best on held-out training images."""
        config, readout, backbone = self.config, self.readout, EncoderBackbone(objective.export_encoder())
        judged, figures, resources = data.has_labels, dict[str, float](), Resources(str(objective.device))
        choosing = readout.layer == "best"
        layers = range(1, 1 + backbone.depth) if choosing else [readout.layer]
        features = [backbone.feature(readout.pool, layer, readout.blocks) for layer in layers]
        holds = cover(features)
        extractor = backbone.extractor(holds)
        bank = FeatureBank(*extract_features(extractor, data, "train", config.train_limit, resources=resources), holds)
        judged &= len(bank.labels.unique()) > 1 and bool(bank.values.isfinite().all())
        best = features[-1]
        if choosing:
            if judged:
                best, _ = best_feature(lambda *parts: [knn_scores(*parts)], bank, features)
            figures["monitor/layer"] = float(1 + best.blocks[-1])
        train = bank.select(best)
        figures |= {"monitor/feature_std": float(feature_std(train)), "monitor/rankme": rankme(train)}
        if judged:
            values, test_labels = extract_features(extractor, data, "test", config.test_limit, resources=resources)
            test = FeatureBank(values, test_labels, holds).select(best)
            linear, neighbors = (judge(train, bank.labels, test) for judge in (logistic_scores, knn_scores))
            for name, scores in (("linear", linear), ("knn", neighbors)):
                figures[f"monitor/{name}_top1"] = top_k(scores, test_labels, 1) or 0.0
        return figures


def save_image(grid: UInt8[Tensor, "3 height width"], path: Path) -> None:
    """Write a PNG; where that fails the log says so and the training goes on."""
    from torchvision.io import encode_png

    try:
        write_atomic(path, encode_png(grid).numpy().tobytes())
    except OSError as error:
        log.warning(f"an image could not be written: {error}; training goes on")
