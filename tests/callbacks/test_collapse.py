"""Diagnoses of self-distillation: each kind of collapse is provoked in a real run, and named."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ssl_vit.callbacks.collapse import ADVICE, ASLEEP, HEALTHY, ONE, UNIFORM, CollapseMonitor, diagnose
from ssl_vit.methods.dino import DINO
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
    batch = ([images, images.flip(-1), images[..., 4:12, 4:12], images[..., :8, 4:12]],)
    monitor, metrics = CollapseMonitor(memory=0.0), tmp_path / "metrics.jsonl"
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=60,
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
    assert monitor.diagnosis == HEALTHY
    assert {"step": 60, "health": HEALTHY} in rows


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


def test_methods_without_a_teacher_get_no_diagnosis(tmp_path):
    from ssl_vit.methods.mae import MAE

    method = MAE({**ENCODER}, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    monitor = CollapseMonitor()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(method, DataLoader([torch.randn(4, 3, 16, 16)], batch_size=None))  # pyright: ignore[reportArgumentType]
    assert monitor.diagnosis == ""
