"""A run's directory: its name, what lies in it, writes that are whole or absent. Needs neither torch nor Lightning.

runs/<method>-<recipe>-<time>/  config.yaml  checkpoints/  TensorBoard events  metrics.jsonl  images/
                                encoder.safetensors  encoder.json  quarantine.txt  skipped_steps.jsonl
                                linear_probe.json  linear_probe-confusion.png  linear_probe/  knn.json  ...
runs/finetune-<recipe>-<time>/  the same, model.safetensors  finetune.json  confusion.png
"""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from ssl_vit.config.reading import read_json, require_regular
from ssl_vit.run.launch import typed

log = logging.getLogger("ssl_vit")
RUNS = Path("runs")
MODEL, ENCODER, METADATA, CONFIG = "model.safetensors", "encoder.safetensors", "encoder.json", "config.yaml"
METRICS, SKIPPED_STEPS, QUARANTINE = "metrics.jsonl", "skipped_steps.jsonl", "quarantine.txt"
CHECKPOINTS, IMAGES = "checkpoints", "images"


def write_atomic(path: Path, content: bytes | str, damage: Callable[[Path], str] = lambda _: "") -> None:
    """Write a file so that it is whole or, after a crash or on a full disk, as it was before.

    damage: of the written file, read back before it is renamed, what is wrong with it; "" for nothing.
    OSError: the disk is full, the folder cannot be written, or the file reads back damaged; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if problem := damage(temporary):
            raise OSError(errno.EIO, f"read back, {problem}")
        os.replace(temporary, path)
    except OSError as error:
        advice = "free some space or choose another run_dir=; what was written before is whole"
        raise OSError(error.errno, f"{path} was not written ({error.strerror}): {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict as indented JSON, atomically."""
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append a dict as one line of JSON, as append_whole does."""
    append_whole(path, (json.dumps(row) + "\n").encode())


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file, all or nothing. OSError: the disk is full, or cannot be written."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(content) < len(content):  # what a disk does that is almost full
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_prefix(method: str, recipe: str) -> str:
    """`mae-digits-` for method=mae recipe=digits; `simmim-steel-` for acme.simmim:SimMIM and configs/steel.yaml."""
    names = method.rpartition(":")[2].lower(), Path(recipe).stem
    return "".join(re.sub(r"[^\w.]+", "_", name) + "-" for name in names)


def new_run_dir(method: str, recipe: str) -> Path:
    """A directory under runs/ that no run has yet, named by method, recipe and time; not created."""
    name = run_prefix(method, recipe) + time.strftime("%Y%m%d-%H%M%S")
    names = [name, *(f"{name}-{i}" for i in range(2, 1000))]
    return next(RUNS / name for name in names if not (RUNS / name).exists())


def newest_run(prefix: str = "", holding: str = ENCODER) -> Path:
    """The run whose `holding` (a file, a folder with files) is newest, encoders of pretrainings; FileNotFoundError."""
    found = [
        path for path in RUNS.glob(f"{prefix}*/{holding}") if path.is_file() or (path.is_dir() and any(path.iterdir()))
    ]
    if holding == ENCODER:  # a fine-tuned one lies beside its model, and has to be named
        found = [path for path in found if not (path.parent / MODEL).exists()]
    if not found:
        command = typed("finetune") if holding == MODEL else f"{typed('pretrain')} method=mae"
        raise FileNotFoundError(f"no {RUNS}/{prefix}* has {holding}: make one with `{command}`, or name it")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def require_own_files(run: Path) -> None:
    """ValueError where a directory to go on in has a FIFO, a device, or a link to a file, which would be written to."""
    for path in run.iterdir():
        if path.is_symlink() and not path.is_dir():
            raise ValueError(f"{path} is a link: a run writes to its own files alone, put the file there")
        if not path.is_dir():
            require_regular(path)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps before a checkpoint, by its name; -1 where the name has none."""
    found = re.search(r"step[-=](\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, the latest step first."""
    return sorted((run / CHECKPOINTS).glob("*.ckpt"), key=step_of, reverse=True)


def newest_checkpoint(run: Path) -> Path:
    """A run's latest whole checkpoint; damaged ones are logged. FileNotFoundError: none. ValueError: none whole."""
    found = checkpoints_of(run)
    if not found:
        raise FileNotFoundError(f"resume={run}: there is no checkpoint in {run / CHECKPOINTS}")
    for path in found:
        if not (problem := damage(path) or strangeness(path)):
            return path
        log.warning(f"{path} is damaged ({problem}): the one before is used")
    raise ValueError(f"resume={run}: of {len(found)} checkpoints none is whole; begin anew in another run_dir=")


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, a zip file, on the disk; "" where every entry of it has its checksum."""
    try:
        with require_regular(checkpoint).open("rb") as file:
            if hasattr(os, "posix_fadvise"):  # so that the disk is read, and not the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with ZipFile(file) as archive:
                require_stored(archive, os.fstat(file.fileno()).st_size)
                damaged = archive.testzip()
    except Exception as error:  # whatever bytes at random make of a zip file
        return f"it is truncated or damaged: {error}"
    return f"its entry {damaged} does not have its checksum" if damaged else ""


def require_stored(archive: ZipFile, size: int) -> None:
    """ValueError where a zip file of so many bytes unpacks to more, which PyTorch's, uncompressed, do not."""
    if sum(entry.file_size for entry in archive.infolist()) > size:
        raise ValueError("it is compressed, as no file of PyTorch is")


def strangeness(checkpoint: Path) -> str:
    """Why an undamaged zip file is no checkpoint of Lightning's; "" for one that is. Only weights are unpickled."""
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # whatever is pickled in it
        return "it holds something else than weights"
    legal = isinstance(content, dict) and type(content.get("global_step")) is int
    return "" if legal and isinstance(content.get("state_dict"), dict) else "it is no checkpoint of a training"


def metadata_of(encoder: Path) -> dict[str, Any]:
    """The encoder.json (method, data, normalization, step) of a run or beside its encoder.safetensors; {} of others.

    ValueError, OSError: it cannot be read, or is no such thing.
    """
    path = encoder / METADATA if encoder.is_dir() else encoder.with_name(METADATA)
    known = encoder.is_dir() or encoder.name == ENCODER
    metadata = read_json(path) if known and path.exists() else {}
    for key, kind in {"data": dict, "readout": dict, "recipe": str}.items():
        if not isinstance(metadata.get(key, kind()), kind):
            raise ValueError(f"{path}: {key} must be {'a string' if kind is str else 'an object'}")
    return metadata
