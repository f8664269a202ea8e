"""Diagnoses: each kind of collapse is provoked in a real run, and named; a run that has learned nothing is no healthy
one."""

import json
import math
import re

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ssl_vit.callbacks import collapse
from ssl_vit.callbacks.collapse import ADVICE, ASLEEP, HEALTHY, ONE, SHORT, UNIFORM, CollapseMonitor, diagnose
from ssl_vit.callbacks.online_eval import OnlineProbe
from ssl_vit.config.schema import MonitorConfig, ReadoutConfig
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.mae import MAE
from ssl_vit.train.jsonl import JsonLines

K = 64
ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 16, "drop_path": 0.0}
SMALL = {"local_crops": 2, "local_size": 8, "prototypes": K, "head_hidden": 32, "head_bottleneck": 16}


@pytest.mark.parametrize(
    ("information", "mean_entropy", "student_entropy", "was_healthy", "fraction", "diagnosis"),
    [
        (0.5, 0.8, 0.5, False, 0.9, HEALTHY),
        (0.02, 0.99, 0.999, False, 0.2, ASLEEP),
        (0.02, 0.99, 0.999, False, 0.9, UNIFORM),
        (0.02, 0.99, 0.7, False, 0.9, ASLEEP),
        (0.02, 0.99, 0.7, True, 0.2, UNIFORM),
        (0.0, 0.01, 0.0, True, 0.9, ONE),
    ],
)
def test_diagnoses(information, mean_entropy, student_entropy, was_healthy, fraction, diagnosis):
    uniform = math.log(K)
    assert (
        diagnose(information, mean_entropy * uniform, student_entropy * uniform, K, was_healthy, fraction) == diagnosis
    )


def run(tmp_path, optim: dict, **options) -> tuple[CollapseMonitor, list[dict]]:
    torch.manual_seed(0)
    method = DINO(ENCODER, {"warmup_epochs": 0, "weight_decay": 0.0, **optim}, **{**SMALL, **options})
    images = torch.randn(32, 3, 16, 16)
    return fit(tmp_path, method, ([images, images.flip(-1), images[..., 4:12, 4:12], images[..., :8, 4:12]],))


def fit(tmp_path, method: pl.LightningModule, batch, steps: int = 60) -> tuple[CollapseMonitor, list[dict]]:
    monitor, metrics = CollapseMonitor(memory=0.0), tmp_path / "metrics.jsonl"
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        logger=JsonLines(metrics),
        callbacks=[monitor],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(method, DataLoader([batch], batch_size=None))  # pyright: ignore[reportArgumentType]
    return monitor, [json.loads(line) for line in metrics.read_text().splitlines()]


ALIVE = {"head_norm": True, "freeze_last_layer": 0, "momentum": 0.9, "warmup_teacher_temp": 0.02, "teacher_temp": 0.02}


def test_a_run_that_learns_is_healthy(tmp_path, caplog):
    monitor, rows = run(tmp_path, {"base_lr": 0.02}, **ALIVE)
    diagnoses = [row["health"] for row in rows if "health" in row]
    assert diagnoses[-2:] == [HEALTHY, SHORT]
    assert str(monitor) == "too short: 60 steps after the warm-up, fewer than 200"


def test_a_run_that_cannot_learn_has_not_started(tmp_path, caplog):
    monitor, _ = run(tmp_path, {"base_lr": 1e-9})
    assert monitor.diagnosis == ASLEEP
    assert "method.head_norm=true first" in ADVICE[ASLEEP]


def test_a_teacher_too_soft_ends_uniform(tmp_path):
    monitor, _ = run(tmp_path, {"base_lr": 0.02}, **{**ALIVE, "warmup_teacher_temp": 1.0, "teacher_temp": 1.0})
    assert monitor.diagnosis == UNIFORM


