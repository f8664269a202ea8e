"""Checkpoints on a disk that fails, and how many are left."""

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from ssl_vit.run import files
from ssl_vit.train.checkpoints import AtomicCheckpoints, Checkpoints, repair_counts


@contextmanager
def kernel_refuses() -> Iterator[None]:
    """No file may grow beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def disk_is_full() -> Iterator[None]:
    """What is written cannot be flushed."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full)
        yield


@contextmanager
def reads_back_wrong() -> Iterator[None]:
    """Some bytes are others than were written."""
    write = os.fsync

    def damage(handle: int) -> None:
        os.pwrite(handle, b"damaged", 1000)
        write(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", damage)
        yield


@pytest.mark.parametrize("failing", [kernel_refuses, disk_is_full, reads_back_wrong])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, failing, caplog):
    path, writer = tmp_path / "step-0000001.ckpt", AtomicCheckpoints()
    weights = torch.arange(1000.0)
    writer.save_checkpoint({"step": 1, "weights": weights}, path)
    assert writer.error is None
    with caplog.at_level(logging.ERROR), failing():
        writer.save_checkpoint({"step": 2, "weights": weights}, path)
    assert isinstance(writer.error, OSError)
    assert "step-0000001.ckpt was not written" in caplog.text
    assert torch.load(path, weights_only=True)["step"] == 1
    assert files.damage(path) == ""
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Steps(pl.Trainer):
    """As much of a trainer as saving needs."""

    is_global_zero = True
    global_step = 0

    def __init__(self, writer: AtomicCheckpoints) -> None:
        self.writer = writer

    def save_checkpoint(self, path: Path) -> None:
        self.writer.save_checkpoint({"global_step": self.global_step}, path)


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_newest_are_kept_and_none_goes_before_the_next_is_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1, keep=2)
    trainer = Steps(checkpoints.writer)
    for trainer.global_step in (2, 4, 6):
        assert checkpoints.save(trainer) is None
    assert kept(tmp_path) == ["step-0000004.ckpt", "step-0000006.ckpt"]
    trainer.global_step = 8
    with monkeypatch.context() as patch:
        patch.setattr("ssl_vit.train.checkpoints.damage", lambda path: "it is damaged")
        assert "was not written" in str(checkpoints.save(trainer))
    assert kept(tmp_path) == ["step-0000004.ckpt", "step-0000006.ckpt"]
    trainer.global_step = 10
    assert checkpoints.save(trainer) is None
    assert kept(tmp_path) == ["step-0000006.ckpt", "step-0000010.ckpt"]


def test_steps_that_were_not_resumed_and_beginnings_are_dropped_with_the_next_whole_one(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step-0000002.ckpt", "step-0000004.ckpt", "step-0000008.ckpt", ".step-0000009.ckpt.77", "mine.ckpt"):
        (folder / name).write_text("")
    checkpoints = Checkpoints(tmp_path, 1, keep=2, step=4)
    trainer = Steps(checkpoints.writer)
    trainer.global_step = 6
    checkpoints.save(trainer)
    assert kept(tmp_path) == ["mine.ckpt", "step-0000004.ckpt", "step-0000006.ckpt"]


def progress(epoch: tuple[int, int, int], batch: tuple[int, int, int], last: bool) -> dict:
    """Lightning's counts, as (ready, processed, completed)."""

    def counts(ready: int, processed: int, completed: int) -> dict[str, dict[str, int]]:
        names = {"ready": ready, "started": ready, "processed": processed, "completed": completed}
        return {"total": dict(names), "current": dict(names)}

    return {"epoch_progress": counts(*epoch), "epoch_loop.batch_progress": {**counts(*batch), "is_last_batch": last}}


@pytest.mark.parametrize(
    ("epoch", "batch", "last", "done_epochs", "done_batches"),
    [
        ((2, 1, 1), (4, 3, 3), False, 1, 3),  # the next batch is at hand
        ((2, 2, 2), (3, 3, 3), False, 1, 3),  # a limit has cut the epoch short
        ((2, 2, 2), (5, 5, 5), True, 2, 0),  # the epoch is whole
        ((3, 2, 2), (1, 0, 0), False, 2, 0),  # the first batch of the next one is at hand
    ],
)
def test_a_checkpoint_between_two_steps_says_what_is_done(epoch, batch, last, done_epochs, done_batches):
    state = progress(epoch, batch, last)
    repair_counts(state)
    epochs, batches = state["epoch_progress"]["current"], state["epoch_loop.batch_progress"]["current"]
    assert epochs["processed"] == epochs["completed"] == done_epochs
    assert set(batches.values()) == {done_batches}
