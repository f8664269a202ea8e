"""Images that could not be read, counted beside the other metrics."""

from typing import Any

import pytorch_lightning as pl

from ssl_vit.data.datamodule import ImageDataModule


class UnreadableImages(pl.Callback):
    """Logs `data/unreadable_images`: how many images any rank of the run could not read so far, each counted once."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            data: ImageDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            pl_module.log("data/unreadable_images", float(data.read_errors.count()))
