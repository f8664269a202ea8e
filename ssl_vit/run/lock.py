"""One run in a directory at a time: a lock that ends with its process, however that ends. Needs no torch.

POSIX locks (fcntl) and not flock's: a process forked from the run, such as a data worker that outlives it by seconds,
does not keep them, and they reach over NFS to other machines.
"""

import logging
import os
import platform
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger("ssl_vit")
LOCK = ".lock"
_held: dict[Path, IO[str]] = {}


def hold(run_dir: Path) -> None:
    """Keep other processes' runs out of a directory, which is made, until this process ends.

    A run of several processes calls it on its first one. A file system without locks is logged.

    Raises:
        BlockingIOError: another process holds it, which the message names.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = (run_dir / LOCK).resolve()
    if path in _held:
        return
    file = path.open("a+")
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise BlockingIOError(
            f"run_dir={run_dir} is being written by {holder}: wait for it, or name another directory"
        ) from None
    except OSError as error:
        log.warning(f"{run_dir} has no locks ({error.strerror}): nothing keeps a second run from writing into it")
    _held[path] = file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()


def _lock(file: IO[str]) -> None:
    """Lock the whole file, without waiting. OSError: another process has it, or there are no locks."""
    if fcntl is None:
        raise OSError(0, "this system has no fcntl")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
