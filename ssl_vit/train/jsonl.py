"""JSON lines: what a run logs to metrics.jsonl, and other files of its kind."""

import logging
import os
from math import isfinite
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_vit.run.files import append_json

log = logging.getLogger("ssl_vit")


class JsonLines(Logger):
    """One JSON object per logged step, {"step": .., "train/loss": ..}, appended and flushed; not finite: null."""

    name, version = "metrics", ""  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.failed = path, False

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        self.append({"step": step} | {name: value if isfinite(value) else None for name, value in numbers.items()})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Drop the lines after so many bytes: those of steps that a resumed run takes again."""
        if self.size() > size:
            os.truncate(self.path, size)

    def append(self, row: dict[str, Any]) -> None:
        """Append a line; the first time that it cannot be written is logged."""
        try:
            append_json(self.path, row)
        except OSError as error:
            if not self.failed:
                log.warning(f"{self.path} cannot be written: {error}; training goes on without it")
            self.failed = True
