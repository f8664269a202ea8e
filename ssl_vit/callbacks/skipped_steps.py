"""Lists the steps that were skipped because a loss or a gradient was not finite."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger("ssl_vit")


class SkippedSteps(pl.Callback):
    """One JSON object a line: {"step", "epoch", "why", "images", "rank"}, from every rank; each is logged too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found, pl_module.guard.found = pl_module.guard.found, []
        for skipped in found:
            if trainer.is_global_zero:
                row = f"{pl_module.guard.in_a_row} in a row"
                log.warning(
                    f"step {skipped.step} is skipped: {skipped.why} not finite ({row}); its images: {self.path}"
                )
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(asdict(skipped) | {"rank": trainer.global_rank}) + "\n")
            except OSError as error:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
