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

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        guard = pl_module.guard
        found, guard.found = guard.found, []
        for skipped in found:
            if trainer.is_global_zero:
                why = f"{skipped.why} not finite ({guard.in_a_row} in a row)"
                log.warning(f"step {skipped.step} is skipped: {why}; its images: {self.path}")
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(asdict(skipped) | {"rank": trainer.global_rank}) + "\n")
            except OSError as error:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
