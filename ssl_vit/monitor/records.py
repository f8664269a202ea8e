"""What a run leaves on disk while it goes: metrics.jsonl, and checkpoints that are whole or absent."""

import io
import json
import logging
from math import isfinite
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_vit.guard import DivergenceError
from ssl_vit.runs import write_atomic

log = logging.getLogger("ssl_vit")


class JsonLines(Logger):
    """One JSON object per logged step: {"step": .., "train/loss": .., ...}, appended and flushed at once.

    What is no finite number is null, as JSON has it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.failed = path, False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        figures = {name: float(value) for name, value in metrics.items()}
        self._append({"step": step} | {name: value if isfinite(value) else None for name, value in figures.items()})

    def log_words(self, words: dict[str, str], step: int) -> None:
        """Append {"step": .., name: word}, such as a verdict."""
        self._append({"step": step, **words})

    def _append(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            if not self.failed:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
            self.failed = True

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""


class Checkpoints(ModelCheckpoint):
    """Lightning's, but none while steps are left out or when that ends the run, which goes back to one from before."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if not pl_module.guard.in_a_row:
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, DivergenceError):
            super().on_exception(trainer, pl_module, exception)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; on a full disk keeps the last one, says so and goes on."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_atomic(Path(path), buffer.getvalue())
        except OSError as error:
            log.error(f"checkpoint: {error}; the run goes on")
