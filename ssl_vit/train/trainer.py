"""One training from its config to its result: seed, run directory, Lightning's trainer, a stop that loses nothing."""

import logging
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor

from ssl_vit import __version__
from ssl_vit.callbacks.image_logger import save_image
from ssl_vit.callbacks.throughput import Throughput
from ssl_vit.config.recipes import OF_ONE_RUN
from ssl_vit.config.resolve import to_yaml
from ssl_vit.config.schema import PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import source_class
from ssl_vit.data.transforms.crops import Transform
from ssl_vit.methods.base import Objective
from ssl_vit.methods.guard import ADVICE, DivergenceError
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.optim.progress import planned_steps
from ssl_vit.run.compare import leaves
from ssl_vit.run.directory import open_run
from ssl_vit.run.files import CONFIG, QUARANTINE, checkpoints_of, newest_checkpoint, write_atomic
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.signals import Stopped, requeue
from ssl_vit.train.checkpoints import Checkpoints
from ssl_vit.train.console import ProgressPrinter
from ssl_vit.train.curves import Curves, loggers_of
from ssl_vit.train.plan import devices_of, plan_lines, precision_of, require_possible, settled

log = logging.getLogger("ssl_vit")
INAPPLICABLE = (
    *("does not have many workers", "smaller than the logging interval", "Checkpoint directory"),
    *("LeafSpec.*deprecated", "in eval mode at the start of training"),  # as a teacher is
)
"""Warnings that do not apply here."""


