"""Checkpoints: written between two steps, whole or not at all, read back, the last few kept; and the stop by a signal.

A checkpoint of step s is written when all that belongs to the step is done: its line in metrics.jsonl, and the
evaluation of an epoch that it ended. So it is written when the next batch is at hand, or at the end.
"""

import io
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from ssl_vit.parallel.distributed import MaxOverRanks
from ssl_vit.run.files import CHECKPOINTS, METRICS, damage, step_of, write_atomic
from ssl_vit.run.signals import Signals, Stopped
from ssl_vit.train.jsonl import JsonLines

log = logging.getLogger("ssl_vit")
MINUTES = 10  # between two checkpoints, where the steps between them are not given
DUE = 1  # requests a checkpoint of all ranks; a signal's number, which is larger, requests a stop


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, reads it back and renames it; else the old one stays."""

    error: OSError | None = None  # of the last one, which is logged

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer, self.error = io.BytesIO(), None
        torch.save(checkpoint, buffer)
        try:
            write_atomic(Path(path), buffer.getvalue(), damage)
        except OSError as error:  # not raised: the other ranks wait for this one behind the writing
            log.error(f"checkpoint: {error}")
            self.error = error


class Checkpoints(Checkpoint):
    """Writes checkpoints/step-<steps>.ckpt and lets a signal stop the run after one.

    While steps are skipped (Guard) none is due: a run that goes back goes to one from before them. After an error
    between two steps (an image that cannot be read) a single process writes one too; within a step the weights may have
    moved and their average not yet.

    every_steps: optimizer steps between two checkpoints; None: ten minutes. keep: how many are kept, the newest.
    step: optimizer steps that are done; checkpoints of later ones are of an attempt that was not resumed.
    """

    def __init__(self, run_dir: Path, every_steps: int | None, keep: int, step: int = 0) -> None:
        self.run_dir, self.every_steps, self.keep = run_dir, every_steps, keep
        self.metrics, self.writer, self.signals = JsonLines(run_dir / METRICS), AtomicCheckpoints(), Signals()
        self.begun = False  # whether all that is resumed has been loaded
        self.inside = False  # whether a step is being taken
        self._step = self._saved_step = step
        self._metrics_bytes = None if step else 0  # size of metrics.jsonl when the resumed checkpoint was written
        found = sorted((run_dir / CHECKPOINTS).glob("step-*.ckpt"), key=step_of)
        self._kept = [path for path in found if step_of(path) <= step]

    def state_dict(self) -> dict[str, Any]:
        return {"metrics_bytes": self.metrics.size()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics_bytes = state_dict["metrics_bytes"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new run drops the lines of an attempt that left no checkpoint, before its first evaluation has one."""
        if trainer.is_global_zero and self._metrics_bytes is not None:
            self.metrics.cut(self._metrics_bytes)
        self._metrics_bytes = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.listen(trainer.is_global_zero)
        self._max_over_ranks, self._saved_at, self.begun = MaxOverRanks(), time.monotonic(), True
        if trainer.is_global_zero and self._metrics_bytes is not None:
            self.metrics.cut(self._metrics_bytes)

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        self.inside = False

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        # The step that loggers write; after some resumes Lightning's count of it is one too many.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if trainer.global_step > self._step:  # and not between accumulated batches
            self._step = trainer.global_step
            self._between_steps(trainer)
        self.inside = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.inside = trainer.global_step == self._step or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch

    def _between_steps(self, trainer: Any) -> None:
        request = self.signals.received
        by_clock = trainer.is_global_zero and not self.every_steps
        if not request and by_clock and time.monotonic() - self._saved_at >= 60 * MINUTES:
            request, self._saved_at = DUE, time.monotonic()
        request = self._max_over_ranks.reduce(request)
        due = request == DUE or (self.every_steps and self._step % self.every_steps == 0)
        if request > DUE or (due and not trainer.lightning_module.guard.in_a_row):
            self.save(trainer)
        if request > DUE:
            raise Stopped(request, self._step)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        alone = trainer.world_size == 1  # else the others would never join in saving
        if isinstance(exception, Exception) and alone and not self.inside and trainer.global_step > self._saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> OSError | None:
        """Write a checkpoint and drop the oldest; every rank calls it. Returns, on the first, what prevented it."""
        path = self.run_dir / CHECKPOINTS / f"step-{trainer.global_step:07}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and self.writer.error is None:
            self._kept = [*(kept for kept in self._kept if kept != path), path][-self.keep :]
            # Others are of steps that were not resumed, or the beginning of one by a process that was killed.
            found = {*path.parent.glob("step-*.ckpt"), *path.parent.glob(".step-*.ckpt.*")}
            for other in found.difference(self._kept):
                other.unlink(missing_ok=True)
        self._saved_step = trainer.global_step
        return self.writer.error

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        repair_counts(checkpoint["loops"]["fit_loop"])


def repair_counts(progress: dict[str, Any]) -> None:
    """Correct Lightning's counts, in a checkpoint between two steps, so that a resumed run takes the next batch.

    Lightning counts an epoch as done that a limit of steps or time has cut short. After a whole epoch, and with
    trainer.max_steps, it would resume in the middle of the next one.
    """
    epoch, batch = progress["epoch_progress"], progress["epoch_loop.batch_progress"]
    for counts in (batch["total"], batch["current"]):  # of the batch that is at hand, and not trained on
        counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
    ended = epoch["current"]["processed"] == epoch["current"]["ready"]
    if ended and batch["is_last_batch"]:
        batch["current"] = dict.fromkeys(batch["current"], 0)
        batch["is_last_batch"] = False
    elif ended and batch["current"]["completed"]:
        for counts in epoch.values():
            counts["processed"] = counts["completed"] = counts["ready"] - 1
