"""A plain Trainer on batches that a test has made."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings = {**dict.fromkeys(QUIET, False), "max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder}
    return pl.Trainer(**{**settings, **options})


def fit(method: pl.LightningModule, batches: list, folder: Path, **options: Any) -> pl.Trainer:
    made = trainer(folder, **options)
    made.fit(method, DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType]
    return made


def assert_resumes_to_the_bit(whole: pl.LightningModule, rest: pl.LightningModule, batches: list, folder: Path) -> None:
    """Two epochs of `whole`; `rest` begins with its checkpoint after the first one."""
    checkpoints = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, batches, folder, callbacks=[checkpoints], max_epochs=2, enable_checkpointing=True)
    resumed = trainer(folder, max_epochs=2)
    loader: DataLoader = DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]
    resumed.fit(rest, loader, ckpt_path=folder / f"step={len(batches)}.ckpt", weights_only=True)
    assert resumed.global_step == 2 * len(batches)
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in whole.state_dict().items())
