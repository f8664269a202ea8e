"""What every training does around its steps: a run directory, Lightning's trainer, and a stop that loses nothing."""

import logging
import os
import traceback
import warnings
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_only

from ssl_vit.blocks import compile_blocks
from ssl_vit.config.load import to_yaml
from ssl_vit.config.schema import PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.data.module import ImageDataModule
from ssl_vit.distributed import agreed
from ssl_vit.guard import DivergenceError, Guard
from ssl_vit.monitor.bad_pictures import BadPictures
from ssl_vit.monitor.bad_steps import BadSteps
from ssl_vit.monitor.console import Console
from ssl_vit.monitor.health import Health
from ssl_vit.monitor.look import Look
from ssl_vit.monitor.records import AtomicCheckpoints, Checkpoints, JsonLines
from ssl_vit.monitor.throughput import Throughput
from ssl_vit.objective import Objective
from ssl_vit.plan import devices_of, make_plan
from ssl_vit.runs import (
    BAD_STEPS,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    QUARANTINE,
    RUNS,
    new_run_dir,
    newest_checkpoint,
    run_prefix,
    write_atomic,
)

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
) -> Any:
    """Train to the end, leaving a last checkpoint.

    Args:
        patches: of a run whose settings do not have them, because its encoder does.

    Returns:
        what is to be judged and exported: the objective with all of its weights on the process that writes the result,
        None on the others.

    Raises:
        what stops the training; error.txt then has its traceback, and the log says how to go on.
    """
    trainer = make_trainer(config, run_dir, look)
    if trainer.is_global_zero:
        announce(config, run_dir, checkpoint, patches)
    if config.trainer.compile:
        compile_blocks(objective)
    objective.max_bad_steps = config.trainer.max_bad_steps
    data.faults.list_in(run_dir / QUARANTINE)
    try:
        try:
            trainer.fit(objective, data, ckpt_path=checkpoint, weights_only=True)
        except DivergenceError as error:
            objective.guard, trainer = Guard(), make_trainer(config, run_dir, look)
            trainer.fit(objective, data, ckpt_path=before(error, run_dir), weights_only=True)
    except (Exception, KeyboardInterrupt):
        write_atomic(run_dir / "error.txt", traceback.format_exc())
        if any((run_dir / CHECKPOINTS).glob("*.ckpt")):
            log.error(f"stopped; go on with the same command and resume={run_dir}")
        raise
    trainer.save_checkpoint(run_dir / CHECKPOINTS / "last.ckpt")
    return objective.whole()


def before(error: DivergenceError, run_dir: Path) -> Path:
    """The checkpoint to go back to. Raises the error itself where there is none yet."""
    if not any((run_dir / CHECKPOINTS).glob("*.ckpt")):
        raise error
    checkpoint = newest_checkpoint(run_dir)
    log.warning(f"{error}. Going back to {checkpoint}; the second time the run stops")
    return checkpoint


def open_run(config: TrainingRun, method: str, name: str) -> tuple[Path, Path | None]:
    """The run's directory with its config.yaml, and the checkpoint to go on from, if any.

    Args:
        name: begins the directory's name, where it is made up.

    Raises:
        FileExistsError: run_dir holds another run already.
    """
    require_strategy(config.trainer)
    run_dir = Path(config.run_dir) if config.run_dir else made_up_run_dir(name, config)
    os.environ["SSL_VIT_RUN_DIR"] = str(run_dir)  # Lightning starts the other processes of a node by this command
    first, checkpoint = is_first_process(), None
    if (run_dir / CONFIG).exists() and config.resume:
        given = Path(config.resume)
        if given.is_file():
            checkpoint = given
        elif first or any((run_dir / CHECKPOINTS).glob("*.ckpt")):  # the first has just written config.yaml, perhaps
            checkpoint = newest_checkpoint(run_dir)
    elif (run_dir / CONFIG).exists() and first:
        raise FileExistsError(f"run_dir={run_dir} holds a run already: add resume=auto, or name another directory")
    if first:
        write_atomic(run_dir / CONFIG, to_yaml(config, method))
    return run_dir, checkpoint


def made_up_run_dir(name: str, config: TrainingRun) -> Path:
    """A directory that no run has yet, the same one on all processes of this run.

    Under torchrun the first process says which. Under SLURM it is named by the job.

    Raises:
        ValueError: the processes have no way to agree on one.
    """
    if TorchElasticEnvironment.detect():
        return Path(agreed(str(new_run_dir(name, config.recipe))))
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        return RUNS / f"{run_prefix(name, config.recipe)}slurm-{SLURMEnvironment.job_id()}"
    if "LOCAL_RANK" in os.environ and "SSL_VIT_RUN_DIR" in os.environ:  # started by Lightning
        return Path(os.environ["SSL_VIT_RUN_DIR"])
    if config.trainer.num_nodes > 1:
        raise ValueError(
            f"run_dir= is missing: trainer.num_nodes={config.trainer.num_nodes} machines cannot agree on a directory "
            "unless torchrun or SLURM starts them; give the same one to each"
        )
    return new_run_dir(name, config.recipe)


def is_first_process() -> bool:
    """Whether this process of the run writes and speaks; known before the processes have met."""
    machine = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return getattr(rank_zero_only, "rank", 0) == 0 and machine == 0


def require_strategy(trainer: TrainerConfig) -> None:
    """ImportError in one line where the strategy's package is missing."""
    if trainer.strategy == "deepspeed" and find_spec("deepspeed") is None:
        raise ImportError("trainer.strategy=deepspeed needs the package deepspeed: `pip install deepspeed`")


def strategy_of(trainer: TrainerConfig) -> Any:
    """trainer.strategy as Lightning takes it."""
    if trainer.strategy != "fsdp":
        return trainer.strategy
    processes = devices_of(trainer) * trainer.num_nodes
    return ModelParallelStrategy(processes, tensor_parallel_size=1, save_distributed_checkpoint=False)


def make_trainer(config: TrainingRun, run_dir: Path, look: Look) -> pl.Trainer:
    """Lightning's trainer with our limits, loggers and callbacks."""
    trainer = config.trainer
    checkpoints = Checkpoints(
        dirpath=run_dir / CHECKPOINTS,
        filename="last",
        enable_version_counter=False,
        every_n_train_steps=trainer.checkpoint_every_steps,
        train_time_interval=None if trainer.checkpoint_every_steps else timedelta(minutes=10),
        save_on_exception=True,
    )
    health = Health()
    callbacks = [checkpoints, Throughput(), BadSteps(run_dir / BAD_STEPS), BadPictures(), health, Console(health)]
    if config.monitor.every_epochs:
        callbacks.insert(1, look)
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
        logger=[TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False), JsonLines(run_dir / METRICS)],
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
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
