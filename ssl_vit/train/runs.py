"""What pretraining, tokenizers and fine-tuning have in common: seed, run directory, result with metadata.

What may not fit (encoder, tokenizer, teacher, labels) is built between Session() and open(), which is the first to
write.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_vit import __version__
from ssl_vit.callbacks.image_logger import ImageLogger, save_image
from ssl_vit.config.schema import PatchGrid, TrainingRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.methods.base import Objective
from ssl_vit.run.directory import open_run
from ssl_vit.train.trainer import fit, quiet_lightning


class Session:
    """One training from its config to its result, PyTorch's generators seeded.

    Args:
        method: name of the method or tokenizer, for config.yaml and the metadata. prefix: of a made-up directory;
            it names the training where there is no method.
    """

    run_dir: Path
    checkpoint: Path | None
    """To resume; both are known after open()."""

    def __init__(self, config: TrainingRun, method: str, prefix: str) -> None:
        quiet_lightning()
        self.config, self.method, self.prefix, self.started = config, method, prefix, time.time()
        pl.seed_everything(config.seed, verbose=False)

    def open(self) -> None:
        """Take the run directory, which has a config.yaml then; errors as of open_run."""
        self.run_dir, self.checkpoint = open_run(self.config, self.method, self.prefix)

    def fit(
        self, objective: Objective, data: ImageDataModule, callback: ImageLogger, patches: PatchGrid | None = None
    ) -> Any:
        """Train to the end: the objective with all of its weights on the first rank, None on the others."""
        return fit(self.config, objective, data, self.run_dir, self.checkpoint, callback, patches)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.time() - self.started, 1)

    def export(self, write: Callable[..., Path], **metadata: Any) -> None:
        """Save the result, by `write(folder, **metadata)`, with what is known of every training and the metadata."""
        known = {
            "method": self.method or self.prefix,
            "recipe": self.config.recipe,
            "mean": self.config.data.mean,
            "std": self.config.data.std,
            "data": asdict(self.config.data),
            "seed": self.config.seed,
            "ssl_vit": __version__,
            "torch": torch.__version__,
        }
        print(f"saved {write(self.run_dir, **known, **metadata)}")

    def log_image(
        self, tag: str, grid: UInt8[Tensor, "3 height width"], file: str, step: int = 0, **scalars: float
    ) -> None:
        """Write an image, and scalars as test/<name>, to TensorBoard; the image as a PNG file of the run too."""
        save_image(grid, self.run_dir / file)
        with SummaryWriter(str(self.run_dir)) as writer:
            writer.add_image(tag, grid, step)
            for name, value in scalars.items():
                writer.add_scalar(f"test/{name}", value, step)
