"""Steps that were skipped because a loss or a gradient was not finite."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ssl_vit.run.files import SKIPPED_STEPS, append_json

log = logging.getLogger("ssl_vit")


class SkippedSteps(pl.Callback):
    """Lists steps whose loss or gradient was not finite, in the log and in skipped_steps.jsonl of the log directory.

    One JSON object a line: {"step", "epoch", "why", "images", "rank"}, from every rank.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / SKIPPED_STEPS

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        guard = pl_module.guard
        found, guard.found = guard.found, []
        for skipped in found:
            if trainer.is_global_zero:
                why = f"{skipped.why} not finite ({guard.in_a_row} in a row)"
                log.warning(f"step {skipped.step} is skipped: {why}; its images: {self.path}")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                append_json(self.path, asdict(skipped) | {"rank": trainer.global_rank})
            except OSError as error:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
