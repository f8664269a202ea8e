"""What the data costs: images per second, the wait for them, and those that could not be read."""

import time
from typing import Any

import pytorch_lightning as pl

from ssl_vit.data.loader import batch_images, batch_length


class Throughput(pl.Callback):
    """Logs metrics of an ImageDataModule's batches, the first two as means since the last log.

    `throughput/images_per_second`, of all ranks. `throughput/data_wait`: fraction of the time, in [0, 1]; that between
    two batches counts as waiting for data. `data/unreadable_images`: how many images any rank of the run could not read
    so far, each counted once.
    """

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        """A run that is resumed inside an epoch does not start one."""
        self.passed, self.waited, self.images = 0.0, 0.0, 0
        self.batch_ended = time.perf_counter()

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        """What happened between two epochs was no training."""
        self.batch_ended = time.perf_counter()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.waited += time.perf_counter() - self.batch_ended

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self.batch_ended = self.batch_ended, time.perf_counter()
        self.passed += self.batch_ended - before
        self.images += batch_length(batch_images(batch)) * trainer.world_size
        if trainer.fit_loop._should_accumulate() or trainer.global_step % trainer.log_every_n_steps:
            return  # as Lightning, which keeps what is logged elsewhere for no logger
        rates = {"images_per_second": self.images / self.passed, "data_wait": self.waited / self.passed}
        pl_module.log_dict({f"throughput/{name}": value for name, value in rates.items()})
        pl_module.log("data/unreadable_images", float(trainer.datamodule.read_errors.count()))
        self.on_train_start()
