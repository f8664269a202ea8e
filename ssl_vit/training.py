"""What every training does around its steps: a run directory, Lightning's trainer, and a stop that loses nothing."""

import logging
import os
import signal
import traceback
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from ssl_vit.blocks import compile_blocks
from ssl_vit.config.load import to_yaml
from ssl_vit.config.schema import PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.data.module import ImageDataModule
from ssl_vit.lock import hold
from ssl_vit.monitor.checkpoints import Checkpoints
from ssl_vit.monitor.console import Console
from ssl_vit.monitor.health import Health
from ssl_vit.monitor.look import Look
from ssl_vit.monitor.throughput import Throughput
from ssl_vit.objective import Objective
from ssl_vit.plan import make_plan
from ssl_vit.runs import CHECKPOINTS, CONFIG, damage, new_run_dir, newest_checkpoint, write_atomic
from ssl_vit.stop import Stopped, requeue

log = logging.getLogger("ssl_vit")


def data_of(config: TrainingRun, objective: Objective) -> ImageDataModule:
    """The run's pictures, as its objective sees them."""
    patches = config.patches
    size, channels = patches.height_width, patches.channels
    return ImageDataModule(objective.views(), config.data, image_size=size, channels=channels, seed=config.seed)


def fit(
    config: TrainingRun,
    objective: Objective,
    data: ImageDataModule,
    run_dir: Path,
    checkpoint: Path | None,
    look: Look,
    patches: PatchGrid | None = None,
) -> bool:
    """Train to the end, leaving a last checkpoint; whether this is the process that writes the result.

    Args:
        patches: of a run whose settings do not have them, because its encoder does.

    Raises:
        Stopped: a signal has ended it, after a checkpoint.
        OSError: the last checkpoint could not be written.
        what else stops the training; error.txt then has its traceback, and the log says how to go on.
    """
    checkpoints = Checkpoints(run_dir, config.trainer.checkpoint_every_steps, config.trainer.keep_checkpoints)
    step = first_step(checkpoint)
    checkpoints.begin(step)
    trainer = make_trainer(config, run_dir, look, checkpoints, step)
    if trainer.is_global_zero:
        announce(config, run_dir, checkpoint, patches)
    if config.trainer.compile:
        compile_blocks(objective)
    try:
        trainer.fit(objective, data, ckpt_path=checkpoint, weights_only=True)
        if error := checkpoints.save(trainer):
            raise error
    except Stopped as stop:
        if not trainer.is_global_zero:  # where one that it started fails, Lightning kills the first process
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
            log.error(f"stopped; go on with the same command and resume={run_dir}")
        raise
    return trainer.is_global_zero


def first_step(checkpoint: Path | None) -> int:
    """Optimiser steps that a run has behind it as it begins."""
    if checkpoint is None:
        return 0
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]


def open_run(config: TrainingRun, method: str, name: str) -> tuple[Path, Path | None]:
    """The run's directory with its config.yaml, and the checkpoint to go on from, if any.

    Args:
        name: begins the directory's name, where it is made up.

    Raises:
        FileExistsError: run_dir holds another run already.
        BlockingIOError: another process is writing into it.
        FileNotFoundError, ValueError: it has no checkpoint to resume, or none that is whole.
    """
    inherited = os.environ.get("SSL_VIT_RUN_DIR") if "LOCAL_RANK" in os.environ else None
    run_dir = Path(config.run_dir or inherited or new_run_dir(name, config.recipe))
    os.environ["SSL_VIT_RUN_DIR"] = str(run_dir)  # Lightning starts the other processes of a node by this command
    if not is_first_process():
        return run_dir, checkpoint_to_resume(config.resume, run_dir)
    hold(run_dir)
    if (run_dir / CONFIG).exists() and not config.resume:
        raise FileExistsError(f"run_dir={run_dir} holds a run already: add resume=auto, or name another directory")
    checkpoint = checkpoint_to_resume(config.resume, run_dir)
    write_atomic(run_dir / CONFIG, to_yaml(config, method))
    return run_dir, checkpoint


def checkpoint_to_resume(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that resume= means: a file, or the newest of run_dir that is whole; for auto None without any.

    Raises:
        FileNotFoundError: run_dir has none. ValueError: it is damaged, or all are.
    """
    given = Path(resume)
    if resume and given.is_file():
        if problem := damage(given):
            raise ValueError(f"resume={resume} is damaged ({problem}): give another, or resume={run_dir}")
        return given
    if not resume or (resume == "auto" and not any((run_dir / CHECKPOINTS).glob("*.ckpt"))):
        return None
    return newest_checkpoint(run_dir)


def is_first_process() -> bool:
    """Whether this process of the run writes and speaks; known before the processes have met.

    torchrun gives each its RANK, SLURM its SLURM_PROCID, and Lightning's launcher its LOCAL_RANK on its machine.
    """
    given = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return int(given[0] if given else 0) == int(machine) == 0


def make_trainer(config: TrainingRun, run_dir: Path, look: Look, checkpoints: Checkpoints, step: int) -> pl.Trainer:
    """Lightning's trainer with our limits, loggers and callbacks, for a run that has so many steps behind it."""
    trainer = config.trainer
    health = Health()
    callbacks = [checkpoints, Throughput(), health, Console(health)]
    if config.monitor.every_epochs:
        callbacks.insert(1, look)
    return pl.Trainer(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps or -1,
        max_time=timedelta(minutes=trainer.max_minutes) if trainer.max_minutes else None,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=trainer.strategy,
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
    cuda = torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def announce(config: TrainingRun, run_dir: Path, checkpoint: Path | None, patches: PatchGrid | None = None) -> None:
    """Print where the run writes and what it will do."""
    print(f"run           {run_dir}")
    if checkpoint:
        print(f"resuming      {checkpoint}")
    elif config.resume:
        print("resuming      nothing to resume yet: a new run")
    print("\n".join(make_plan(config, patches).lines()), flush=True)


def quiet_lightning() -> None:
    """Silence what Lightning says to everybody and what does not apply here."""
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
