"""Runs of several processes as commands: one directory, one log, one output; how processes agree on a directory."""

import json
from pathlib import Path

import pytest

from ssl_vit.cli.main import guarded
from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.models.weights import load_encoder
from ssl_vit.run.directory import default_run_dir, open_run
from ssl_vit.train.plan import plan_lines

SMALL = [
    "method=dino",
    "encoder.embed_dim=16",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "method.head_hidden=16",
    "method.head_bottleneck=8",
    "method.prototypes=32",
    "data.batch_size=16",
    "data.workers=0",
    "trainer.max_minutes=30",  # a clock that the processes must agree on, and that the first one shows
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "trainer.precision=32-true",
    "monitor.every_epochs=1",
    "monitor.train_limit=100",
    "monitor.test_limit=40",
]


def torchrun(*args: str) -> None:
    """What `torchrun --standalone --nproc_per_node=2` does, by its own agent, whose two processes are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "tests"}
    config = LaunchConfig(1, 1, 2, **rendezvous, max_restarts=0, start_method="fork", monitor_interval=0.1)
    assert elastic_launch(config, guarded)(["pretrain", *args]) == {0: 0, 1: 0}


def by_torchrun(nursery, folder: Path, *args: str) -> int:
    return nursery.wait(nursery.call(folder, torchrun, *args, "trainer.strategy=fsdp"))[0]


def by_lightning(nursery, folder: Path, *args: str) -> int:
    """The first process starts the second, as a command of its own."""
    return nursery.run(folder, *args, "trainer.strategy=ddp", "trainer.devices=2")


@pytest.mark.parametrize("start", [pytest.param(by_torchrun, marks=pytest.mark.slow), by_lightning])
def test_two_processes_leave_one_run_and_print_once(nursery, start, tmp_path):
    assert start(nursery, tmp_path, *SMALL) == 0, (tmp_path / "output").read_text()
    printed, (run_dir,) = (tmp_path / "output").read_text(), (tmp_path / "runs").iterdir()
    for line in ("run    ", "global batch  32 = 2 x 16", "100%", "saved ", "next: "):
        assert printed.count(line) == 1, line
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if "monitor/knn_top1" in row] == [0, 4]
    assert "Warning" not in printed
    assert load_encoder(run_dir).metadata["step"] == 4
    assert len(list((run_dir / "images").iterdir())) == 1


@pytest.fixture
def lonely(monkeypatch):
    """An environment that nothing has started."""
    for name in ("SSL_VIT_RUN_DIR", "LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_tasks_of_a_slurm_job_write_into_one_directory(lonely):
    for name, value in {"SLURM_NTASKS": "16", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pretrain"}.items():
        lonely.setenv(name, value)
    config = resolve(RunConfig, ["method=mae", "trainer.num_nodes=2", "trainer.devices=8"]).config
    assert default_run_dir("mae", config) == Path("runs/mae-digits-slurm-4711")


def test_machines_that_cannot_agree_on_a_directory_must_be_given_one(lonely):
    config = resolve(RunConfig, ["method=mae", "trainer.num_nodes=2"]).config
    with pytest.raises(ValueError, match=r"run_dir= is missing: trainer\.num_nodes=2 machines cannot agree"):
        default_run_dir("mae", config)


@pytest.mark.parametrize(
    ("arg", "rule"),
    [
        ("trainer.devices=4", "auto, or 2, the processes that torchrun started on this machine"),
        ("trainer.num_nodes=2", "3, the machines that torchrun started processes on"),
    ],
)
def test_processes_that_torchrun_started_are_those_of_the_settings(lonely, arg, rule):
    lonely.setenv("LOCAL_WORLD_SIZE", "2")
    lonely.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match=f"{arg} must be {rule}"):
        resolve_run(RunConfig, ["method=mae", arg])
    config = resolve_run(RunConfig, ["method=mae", "trainer.num_nodes=3"]).config
    assert any(line.endswith("= 6 x 64") for line in plan_lines(config))


def test_only_the_first_process_refuses_a_directory_in_use(lonely, tmp_path):
    """The others find the config.yaml that the first has just written."""
    config = resolve(RunConfig, ["method=mae", f"run_dir={tmp_path}", "resume=auto"]).config
    open_run(config, "mae", "mae")
    lonely.setenv("RANK", "1")
    assert open_run(config, "mae", "mae") == (tmp_path, None)
    config.resume = ""
    assert open_run(config, "mae", "mae") == (tmp_path, None)
    lonely.setenv("RANK", "0")
    with pytest.raises(FileExistsError, match="holds a run already"):
        open_run(config, "mae", "mae")


def test_a_missing_package_is_named_before_anything_is_written(lonely, tmp_path):
    config = resolve(RunConfig, ["method=mae", f"run_dir={tmp_path / 'made'}", "trainer.strategy=deepspeed"]).config
    with pytest.raises(ImportError, match=r"trainer\.strategy=deepspeed needs the package deepspeed: `pip install"):
        open_run(config, "mae", "mae")
    assert not (tmp_path / "made").exists()
