"""Runs that a signal stops: a checkpoint, a line that says how to go on, and the signal's exit status."""

import os
import signal
from pathlib import Path

import pytest
from small_runs import args_of, assert_same_end, last_step_logged, steps_kept

RARE = "trainer.checkpoint_every_steps=100"  # so that what is found was written for the signal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def whole(nursery, folder) -> Path:
    """A run that nothing has interrupted."""
    assert nursery.run(folder, *args_of("mae"), "run_dir=whole") == 0
    return folder / "whole"


def lines_with(folder: Path, text: str) -> list[str]:
    return [line for line in (folder / "output").read_text().splitlines() if text in line]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on(nursery, folder, whole, name, status):
    run = folder / name
    args = args_of("mae", RARE, f"run_dir={name}")
    process = nursery.start(folder, *args)
    assert nursery.signal_when(lambda: last_step_logged(run) >= 2, signal.Signals[name], process) == [status]
    (step,) = steps_kept(run)
    (line,) = lines_with(folder, f"stopped by {name}")
    said, _, command = line.partition("; go on with: ")
    assert said == f"stopped by {name} after step {step}"
    assert command.startswith("python /")
    assert command.endswith(f" resume={name}")
    assert not (run / "error.txt").exists()
    assert nursery.run(folder, *command.split()[2:]) == 0
    assert_same_end(run, whole)


@pytest.mark.parametrize("reached", [0, 1], ids=["the first", "the second"])
def test_a_signal_to_one_process_stops_both_at_the_same_step(nursery, folder, reached):
    name = f"two-{reached}"
    args = args_of("mae", RARE, f"run_dir={name}", "trainer.max_epochs=500")
    processes = nursery.start_two(folder, *args)
    (status,) = nursery.signal_when(lambda: last_step_logged(folder / name) >= 2, signal.SIGTERM, processes[reached])
    other = nursery.wait(processes[1 - reached])[0]
    assert (other, status) == ((143, 0) if reached else (0, 143))
    assert len(steps_kept(folder / name)) == 1


def test_slurms_signal_queues_the_job_again_and_the_same_command_goes_on(nursery, folder, whole):
    tools = folder / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder}/scontrol-args\n')
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "night", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"PATH": f"{tools}:{os.environ['PATH']}"}
    args = args_of("mae", RARE, "run_dir=night", "resume=auto")
    process = nursery.start(folder, *args, **job)
    statuses = nursery.signal_when(lambda: last_step_logged(folder / "night") >= 2, signal.SIGUSR1, process)
    assert statuses == [128 + signal.SIGUSR1]
    assert (folder / "scontrol-args").read_text() == "requeue 1234\n"
    assert not list((folder / "night").rglob("hpc_ckpt*"))
    assert nursery.run(folder, *args, **job) == 0
    assert_same_end(folder / "night", whole)


def test_a_second_run_into_a_directory_is_refused_in_one_line(nursery, folder):
    args = args_of("mae", "trainer.max_epochs=500", "run_dir=one")
    first = nursery.start(folder, *args)
    start = (folder / "output").stat().st_size if (folder / "output").exists() else 0
    second: list[int] = []

    def ready() -> bool:
        if last_step_logged(folder / "one") < 0:
            return False
        second.append(nursery.run(folder, *args, "resume=auto"))
        return True

    nursery.kill_when(ready, first)
    assert second == [1]
    error = [line for line in (folder / "output").read_text()[start:].splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert f"run_dir=one is being written by process {first} on " in error[0]
    # The lock has ended with its process.
    assert nursery.run(folder, *args, "resume=auto", "trainer.max_steps=1") == 0
