"""Images per second, and the fraction of time that the step waits for data."""

import time
from typing import Any

import pytorch_lightning as pl

from ssl_vit.data.loader import batch_images, batch_length


class Throughput(pl.Callback):
    """Logs `throughput/images_per_second` (of all ranks) and `throughput/data_wait` (fraction of the time, in [0, 1]).

    Both are means since the last log. Time between two batches counts as waiting for data.
    """

    def __init__(self) -> None:
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self.since, self.waited, self.images, self.batch_ended = now, 0.0, 0, now

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset(time.perf_counter())  # what happened between two epochs was no training

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited += time.perf_counter() - self.batch_ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.images += batch_length(batch_images(batch)) * trainer.world_size
        self.batch_ended = now
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            passed = now - self.since
            rates = {"images_per_second": self.images / passed, "data_wait": self.waited / passed}
            pl_module.log_dict({f"throughput/{name}": value for name, value in rates.items()})
            self._reset(now)
