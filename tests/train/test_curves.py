"""A disk that is full for a while costs the curves of that while, and a line; the run goes on, and so do they."""

import csv
import errno
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import Logger
from safetensors.torch import load_file
from small_runs import args_of, same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.schema import RunConfig
from ssl_vit.train.curves import CSVCurves, Curves, loggers_of, patient
from ssl_vit.train.pretraining import pretrain


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch):
    """Of what is appended half is written."""
    with monkeypatch.context() as patch:
        patch.setattr("ssl_vit.run.files.len", lambda content: 10**9, raising=False)
        yield


def steps_in(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]


def test_curves_leave_out_what_does_not_fit_and_go_on_in_the_same_file(tmp_path, monkeypatch, caplog):
    writer = Curves(str(tmp_path))
    writer.add_scalar("loss", 1.0, 0)
    with full_disk(monkeypatch):
        writer.add_scalar("loss", 1.0, 1)
        writer.add_image("image", torch.zeros(3, 4, 4), 1)
        writer.flush()
    writer.add_scalar("loss", 1.0, 2)
    writer.close()
    assert steps_in(tmp_path) == [0, 2]
    assert len(list(tmp_path.iterdir())) == 1
    assert caplog.text.count("training goes on without it until it can") == 1


def test_curves_that_could_not_begin_begin_later(tmp_path, monkeypatch):
    with full_disk(monkeypatch):
        writer = Curves(str(tmp_path), purge_step=1)
        writer.add_scalar("loss", 1.0, 0)
    writer.add_scalar("loss", 1.0, 1)
    assert steps_in(tmp_path) == [1]


def test_a_resumed_run_hides_the_steps_of_an_earlier_attempt(tmp_path):
    for start, steps in ((None, range(4)), (3, range(2, 6))):
        writer = Curves(str(tmp_path), purge_step=start)
        for step in steps:
            writer.add_scalar("loss", 1.0, step)
        if start is None:  # the first file comes first
            (file,) = tmp_path.glob("events.*")
            file.rename(tmp_path / "events.out.tfevents.0")
    assert steps_in(tmp_path) == [0, 1, 2, 2, 3, 4, 5]


def test_tensorboard_opens_on_loss_and_probe_and_knows_the_settings(tmp_path):
    """It sorts by name: the first thing to be seen was how many images could not be read. HPARAMS was empty."""
    settings = {"optim.base_lr": 1e-3, "data.path": "", "method.flip": True, "data.mean": [0.5, 0.5], "data.crop": None}
    (board,) = loggers_of(["tensorboard"], tmp_path, 0, settings)
    board.log_metrics({"data/unreadable_images": 0.0, "train/loss": 2.0, "monitor/linear_top1": 0.5}, 3)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Tags()["scalars"]
    assert sorted(scalars)[:2] == ["1 loss/train", "2 probe/linear_top1"]
    assert {"train/loss", "monitor/linear_top1"} <= {*scalars}
    assert [(event.step, event.value) for event in events.Scalars("1 loss/train")] == [(3, 2.0)]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert [any(re.search(tag, name) for tag in tags[:5]) for name in ("train/loss", "monitor/linear_top1")] == [
        True
    ] * 2

    def content(tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)

    start = content("_hparams_/session_start_info").session_start_info.hparams
    assert start["optim.base_lr"].number_value == 1e-3
    assert start["data.mean"].string_value == "[0.5, 0.5]"
    experiment = content("_hparams_/experiment").experiment
    assert {info.name for info in experiment.hparam_infos} == {*settings}
    figures = [(info.name.group, info.name.tag) for info in experiment.metric_infos]
    assert {("", "train/loss"), ("", "monitor/linear_top1"), ("knn", "knn/top1")} <= {*figures}


def test_rows_of_a_table_wait_in_memory(tmp_path, monkeypatch):
    logger = CSVCurves(tmp_path, name="csv")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    logger.log_metrics({"a": 2.0}, 1)
    file = Path(logger.log_dir, "metrics.csv")

    def writes_half(self, rows):
        self.writer.writerow("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", writes_half)
        patient(logger).save()
    assert file.read_text().count("\n") == 2
    logger.save()
    assert [row["a"] for row in csv.DictReader(file.open())] == ["1.0", "2.0"]


class Refusing(Logger):
    """Of wandb's kind: it raises wherever it is called."""

    name, version = "refusing", ""

    def log_metrics(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log_hyperparams = log_image = save = finalize = log_metrics


def test_a_run_goes_on_where_no_logger_can_write(tmp_path, monkeypatch, caplog):
    """The same weights as with all of them, and what could be written afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)
    args = ["trainer.logger=[tensorboard,csv]", "trainer.max_epochs=1", "trainer.checkpoint_every_steps=99"]
    for name in ("whole", "full"):
        resolved = resolve_run(RunConfig, args_of("mae", f"run_dir={name}", *args))
        pretrain(resolved.config, resolved.name)
        board = loggers_of(["tensorboard"], Path("full"), 0)
        monkeypatch.setattr("ssl_vit.train.trainer.loggers_of", lambda *given, made=board: [*made, patient(Refusing())])
        monkeypatch.setattr("pytorch_lightning.loggers.tensorboard.save_hparams_to_yaml", Refusing().log_metrics)
        monkeypatch.setattr("ssl_vit.run.files.len", lambda content: 10**9, raising=False)
    assert same(*(load_file(f"{name}/encoder.safetensors") for name in ("whole", "full")))
    assert json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[0])["step"] == 0
    assert Path("full/metrics.jsonl").read_text() == ""
    for name in ("TensorBoardLogger", "Refusing", "metrics.jsonl", "events.out"):
        said = [record.message for record in caplog.records if name in record.message]
        assert len(said) == 1, said
