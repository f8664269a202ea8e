"""What every training does around its steps: Lightning's trainer in a run directory, and a stop that loses nothing."""

import logging
import signal
import traceback
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import ModelParallelStrategy

from ssl_vit.callbacks.collapse import CollapseMonitor
from ssl_vit.callbacks.image_logger import ImageLogger
from ssl_vit.callbacks.skipped_steps import SkippedSteps
from ssl_vit.callbacks.throughput import Throughput
from ssl_vit.callbacks.unreadable_images import UnreadableImages
from ssl_vit.config.schema import PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.transforms.crops import Transform
from ssl_vit.methods.base import Objective
from ssl_vit.methods.guard import DivergenceError, Guard
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.run.files import CHECKPOINTS, QUARANTINE, SKIPPED_STEPS, newest_checkpoint, write_atomic
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.signals import Stopped, requeue
from ssl_vit.train.checkpoints import Checkpoints
from ssl_vit.train.console import ProgressPrinter
from ssl_vit.train.plan import devices_of, make_plan

log = logging.getLogger("ssl_vit")


def data_of(
    config: TrainingRun, transform: Transform | None, patches: PatchGrid | None = None, labeled: bool = False
) -> ImageDataModule:
    """The run's images, augmented by a transform.

    Args:
        patches: of a run whose config does not have them, because its encoder does.
    """
    patches = patches or config.patches
    size, channels = patches.height_width, patches.channels
    return ImageDataModule(
        transform, config.data, image_size=size, channels=channels, seed=config.seed, labeled=labeled
    )


def fit(
    config: TrainingRun,
    objective: Objective,
    data: ImageDataModule,
    run_dir: Path,
    checkpoint: Path | None,
    callback: ImageLogger,
    patches: PatchGrid | None = None,
) -> Any:
    """Train to the end, leaving a last checkpoint.

    Args:
        patches: of a run whose config does not have them, because its encoder does.

    Returns:
        what is evaluated and exported: the objective with all of its weights on the first rank, None on the others.

    Raises:
        Stopped: a signal has ended it, after a checkpoint.
        OSError: the last checkpoint could not be written.
        what else stops the training; error.txt then has its traceback, and the log has how to resume.
    """
    if is_first_process():
        announce(config, run_dir, checkpoint, patches)
    if config.trainer.compile:
        compile_blocks(objective)
    objective.max_skipped_steps = config.trainer.max_skipped_steps
    data.read_errors.list_in(run_dir / QUARANTINE)
    try:
        try:
            train(config, objective, data, run_dir, checkpoint, callback)
        except DivergenceError as error:
            objective.guard = Guard()
            train(config, objective, data, run_dir, checkpoint_before(error, run_dir), callback)
    except Stopped as stop:
        if not is_first_process():  # where one that it started fails, Lightning kills the first process
            raise SystemExit(0) from None
        if stop.number == signal.SIGUSR1:
            requeue()
        stop.run_dir = run_dir
        raise
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    except Exception:
        with suppress(OSError):  # of a full disk, which may be what has stopped the training
            write_atomic(run_dir / "error.txt", traceback.format_exc())
        if any((run_dir / CHECKPOINTS).glob("*.ckpt")):
            log.error(f"stopped; resume with the same command and resume={run_dir}")
        raise
    return objective.whole()


def train(
    config: TrainingRun,
    objective: Objective,
    data: ImageDataModule,
    run_dir: Path,
    checkpoint: Path | None,
    callback: ImageLogger,
) -> None:
    """Fit from a checkpoint or from the start to the end. OSError: the last checkpoint could not be written."""
    checkpoints = Checkpoints(run_dir, config.trainer.checkpoint_every_steps, config.trainer.keep_checkpoints)
    step = first_step(checkpoint)
    checkpoints.begin(step)
    trainer = make_trainer(config, run_dir, callback, checkpoints, step)
    trainer.fit(objective, data, ckpt_path=checkpoint, weights_only=True)
    if error := checkpoints.save(trainer):
        raise error


def checkpoint_before(error: DivergenceError, run_dir: Path) -> Path:
    """The checkpoint to go back to. Raises the error itself where there is none yet."""
    if not any((run_dir / CHECKPOINTS).glob("*.ckpt")):
        raise error
    checkpoint = newest_checkpoint(run_dir)
    log.warning(f"{error}. Going back to {checkpoint}; the second time the run stops")
    return checkpoint


def first_step(checkpoint: Path | None) -> int:
    """Optimizer steps that a run has done as it begins."""
    if checkpoint is None:
        return 0
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]


def strategy_of(trainer: TrainerConfig) -> Any:
    """trainer.strategy as Lightning takes it."""
    if trainer.strategy != "fsdp":
        return trainer.strategy
    world_size = devices_of(trainer) * trainer.num_nodes
    return ModelParallelStrategy(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)


def make_trainer(
    config: TrainingRun, run_dir: Path, callback: ImageLogger, checkpoints: Checkpoints, step: int
) -> pl.Trainer:
    """Lightning's trainer with our limits, loggers and callbacks, for a run that has done so many steps."""
    trainer = config.trainer
    monitor = CollapseMonitor()
    callbacks = [
        checkpoints,
        Throughput(),
        SkippedSteps(run_dir / SKIPPED_STEPS),
        UnreadableImages(),
        monitor,
        ProgressPrinter(monitor),
    ]
    if config.monitor.every_epochs:
        callbacks.insert(1, callback)
    return pl.Trainer(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps or -1,
        max_time=timedelta(minutes=trainer.max_minutes) if trainer.max_minutes else None,
        devices=devices_of(trainer),
        num_nodes=trainer.num_nodes,
        strategy=strategy_of(trainer),
        precision=precision_of(trainer),  # pyright: ignore[reportArgumentType]
        accumulate_grad_batches=trainer.accumulate,
        log_every_n_steps=trainer.log_every_steps,
        logger=[
            # What an earlier attempt logged of later steps is hidden.
            TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False, purge_step=step + 1),
            checkpoints.metrics,
        ],
        callbacks=callbacks,
        plugins=[checkpoints.writer],
        use_distributed_sampler=False,  # ImageDataModule's sampler knows its rank
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )


def precision_of(trainer: TrainerConfig) -> str:
    """trainer.precision, with auto resolved: bf16-mixed where the GPU or the CPU multiplies matrices in it."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if has_bf16() else "32-true"


def has_bf16() -> bool:
    """Whether the GPU, or without one the CPU, multiplies matrices in bf16."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_amx_tile_supported()


def announce(config: TrainingRun, run_dir: Path, checkpoint: Path | None, patches: PatchGrid | None = None) -> None:
    """Print where the run writes and what it will do."""
    print(f"run           {run_dir}")
    if checkpoint:
        print(f"resuming      {checkpoint}")
    elif config.resume:
        print("resuming      nothing to resume yet: a new run")
    print("\n".join(make_plan(config, patches).lines()), flush=True)


def quiet_lightning() -> None:
    """Silence Lightning's messages and the warnings that do not apply here."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory.*",
        ".*LeafSpec.*deprecated.*",
        ".*in eval mode at the start of training.*",  # a teacher is
    ):
        warnings.filterwarnings("ignore", message=message)
