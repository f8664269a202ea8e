"""What a stopped run prints, and how a SLURM job is requeued."""

import logging
import signal
from pathlib import Path

import pytest

from ssl_vit.run.signals import Signals, Stopped, requeue


def test_the_command_to_go_on_is_the_one_given_with_resume():
    stop = Stopped(signal.SIGINT, 7)
    argv = ["python", "tools/pretrain.py", "method=mae", "resume=auto", "run_dir=a b", "init_from=x", "seed=1"]
    assert stop.command(argv[:2]) == "python tools/pretrain.py"  # of a tokenizer on the way
    stop.run_dir = Path("a b")
    assert stop.command(argv) == "python tools/pretrain.py method=mae seed=1 'resume=a b'"
    assert (str(stop), stop.status) == ("stopped by SIGINT after step 7", 130)


def test_the_first_signal_is_remembered_and_a_second_ctrl_c_stops_at_once(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = Signals()
    try:
        signals.listen()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "Ctrl-C once more stops at once" in capfd.readouterr().err


def test_a_job_that_cannot_be_queued_again_is_named(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.ERROR):
        requeue()
    assert "SLURM did not queue the job again, do it by hand" in caplog.text
