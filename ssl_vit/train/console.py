"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ssl_vit.callbacks.collapse import CollapseMonitor
from ssl_vit.optim.progress import fraction_done

METRICS = {
    "train/loss": "loss {:.4f}",
    "train/lr": "lr {:.2e}",
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

    Where steps take three times as long as they did, other work keeps the machine busy, and the line says so.
    """

    bar: Progress | None = None
    started: float | None = None  # not where a resumed run has reached its end before
    fraction_before: float | None = None  # of a resumed run
    fastest = float("inf")  # mean seconds of a batch, of the lines so far
    spent, batches = 0.0, 0  # since the last line; inside of batches alone

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.printed = time.monotonic()
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"))
            self.bar.start()
            self.bar.add_task("", total=1.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.fraction_before is None:  # which the module knows after on_train_start
            self.fraction_before = fraction_done(trainer, broadcast=False)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.batch_began = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
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
        fields = [text.format(float(known[key])) for key, text in METRICS.items() if key in known]
        diagnoses = [c.diagnosis for c in trainer.callbacks if isinstance(c, CollapseMonitor) and c.diagnosis]  # pyright: ignore
        fields = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}", *fields, *diagnoses, f"{left} left"]
        fields += self._slowdown()
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=fraction, description="  ".join(fields))
        else:
            print(f"{fraction:4.0%}  " + "  ".join(fields), flush=True)

    def _slowdown(self) -> list[str]:
        """What the line says of a busy machine, as far as the batches since the last line are enough to tell."""
        if self.batches < FEWEST_STEPS:
            return []
        seconds, self.spent, self.batches = self.spent / self.batches, 0.0, 0
        self.fastest = min(self.fastest, seconds)
        times = seconds / self.fastest
        return [f"the machine is busy: steps take {times:.1f} times as long as they did"] if times >= BUSY else []
