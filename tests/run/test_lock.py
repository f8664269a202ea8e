"""A run's directory belongs to one process, for as long as that lives."""

import errno
import logging
import os

import pytest

from ssl_vit.run import lock


@pytest.fixture(autouse=True)
def _nothing_held(monkeypatch):
    monkeypatch.setattr(lock, "_held", {})


def test_another_process_cannot_hold_what_is_held_and_can_when_it_is_not(tmp_path):
    lock.hold(tmp_path / "run")
    lock.hold(tmp_path / "run")  # the same run, once more

    def tried() -> int:
        child = os.fork()
        if not child:
            lock._held.clear()
            try:
                lock.hold(tmp_path / "run")
            except BlockingIOError as error:
                os._exit(1 if f"is being written by process {os.getppid()} on" in str(error) else 2)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert tried() == 1
    lock._held.popitem()[1].close()
    assert tried() == 0


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with caplog.at_level(logging.WARNING):
        lock.hold(tmp_path)
    assert "has no locks (No locks available): nothing keeps a second run from writing into it" in caplog.text
