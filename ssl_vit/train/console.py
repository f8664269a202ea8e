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


class ProgressPrinter(pl.Callback):
    """Epoch, step, loss, lr, images/s, fraction of time waiting for data, diagnosis, time left; on the first rank."""

    bar: Progress | None = None
    started: float | None = None  # not where a resumed run has reached its end before
    fraction_before: float | None = None  # of a resumed run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.printed = time.monotonic()
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"))
            self.bar.start()
            self.bar.add_task("", total=1.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.fraction_before is None:  # which the module knows after on_train_start
            self.fraction_before = fraction_done(trainer, broadcast=False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
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
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=fraction, description="  ".join(fields))
        else:
            print(f"{fraction:4.0%}  " + "  ".join(fields), flush=True)
