"""Signals that end a run: it stops between two steps, after a checkpoint. Needs no torch.

Ctrl-C (SIGINT), SIGTERM, and in a SLURM job SIGUSR1, which asks for the job to be queued again.
"""

import logging
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

log = logging.getLogger("ssl_vit")


class Stopped(BaseException):
    """A signal has ended a run after so many steps; no error, so nothing that handles errors catches it."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.status = number, 128 + number
        """Of the signal; exit status, as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM."""
        self.run_dir: Path | None = None
        """To be named with resume=; None where the same command finds it by itself."""

    def command(self, stopped: Sequence[str]) -> str:
        """The command that resumes the run of the one that was stopped; both from their first word on."""
        args = list(stopped)
        if self.run_dir is not None:
            names = ("resume", "run_dir", "init_from")
            args = [arg for arg in args if arg.partition("=")[0] not in names] + [f"resume={self.run_dir}"]
        return shlex.join(args)


class Signals:
    """Remembers the first signal that asks a run to stop, else 0. A second Ctrl-C stops at once."""

    received = 0

    def listen(self, prints: bool = True) -> None:
        """Install the handlers, where this is the main thread, which alone can; prints: say what Ctrl-C does."""
        self.prints = prints
        if threading.current_thread() is threading.main_thread():
            requeue = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
            for number in (signal.SIGINT, signal.SIGTERM, *requeue):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.prints:  # print() is not safe here
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C once more stops at once\n")
        self.received = self.received or number


def requeue() -> None:
    """Queue this SLURM job again; a failure is logged."""
    try:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.error(f"SLURM did not queue the job again, do it by hand ({getattr(error, 'stderr', '') or error})")
