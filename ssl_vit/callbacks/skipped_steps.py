"""Writes down the steps that were left out because a loss or a gradient was not finite."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger("ssl_vit")


class SkippedSteps(pl.Callback):
    """One JSON object a line and process: {"step", "epoch", "why", "images", "rank"}; each is said in the log too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found, pl_module.guard.found = pl_module.guard.found, []
        for bad in found:
            if trainer.is_global_zero:
                row = f"{pl_module.guard.in_a_row} in a row"
                log.warning(f"step {bad.step} is left out: {bad.why} not finite ({row}); its images: {self.path}")
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(asdict(bad) | {"rank": trainer.global_rank}) + "\n")
            except OSError as error:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
