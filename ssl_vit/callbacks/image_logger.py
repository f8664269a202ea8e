"""Images that an objective makes of test images, every few epochs: in TensorBoard and as PNG files."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Shaped, UInt8
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from ssl_vit.config.schema import MonitorConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.legend import titled_grid
from ssl_vit.run.files import IMAGES, write_atomic

log = logging.getLogger("ssl_vit")


def image_grid(
    columns: dict[str, Shaped[Tensor, "B _ H W"]], mean: list[float], std: list[float], caption: str = ""
) -> UInt8[Tensor, "3 height width"]:
    """One row an image, the columns side by side under their titles, in display colors, as titled_grid enlarges them.

    A column of floats is normalized as the training images are, one of uint8 is shown as it is. Of channels that are
    not 3 the first is shown in gray.
    """
    shown = []
    for column in columns.values():
        column = column.cpu()
        if column.dtype != torch.uint8:
            column = (column * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]).clamp(0, 1) * 255
        column = column.round().to(torch.uint8)
        shown.append(column if column.shape[1] == 3 else column[:, :1].expand(-1, 3, -1, -1))
    images = [image for row in zip(*shown, strict=True) for image in row]
    return titled_grid(images, [*columns, *[""] * (len(images) - len(columns))], len(columns), caption)


def file_name(objective: str, columns: Iterable[str], step: int | None = None) -> str:
    """Of the PNG: what was trained, the step, and what is seen, such as mae-step-0000100-masked-original.png."""
    at = [] if step is None else [f"step-{step:07}"]
    seen = dict.fromkeys(re.sub(r"\W.*", "", title) for title in columns)  # heads 1 to 12 show one thing
    return f"{'-'.join(filter(None, [objective.lower(), *at, *seen]))[:100]}.png"


def save_image(grid: UInt8[Tensor, "3 height width"], path: Path) -> None:
    """Write a PNG; where that fails the log has the reason and the training goes on."""
    from torchvision.io import encode_png

    try:
        write_atomic(path, encode_png(grid).numpy().tobytes())
    except OSError as error:
        log.warning(f"an image could not be written: {error}; training goes on")


class ImageLogger(pl.Callback):
    """Logs an objective's images every `every_epochs` epochs and at the end: to loggers, and to images/ beside them.

    Nothing where the trainer's data is no ImageDataModule, or has no images to evaluate on.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self.config, self.logged_at = config, -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / IMAGES

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # pyright: ignore
        if (trainer.current_epoch + 1) % self.config.every_epochs == 0:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # pyright: ignore
        if self.logged_at != trainer.global_step:
            self.evaluate(trainer, pl_module)

    @torch.no_grad()
    def evaluate(self, trainer: Any, pl_module: Any, draws: bool = True) -> None:
        """Log metrics, and images if it draws, on the first rank; the others wait at the next step of the strategy."""
        self.logged_at = trainer.global_step
        objective, data = pl_module.whole(), trainer.datamodule
        if objective is None or not (isinstance(data, ImageDataModule) and data.can_evaluate):
            return
        training = objective.training
        metrics = self.measure(objective.eval(), data)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if draws:
            self.draw(trainer, objective, data)
        objective.train(training)

    def draw(self, trainer: pl.Trainer, objective: Any, data: ImageDataModule) -> None:
        """Log what the objective makes of the first test images."""
        batch, step = next(iter(data.eval_dataloader("test", self.config.images))), trainer.global_step
        pixels = batch["images"][: self.config.images].to(objective.device)
        if not (columns := objective.visualize(data.normalize(pixels), pixels.float() / 255)):
            return
        kind, title = type(objective).__name__, " | ".join(columns)
        grid = image_grid(columns, data.data.mean, data.data.std, f"{kind}, step {step}; a row is a test image")
        save_image(grid, self.folder / file_name(kind, columns, step))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(title, grid, step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(title, [grid.permute(1, 2, 0).numpy()], step)

    def measure(self, objective: Any, data: ImageDataModule) -> dict[str, float]:
        """Metrics to log as monitor/*; none here."""
        return {}