def test_a_teacher_that_becomes_too_soft_is_seen_to_fall_back(tmp_path):
    start = {"warmup_teacher_temp": 0.02, "teacher_temp": 1.0, "warmup_teacher_temp_epochs": 50}
    _, rows = run(tmp_path, {"base_lr": 0.02}, **{**ALIVE, **start})
    diagnoses = [row["health"] for row in rows if "health" in row]
    assert HEALTHY in diagnoses[: diagnoses.index(UNIFORM)]


def test_a_center_that_stands_still_lets_one_prototype_win(tmp_path):
    monitor, _ = run(tmp_path, {"base_lr": 0.05}, **{**ALIVE, "center_momentum": 1.0, "head_norm": False})
    assert monitor.diagnosis == ONE


MAE_OPTIONS = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("base_lr", [0.5, 1e-9])
def test_a_reconstruction_is_compared_with_the_mean_of_each_patch(tmp_path, norm_pix, base_lr, caplog):
    """Of four images that it sees again and again, the second run learns nothing."""
    caplog.set_level("INFO")
    optim = {"warmup_epochs": 0, "base_lr": base_lr}
    method = MAE(ENCODER, optim, norm_pix=norm_pix, **MAE_OPTIONS)
    images = 3 * torch.rand(4, 3, 1, 16).expand(4, 3, 16, 16)  # of variance 3 * 3 / 12
    monitor, rows = fit(tmp_path, method, images, steps=210)
    baselines = [row["train/baseline"] for row in rows if "train/baseline" in row]
    assert baselines[-1] == pytest.approx(1 - 1 / 48 if norm_pix else 0.75, rel=0.4)
    if base_lr < 1e-3:
        assert str(monitor) == "not started: no better than the mean of each hidden patch"
        assert "the mean of each hidden patch: train longer" in caplog.text
    else:
        assert re.fullmatch(r"healthy: reconstructs \d+% of the variance of hidden patches", str(monitor))
    assert {"step": 210, "health": monitor.diagnosis} in rows


class Ended:
    """A trainer at its end, whose linear probe was at `start` before the first step and is at `end` now."""

    is_global_zero, loggers, max_epochs = True, [], 10

    def __init__(self, steps: int, end: float | None, images: int = 100) -> None:
        self.callback_metrics, self.global_step = {}, steps
        probe = OnlineProbe(MonitorConfig(), ReadoutConfig())
        self.callbacks, probe.test_images = [probe], images
        if end is not None:
            self.callback_metrics["monitor/linear_top1"] = torch.tensor(end)


@pytest.mark.parametrize(
    ("steps", "start", "end", "diagnosis"),
    [
        (9, 0.8, 0.9, HEALTHY),  # who is better has learned something, however short it was
        (9000, 0.8, 0.82, SHORT),  # of 100 images that is chance
        (9000, 0.8, 0.7, SHORT),
        (223, None, None, HEALTHY),
        (223, 0.8, None, HEALTHY),  # labels whose features were not finite
        (222, None, None, SHORT),
    ],
)
def test_an_encoder_that_is_no_better_than_before_is_too_short(steps, start, end, diagnosis, monkeypatch):
    """70 steps of a recipe for large batches ended healthy, with features worse than those of a random encoder."""
    monkeypatch.setattr(collapse, "fraction_of_epochs", lambda trainer, epochs: epochs / 10)
    monitor, method = CollapseMonitor(), MAE(ENCODER, {"warmup_epochs": 1}, **MAE_OPTIONS)
    monitor.diagnosis, monitor.start = HEALTHY, start
    monitor.on_train_end(Ended(steps, end), method)  # pyright: ignore[reportArgumentType]
    assert monitor.diagnosis == diagnosis
    monitor.on_train_end(Ended(9000, start and start + 0.15), method)  # pyright: ignore[reportArgumentType]
    assert monitor.diagnosis in ("", HEALTHY)  # resumed, and longer now


def test_what_is_no_encoder_is_not_too_short():
    monitor = CollapseMonitor()
    monitor.on_train_end(Ended(1, None), pl.LightningModule())  # pyright: ignore[reportArgumentType]
    assert monitor.diagnosis == ""
