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
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from ssl_vit.run.files import append_whole
from ssl_vit.run.launch import is_first_process

log = logging.getLogger("ssl_vit")
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


def loggers_of(names: list[str], run_dir: Path, step: int) -> list[Logger]:
    """Lightning's loggers by name, of a run that begins after so many steps. ImportError: one is not installed."""
    made: list[Logger] = []
    if "tensorboard" in names:
        board = TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False)
        if is_first_process():
            board._experiment = Curves(str(run_dir), purge_step=step + 1)
        made.append(board)
    if "csv" in names:  # a new file for each attempt: it would delete the one before
        made.append(CSVCurves(run_dir, name="csv"))
    if "wandb" in names:
        name = run_dir.name  # by which a resumed run goes on with its curves
        made.append(WandbLogger(name, run_dir, id=name, project="ssl_vit", resume="allow"))
    return [patient(logger) for logger in made]
