"""Steps that were skipped because a loss or a gradient was not finite."""

import logging
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger("ssl_vit")


class SkippedSteps(pl.Callback):
    """Lists steps whose loss or gradient was not finite, and logs them.

    One JSON object a line: {"step", "epoch", "why", "images", "rank"}, from every rank. lines: a JsonLines.
    """

    def __init__(self, lines: Any) -> None:
        self.lines = lines

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        guard = pl_module.guard
        found, guard.found = guard.found, []
        for skipped in found:
            if trainer.is_global_zero:
                why = f"{skipped.why} not finite ({guard.in_a_row} in a row)"
                log.warning(f"step {skipped.step} is skipped: {why}; its images: {self.lines.path}")
            self.lines.append(asdict(skipped) | {"rank": trainer.global_rank})
