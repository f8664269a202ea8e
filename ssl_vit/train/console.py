"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
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


def clock(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


class ProgressPrinter(pl.Callback):
    """Epoch, step, loss, lr, images/s, fraction of time waiting for data, time left; on the first rank.

    Args:
        monitor: its diagnosis is shown too, where it has one.
        every_seconds: between two lines, where standard output is no terminal.
    """

    def __init__(self, monitor: CollapseMonitor | None = None, every_seconds: float = 10.0) -> None:
        self.collapse_monitor, self.every_seconds = monitor, every_seconds
        self.bar: Progress | None = None
        self.started = self.printed = 0.0
        self.fraction_before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.printed = time.monotonic()
        self.fraction_before = fraction_done(trainer, broadcast=False)  # of a resumed run
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"))
            self.bar.start()
            self.bar.add_task("", total=1.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.printed < (0.5 if self.bar else self.every_seconds):
            return
        self.printed = now
        self._print(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._print(trainer, pl_module)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()

    def _print(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fraction = fraction_done(trainer, broadcast=False)  # the other ranks do not call it
        known = trainer.callback_metrics
        fields = [text.format(float(known[key])) for key, text in METRICS.items() if key in known]
        gained = max(1e-9, fraction - self.fraction_before)
        left = clock((time.monotonic() - self.started) * (1 - fraction) / gained)
        if self.collapse_monitor and self.collapse_monitor.diagnosis:
            fields.append(self.collapse_monitor.diagnosis)
        fields = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}", *fields, f"{left} left"]
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=fraction, description="  ".join(fields))
        else:
            print(f"{fraction:4.0%}  " + "  ".join(fields), flush=True)
