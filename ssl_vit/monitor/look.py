"""A look every few epochs: pictures that the method draws, health of the features, how good they are with labels."""

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from jaxtyping import Shaped, UInt8
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from ssl_vit.config.schema import MonitorConfig, ReadoutConfig
from ssl_vit.data.module import ImageDataModule
from ssl_vit.evaluate.features import describer, extract, feature_std, rankme
from ssl_vit.evaluate.knn import knn_scores
from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.report import top_k
from ssl_vit.methods.base import Method

log = logging.getLogger("ssl_vit")


def picture_grid(
    columns: dict[str, Shaped[Tensor, "B _ H W"]], mean: list[float], std: list[float]
) -> UInt8[Tensor, "3 height width"]:
    """One row a picture, the columns side by side, in display colours; white lines between.

    A column of floats is normalised as the training pictures are, one of uint8 is shown as it is. Pictures with other
    than 3 channels show their first one in grey.
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


class Look(pl.Callback):
    """Logs `monitor/*` every `every_epochs` epochs and at the end; writes the pictures to <run>/pictures too.

    Labels are used where the data has them, by a classifier on frozen features: no gradient, no random state of the
    training is touched, so a run learns the same with looks and without.
    """

    def __init__(self, config: MonitorConfig, readout: ReadoutConfig, run_dir: Path) -> None:
        self.config, self.readout, self.run_dir = config, readout, run_dir
        self.looked_at = -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Method) -> None:  # pyright: ignore
        if self.config.every_epochs and (trainer.current_epoch + 1) % self.config.every_epochs == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Method) -> None:  # pyright: ignore
        if self.config.every_epochs and self.looked_at != trainer.global_step:
            self.look(trainer, pl_module)

    @torch.no_grad()
    def look(self, trainer: pl.Trainer, pl_module: Method) -> None:
        """Measure and draw, on the first process; the others wait at the next step of the strategy."""
        data: ImageDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not trainer.is_global_zero:
            return
        self.looked_at = trainer.global_step
        training = pl_module.training
        pl_module.eval()
        figures = self.measure(pl_module, data)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        self.draw(trainer, pl_module, data)
        pl_module.train(training)

    def measure(self, method: Method, data: ImageDataModule) -> dict[str, float]:
        """feature_std and rankme always; linear_top1 and knn_top1 where there are labels."""
        config, readout = self.config, self.readout
        describe = describer(method.export_encoder(), readout.pool, readout.blocks)
        train, labels = extract(describe, data, "train", config.train_limit, device=method.device)
        figures = {"monitor/feature_std": float(feature_std(train)), "monitor/rankme": rankme(train)}
        if data.has_labels and len(labels.unique()) > 1 and train.isfinite().all():
            test, test_labels = extract(describe, data, "test", config.test_limit, device=method.device)
            linear = logistic_scores(train, labels, test)
            for name, scores in (("linear", linear), ("knn", knn_scores(train, labels, test))):
                figures[f"monitor/{name}_top1"] = top_k(scores, test_labels, 1) or 0.0
        return figures

    def draw(self, trainer: pl.Trainer, method: Method, data: ImageDataModule) -> None:
        """The method's own pictures of a few test pictures, where it draws any."""
        batch = next(iter(data.eval_dataloader("test", self.config.pictures)))
        images = data.normalize(batch["images"][: self.config.pictures].to(method.device))
        columns = method.pictures(images)
        if not columns:
            return
        grid = picture_grid(columns, data.data.mean, data.data.std)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(" | ".join(columns), grid, trainer.global_step)
        self._keep(grid, trainer.global_step)

    def _keep(self, grid: UInt8[Tensor, "3 height width"], step: int) -> None:
        from torchvision.io import encode_png

        from ssl_vit.runs import write_atomic

        try:
            write_atomic(self.run_dir / "pictures" / f"step-{step:07}.png", encode_png(grid).numpy().tobytes())
        except OSError as error:
            log.warning(f"a picture could not be written: {error}; training goes on")
