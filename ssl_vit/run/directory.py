"""Which directory a run has, the same on all of its ranks, the checkpoint from which it is resumed, and what may
change then."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from ssl_vit.config.checks import ConfigError, shown
from ssl_vit.config.recipes import OF_ONE_RUN
from ssl_vit.config.resolve import resolve, to_yaml
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.values import settings_of
from ssl_vit.parallel.distributed import broadcast_object
from ssl_vit.run import files
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.lock import hold

log = logging.getLogger("ssl_vit")
FREE = (
    *("optim.", "trainer.", "monitor.", "readout."),
    *("data.batch_size", "data.global_batch", "data.workers", "data.cache_gb", "data.on_error", "data.max_unreadable"),
    "encoder.grad_checkpointing",
)
"""What the keys of settings begin with that a run may be resumed with others of; all else makes it another run."""


def open_run(config: TrainingRun, method: str, name: str) -> tuple[Path, Path | None]:
    """The run's directory, and the checkpoint to resume; a new run has its config.yaml then, a resumed one the old one.

    name: begins the name of a directory that is made up.

    ImportError: the package of trainer.strategy is missing. FileExistsError: run_dir holds a run already.
    BlockingIOError: another process writes into it. FileNotFoundError, ValueError: no whole checkpoint to resume.
    ConfigError: settings make it another run than the one to resume.
    """
    if config.trainer.strategy == "deepspeed" and find_spec("deepspeed") is None:
        raise ImportError("trainer.strategy=deepspeed needs the package deepspeed: `pip install deepspeed`")
    run_dir = Path(config.run_dir) if config.run_dir else default_run_dir(name, config)
    os.environ["SSL_VIT_RUN_DIR"] = str(run_dir)  # Lightning starts the other processes of a node by this command
    if not is_first_process():
        return run_dir, checkpoint_to_resume(config.resume, run_dir)
    hold(run_dir)
    if (run_dir / files.CONFIG).exists() and not config.resume:
        raise FileExistsError(f"run_dir={run_dir} holds a run already: add resume=auto, or name another directory")
    checkpoint = checkpoint_to_resume(config.resume, run_dir)
    if checkpoint is None:
        files.write_atomic(run_dir / files.CONFIG, to_yaml(config, method))
    elif (run_dir / files.CONFIG).exists():
        resume_settings(config, method, checkpoint, run_dir)
    return run_dir, checkpoint


def resume_settings(config: TrainingRun, method: str, checkpoint: Path, run_dir: Path) -> None:
    """Log the settings that are others than in the run's config.yaml; ConfigError where one makes it another run."""
    args = [f"{config.own_section}={method}"] if method else []
    own = resolve(type(config), [*args, f"recipe={run_dir / files.CONFIG}"]).config
    if isinstance(own, RunConfig) and isinstance(config, RunConfig):
        config.init_from = own.init_from  # how it began, and stays
    before, changes = settings_of(own), {}
    for key, setting in settings_of(config).items():
        given, theirs = setting.default, before[key].default
        if key in OF_ONE_RUN or given == theirs or shown(given) == shown(theirs) or _same_path(given, theirs):
            continue
        changes[key] = f"{key}={shown(given)} (the run's own is {shown(theirs)})"
    if refused := [change for key, change in changes.items() if not key.startswith(FREE)]:
        line = f"{'; '.join(refused)}: a run that is resumed stays the same"
        raise ConfigError(f"{line}. Leave that out, or begin another run in another run_dir= without resume=")
    for change in changes.values():
        log.info(f"{change}: applied from step {max(0, files.step_of(checkpoint))}")


def _same_path(one: Any, other: Any) -> bool:
    """Whether two settings name one file, from elsewhere or through a link."""
    return bool(one and other) and isinstance(one, str) and os.path.realpath(one) == os.path.realpath(other)


def default_run_dir(name: str, config: TrainingRun) -> Path:
    """A directory that no run has yet, under SLURM named by the job; ValueError where ranks cannot agree on one."""
    if TorchElasticEnvironment.detect():
        return Path(broadcast_object(str(files.new_run_dir(name, config.recipe))))
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        return files.RUNS / f"{files.run_prefix(name, config.recipe)}slurm-{SLURMEnvironment.job_id()}"
    if "LOCAL_RANK" in os.environ and "SSL_VIT_RUN_DIR" in os.environ:  # started by Lightning
        return Path(os.environ["SSL_VIT_RUN_DIR"])
    if config.trainer.num_nodes > 1:
        line = f"run_dir= is missing: trainer.num_nodes={config.trainer.num_nodes} machines cannot agree on a"
        raise ValueError(f"{line} directory unless torchrun or SLURM starts them; give the same one to each")
    return files.new_run_dir(name, config.recipe)


def checkpoint_to_resume(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that resume= means, None for auto without any. FileNotFoundError; ValueError: none is whole."""
    if resume and Path(resume).is_file():
        if problem := files.damage(Path(resume)) or files.strangeness(Path(resume)):
            raise ValueError(f"resume={resume} is damaged ({problem}): give another, or resume={run_dir}")
        return Path(resume)
    if not resume or (resume == "auto" and not files.checkpoints_of(run_dir)):
        return None
    return files.newest_checkpoint(run_dir)
