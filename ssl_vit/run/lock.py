"""One run in a directory at a time: a lock that ends with its process. Needs no torch."""

import logging
import os
import platform
from pathlib import Path
from typing import IO

log = logging.getLogger("ssl_vit")
_held: dict[Path, IO[str]] = {}


def hold(run_dir: Path) -> None:
    """Keep other processes' runs out of a directory, which is made, until this process ends, however that ends.

    A POSIX lock and not flock's: a process forked from the run, such as a data worker that outlives it by seconds, does
    not keep it, and it reaches over NFS to other machines. A file system without locks is logged.

    BlockingIOError: another process holds it, which the message names.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = (run_dir / ".lock").resolve()
    if path in _held:
        return
    file = path.open("a+")
    try:
        import fcntl  # not on Windows

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        advice = f"{file.read().strip() or 'another process'}: wait for it, or name another directory"
        file.close()
        raise BlockingIOError(f"run_dir={run_dir} is being written by {advice}") from None
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", error)
        log.warning(f"{run_dir} has no locks ({reason}): nothing keeps a second run from writing into it")
    _held[path] = file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