class Session:
    """One training, PyTorch's generators seeded.

    What may not fit (encoder, tokenizer, teacher, labels) is built before open(), which is the first to write.

    Args:
        method: name of the method or tokenizer, for config.yaml and the metadata; "" of a fine-tuning.
        prefix: of the name of a directory that is made up.
    """

    patches: PatchGrid | None = None
    """Of a run whose config does not have them, because its encoder does."""
    run_dir: Path
    """Known after open(), as is the checkpoint to resume."""
    checkpoint: Path | None
    steps: dict[str, int]
    """Of the metadata: done, and planned by the run's epochs or steps. Known after fit()."""

    def __init__(self, config: TrainingRun, method: str, prefix: str) -> None:
        quiet_lightning()
        self.steps = {}  # of one without steps
        require_possible(config)
        self.config, self.method, self.prefix, self.started = config, method, prefix, time.time()
        pl.seed_everything(config.seed, verbose=False)

    def open(self) -> None:
        """Take the run directory, which has a config.yaml then; errors as of open_run."""
        self.plan = plan_lines(self.config, self.patches) if is_first_process() else []  # or why there is none
        self.run_dir, self.checkpoint = open_run(self.config, self.method, self.prefix)

    def fit(self, objective: Objective, data: ImageDataModule) -> Any:
        """Train to the end, leaving a last checkpoint: the objective with all weights on the first rank, else None.

        Raises:
            Stopped: a signal has ended it, after a checkpoint.
            DivergenceError: too many steps were skipped, or all.
            OSError: the last checkpoint could not be written.
            what else stops the training; error.txt then has its traceback, and the log has how to resume.
        """
        if is_first_process():
            print(f"run           {self.run_dir}")
            if self.config.resume:
                print(f"resuming      {self.checkpoint or 'nothing to resume yet: a new run'}")
            loads = source_class(self.config.data.source).downloads and not self.config.data.remote
            if loads:  # what nobody has counted yet
                data.prepare_data()
            splits = data.splits if data.labeled or loads else None  # of labeled data, which is open
            lines = plan_lines(self.config, self.patches, data.labeled, splits) if splits else self.plan
            print("\n".join(lines), flush=True)
        if self.config.trainer.compile:
            compile_blocks(objective)
        objective.max_skipped_steps = self.config.trainer.max_skipped_steps
        data.read_errors.list_in(self.run_dir / QUARANTINE)
        try:
            try:
                self._train(objective, data)
            except DivergenceError as error:
                if not checkpoints_of(self.run_dir):
                    raise
                self.checkpoint = newest_checkpoint(self.run_dir)
                log.warning(f"{error}. Going back to {self.checkpoint}; the second time the run stops")
                self._train(objective, data)
            if (steps := self.steps["step"]) and not objective.guard.taken:
                line = f"loss or gradient was not finite in all {steps:,} steps; the weights are those of the start"
                raise DivergenceError(f"{line}. {ADVICE}")
        except Stopped as stop:
            if not is_first_process():  # where one that it started fails, Lightning kills the first process
                raise SystemExit(0) from None
            if stop.number == signal.SIGUSR1:
                requeue()
            stop.run_dir = self.run_dir
            raise
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        except Exception:
            with suppress(OSError):  # of a full disk, which may be what has stopped the training
                write_atomic(self.run_dir / "error.txt", traceback.format_exc())
            if checkpoints_of(self.run_dir):
                log.error(f"stopped; resume with the same command and resume={self.run_dir}")
            raise
        return objective.whole()

    def _train(self, objective: Objective, data: ImageDataModule) -> None:
        """From the checkpoint, or the start, to the end. OSError: the last checkpoint could not be written."""
        config, run_dir, step = settled(self.config).trainer, self.run_dir, 0
        if self.checkpoint:
            step = torch.load(self.checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
        checkpoints = Checkpoints(run_dir, config.checkpoint_every_steps, config.keep_checkpoints, step)
        devices, strategy = devices_of(config), config.strategy
        if strategy == "fsdp":
            strategy = ModelParallelStrategy(devices * config.num_nodes, 1, save_distributed_checkpoint=False)
        trainer = trainer_of(
            config,
            max_steps=config.max_steps or -1,
            max_time=timedelta(minutes=config.max_minutes) if config.max_minutes else None,
            devices=devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            logger=[checkpoints.metrics, *loggers_of(config.logger, run_dir, step, self.settings)],
            callbacks=[Throughput(), ProgressPrinter(), checkpoints, LambdaCallback(on_train_start=self._begin)],
            limit_val_batches=0,  # monitors evaluate
            plugins=[checkpoints.writer],
            use_distributed_sampler=False,  # ImageDataModule's sampler knows its rank
            default_root_dir=run_dir,
        )
        try:
            trainer.fit(objective, data, ckpt_path=self.checkpoint, weights_only=True)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            if self.checkpoint is None or checkpoints.begun:
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(f"{self.checkpoint} is no checkpoint of such a run ({reason}): resume another") from error
        if error := checkpoints.save(trainer):
            raise error
        done, planned = trainer.global_step, int(planned_steps(trainer))
        self.steps = {"step": done, "planned_steps": planned}
        if config.max_minutes and done < planned and trainer.is_global_zero:
            line = f"stopped by trainer.max_minutes after {done:,} of {planned:,} planned steps"
            print(f"{line}: figures of the recipe are not to be expected", flush=True)

    def _begin(self, trainer: pl.Trainer, *args: Any) -> None:
        """A resumed run has its new settings as soon as it really goes on with them."""
        if self.checkpoint and trainer.is_global_zero:
            write_atomic(self.run_dir / CONFIG, to_yaml(self.config, self.method))

    @property
    def settings(self) -> dict[str, Any]:
        """By dotted key, without those of this one run."""
        tree = yaml.safe_load(to_yaml(self.config, self.method))
        return {key: value for key, value in leaves(tree) if key not in OF_ONE_RUN[1:]}

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
            **self.steps,
        }
        print(f"saved {write(self.run_dir, **known, **metadata)}")

    def log_image(self, tag: str, grid: Tensor, file: str, step: int = 0, **scalars: float) -> None:
        """Write an image (uint8 [3, H, W]), and scalars as test/<name>, to TensorBoard; the image as a PNG file too."""
        save_image(grid, self.run_dir / file)
        with Curves(str(self.run_dir)) as writer:
            writer.add_image(tag, grid, step)
            for name, value in scalars.items():
                writer.add_scalar(f"test/{name}", value, step)


def data_of(
    config: TrainingRun, transform: Transform | None, patches: PatchGrid | None = None, labeled: bool = False
) -> ImageDataModule:
    """The run's images, augmented by a transform; with the patches of an encoder where the config has none."""
    patches = patches or config.patches
    size, channels = patches.height_width, patches.channels
    return ImageDataModule(
        transform, config.data, image_size=size, channels=channels, seed=config.seed, labeled=labeled
    )


def trainer_of(config: TrainerConfig, **options: Any) -> pl.Trainer:
    """Lightning's trainer with the run's own epochs, precision, accumulation and logging, and its options."""
    return pl.Trainer(
        max_epochs=config.max_epochs,
        precision=precision_of(config),  # pyright: ignore[reportArgumentType]
        accumulate_grad_batches=config.accumulate,
        log_every_n_steps=config.log_every_steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def quiet_lightning() -> None:
    """Silence Lightning's messages and the warnings that do not apply here."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in INAPPLICABLE:
        warnings.filterwarnings("ignore", message=f".*{message}")
