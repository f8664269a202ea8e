"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column
from torch import Tensor

from ssl_vit.callbacks.collapse import CollapseMonitor
from ssl_vit.optim.progress import fraction_done

METRICS = {
    "throughput/images_per_second": "{:,.0f} images/s",
    "throughput/data_wait": "data wait {:.0%}",
    "monitor/linear_top1": "probe {:.3f}",
    "monitor/knn_top1": "k-NN {:.3f}",
    "monitor/top1": "top-1 {:.3f}",
}
SECONDS_PER_LINE, SECONDS_PER_REDRAW = 10.0, 0.5
BUSY = 3.0  # times that steps take longer than they did, from which on the line says so
FEWEST_STEPS = 5  # whose time says how fast a machine is


class ProgressPrinter(pl.Callback):
    """Epoch, step, loss, lr, images/s, fraction of time waiting for data, diagnosis, time left; on the first rank.

    The loss is the mean of this rank's batches since the last line; the device is waited for only where a line is due.

    Where steps take three times as long as they did, other work keeps the machine busy, and the line says so.
    """

    bar: Progress | None = None
    started: float | None = None  # not where a resumed run has reached its end before
    fraction_before: float | None = None  # of a resumed run
    fastest = float("inf")  # mean seconds of a batch, of the lines so far
    spent, batches = 0.0, 0  # since the last line; inside of batches alone
    losses: Tensor | None = None  # sum and number since the last line, of those that are finite; on the device
    loss = float("nan")  # their mean, of the last line

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.printed = time.monotonic()
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
            text = TextColumn("{task.description}", table_column=Column(ratio=1))  # wrapped, in a narrow terminal
            self.bar = Progress(*columns, text, expand=True)
            self.bar.start()
            self.bar.add_task("", total=1.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.fraction_before is None:  # which the module knows after on_train_start
            self.fraction_before = fraction_done(trainer, broadcast=False)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.batch_began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any = None, outputs: Any = None, batch: Any = None, batch_idx: int = 0
    ) -> None:
        if trainer.is_global_zero and outputs:
            loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches  # by which Lightning divides it
            own = torch.stack([loss.nan_to_num(0.0, 0.0, 0.0), loss.isfinite().float()])
            self.losses = own if self.losses is None else self.losses + own
        self.spent, self.batches = self.spent + time.monotonic() - self.batch_began, self.batches + 1
        if time.monotonic() - self.printed >= (SECONDS_PER_REDRAW if self.bar else SECONDS_PER_LINE):
            self.printed = time.monotonic()
            self._print(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # the last evaluation is done
        if self.started is not None:
            self._print(trainer)
        self.on_exception()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        if self.bar:
            self.bar.stop()

    def _print(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        fraction = fraction_done(trainer, broadcast=False)  # the other ranks do not call it
        gained = max(1e-9, fraction - (self.fraction_before or 0.0))
        left = timedelta(seconds=int((time.monotonic() - (self.started or 0.0)) * (1 - fraction) / gained))
        known = trainer.callback_metrics
        fields = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}", *self._pace(trainer)]
        fields += [text.format(float(known[key])) for key, text in METRICS.items() if key in known]
        fields += [str(c) for c in trainer.callbacks if isinstance(c, CollapseMonitor) and c.diagnosis]  # pyright: ignore
        fields += [f"{left} left"]
        fields += self._slowdown()
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=fraction, description="  ".join(fields))
        else:
            print(f"{fraction:4.0%}  " + "  ".join(fields), flush=True)

    def _pace(self, trainer: Any) -> list[str]:
        """Loss and learning rate; nothing before the first batch."""
        if self.losses is None:
            return []
        total, count = self.losses.tolist()
        if count:
            self.loss = total / count
        self.losses = torch.zeros_like(self.losses)
        rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        return [f"loss {self.loss:.4f}", f"lr {rate:.2e}"]

    def _slowdown(self) -> list[str]:
        """What the line says of a busy machine, as far as the batches since the last line are enough to tell."""
        if self.batches < FEWEST_STEPS:
            return []
        seconds, self.spent, self.batches = self.spent / self.batches, 0.0, 0
        self.fastest = min(self.fastest, seconds)
        times = seconds / self.fastest
        return [f"the machine is busy: steps take {times:.1f} times as long as they did"] if times >= BUSY else []
