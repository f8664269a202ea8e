"""Lightning's loggers of a run: where the disk is full the run goes on without its curves, until there is space."""

import io
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.api_pb2 import MetricName  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from ssl_vit.run.files import append_whole
from ssl_vit.run.launch import is_first_process

log = logging.getLogger("ssl_vit")
FIRST = {
    "train/loss": "1 loss/train",
    "train/baseline": "1 loss/baseline",
    "val/loss": "1 loss/validation",
    "monitor/linear_top1": "2 probe/linear_top1",
    "monitor/knn_top1": "2 probe/knn_top1",
    "monitor/top1": "2 probe/top1",
}
"""Curves that TensorBoard, which sorts by name, shows again under a name that comes first."""
LAYOUT = {
    "1 loss": {
        "loss, and that of a prediction that ignores the image": ["train/loss$", "train/baseline$", "val/loss$"]
    },
    "2 features": {
        "accuracy of a linear probe and of k-NN": ["monitor/.*top1$"],
        "effective rank": ["monitor/rankme$"],
        "std, 1 even, 0 collapsed": ["monitor/feature_std$"],
    },
    "3 optimization": {"learning rate": ["train/lr$"], "norm of the gradient": ["train/grad_norm$"]},
    "4 data": {"images per second": ["images_per_second$"], "fraction of the time spent waiting": ["data_wait$"]},
}
"""Charts of TensorBoard's page CUSTOM SCALARS: the tags in each."""
FIGURES = {
    "loss": ("train/loss", ""),
    "online probe": ("monitor/linear_top1", ""),
    "online k-NN": ("monitor/knn_top1", ""),
    "linear_probe": ("linear_probe/top1", "linear_probe"),
    "knn": ("knn/top1", "knn"),
    "finetune": ("test/top1", ""),
}
"""Columns of TensorBoard's page HPARAMS: tag, and folder in the run's."""
MAIN = ("method.name", "data.batch_size", "encoder.embed_dim", "optim.base_lr", "trainer.max_epochs")
"""Settings that it shows first."""
_numbers = itertools.count()
_told = set[str]()  # folders of which it has been said that they cannot be written


class EventFile(FileWriter):
    """TensorBoard's, each event appended whole or not at all. Its own has a thread, whose errors end the run."""

    def __init__(self, log_dir: str) -> None:
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.log_dir, self.path = log_dir, Path(log_dir) / name

    def get_logdir(self) -> str:
        return self.log_dir

    def add_event(self, event: Event, step: Any = None, walltime: float | None = None) -> None:
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        records = io.BytesIO()
        begins = not (self.path.exists() and self.path.stat().st_size)
        for item in [Event(wall_time=event.wall_time, file_version="brain.Event:2")] * begins + [event]:
            RecordWriter(records).write(item.SerializeToString())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_whole(self.path, records.getvalue())
        except OSError as error:
            if self.log_dir not in _told:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it until it can")
            _told.add(self.log_dir)

    def flush(self) -> None:
        """Nothing: events are written at once."""

    close = reopen = flush


class Curves(SummaryWriter):
    """TensorBoard's writer, into an EventFile."""

    def _get_file_writer(self) -> EventFile:
        if self.file_writer is None:
            self.file_writer = EventFile(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:  # TensorBoard hides what an earlier attempt logged from this step on
                start = SessionLog(status=SessionLog.START)
                self.file_writer.add_event(Event(step=self.purge_step, session_log=start))
        return self.file_writer

    def add_scalar(self, tag: str, scalar_value: Any, *args: Any, **kwargs: Any) -> None:
        for name in {tag: None, FIRST.get(tag, tag): None}:
            super().add_scalar(name, scalar_value, *args, **kwargs)

    def introduce(self, settings: dict[str, Any]) -> None:
        """Write what TensorBoard needs for its pages CUSTOM SCALARS and HPARAMS, where the run has these settings."""
        self.add_custom_scalars(
            {title: {chart: ["Multiline", tags] for chart, tags in charts.items()} for title, charts in LAYOUT.items()}
        )
        shown = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        experiment, start, _ = hparams(shown, {})
        plugin = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(plugin.content)
        for info in content.experiment.hparam_infos:
            info.differs = info.name in MAIN
        for name, (tag, group) in FIGURES.items():
            content.experiment.metric_infos.add(name=MetricName(tag=tag, group=group), display_name=name)
        plugin.content = content.SerializeToString()
        for summary in (experiment, start):
            self._get_file_writer().add_summary(summary)


class CSVCurves(CSVLogger):
    """Lightning's, whose rows stay in memory where they cannot be written, without the beginning of one in the file."""

    def save(self) -> None:
        path = Path(self.log_dir, "metrics.csv")
        before = path.stat().st_size if path.exists() else 0
        try:
            super().save()
        except OSError:
            with suppress(OSError):
                if path.stat().st_size > before:
                    os.truncate(path, before)
            raise


def patient(logger: Logger) -> Logger:
    """The logger; a warning, once, takes the place of its errors of a full disk."""
    warned: list[str] = []

    def forgiving(method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except OSError as error:
            if not warned:
                log.warning(f"{type(logger).__name__}: {error}; training goes on without it until it can write")
            warned.append(str(error))

    for name in ("log_metrics", "log_hyperparams", "log_image", "save", "finalize"):
        if method := getattr(logger, name, None):
            setattr(logger, name, wraps(method)(partial(forgiving, method)))
    return logger


def loggers_of(names: list[str], run_dir: Path, step: int, settings: dict[str, Any] | None = None) -> list[Logger]:
    """Lightning's loggers by name, of a run that begins after so many steps. ImportError: one is not installed.

    settings: by dotted key, for TensorBoard's page HPARAMS.
    """
    made: list[Logger] = []
    if "tensorboard" in names:
        board = TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False)
        if is_first_process():
            board._experiment = curves = Curves(str(run_dir), purge_step=step + 1)
            curves.introduce(settings or {})
        made.append(board)
    if "csv" in names:  # a new file for each attempt: it would delete the one before
        made.append(CSVCurves(run_dir, name="csv"))
    if "wandb" in names:
        name = run_dir.name  # by which a resumed run goes on with its curves
        made.append(WandbLogger(name, run_dir, id=name, project="ssl_vit", resume="allow"))
    return [patient(logger) for logger in made]
