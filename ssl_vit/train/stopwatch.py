"""What `--dry-run --measure` adds to a plan: a few of the run's own steps, on its own images. Nothing is written."""

import sys
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from pytorch_lightning.callbacks import LambdaCallback

from ssl_vit.config.checks import ConfigError
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import KMeansRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.methods.base import Objective
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.run.launch import started_on_machine, typed
from ssl_vit.train.doctor import now
from ssl_vit.train.finetuning import finetune
from ssl_vit.train.plan import devices_of, settled
from ssl_vit.train.pretraining import pretrain
from ssl_vit.train.tokenizing import train_tokenizer
from ssl_vit.train.trainer import Session, trainer_of

WARM_UP, LEAST, MOST, SECONDS = 3, 3, 20, 20.0  # batches not timed; timed: at least, and until there are enough


class Stopwatch(Session):
    """A training in one process that times some batches, and has no directory."""

    timed: int
    """Batches; what they took on average, in seconds, and how many an epoch has in this one process, as of fit()."""
    seconds_a_batch: float
    batches_an_epoch: int

    def open(self) -> None:
        """Nothing is written, and nothing resumed."""
        self.checkpoint = None

    def fit(self, objective: Objective, data: ImageDataModule) -> None:
        """Train until enough batches are timed."""
        marks, config = list[float](), self.config.trainer

        def mark(trainer: Any, *_: Any) -> None:
            marks.append(now())
            timed = len(marks) - 1 - WARM_UP
            enough = timed >= MOST or (timed >= LEAST and marks[-1] - marks[WARM_UP] > SECONDS)
            trainer.should_stop = enough

        if config.compile:
            compile_blocks(objective)
        epochs = max(config.max_epochs, WARM_UP + MOST + 1)  # of one batch each, if need be
        trainer = trainer_of(
            replace(config, max_epochs=epochs, accumulate=1),
            devices=1,
            callbacks=[LambdaCallback(on_train_batch_end=mark)],
            logger=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        trainer.fit(objective, data)
        self.timed = len(marks) - 1 - WARM_UP
        self.seconds_a_batch = (marks[-1] - marks[WARM_UP]) / self.timed
        self.batches_an_epoch = int(trainer.num_training_batches)


def measure_steps(config: TrainingRun, name: str) -> list[str]:
    """Lines of the time of a step, of the run, and of the memory. ConfigError where there is nothing to time."""
    if isinstance(config, KMeansRun):
        raise ConfigError("--measure times steps, and k-means has none")
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        raise ConfigError(f"--measure trains no tokenizer: give tokenizer=; {typed('train_tokenizer')} makes one")
    if started_on_machine() > 1:
        raise ConfigError("--measure times one process: leave torchrun out")
    config = settled(config)
    trainer, processes = config.trainer, devices_of(config.trainer) * config.trainer.num_nodes
    alone = replace(trainer, devices=1, num_nodes=1, strategy="auto", max_steps=None, max_minutes=None)
    own = {"data": replace(config.data, global_batch=None), "monitor": replace(config.monitor, every_epochs=0)}
    small = replace(config, trainer=alone, resume="", **own)
    made = list[Stopwatch]()

    def session_of(*args: Any, **options: Any) -> Stopwatch:
        made.append(Stopwatch(*args, **options))
        return made[-1]

    if isinstance(small, FinetuneRun):
        finetune(small, session_of)
    elif isinstance(small, RunConfig):
        pretrain(small, name, session_of)
    else:
        train_tokenizer(small, name, session_of)  # pyright: ignore[reportArgumentType]
    per_epoch = ceil(max(1, made[0].batches_an_epoch // processes) / trainer.accumulate)
    steps = min(filter(None, (per_epoch * trainer.max_epochs, trainer.max_steps)))
    step = made[0].seconds_a_batch * trainer.accumulate
    minutes = steps * step / 60
    time = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
    cut = trainer.max_minutes is not None and minutes > trainer.max_minutes
    limit = f"; trainer.max_minutes={trainer.max_minutes} ends it sooner" * cut
    batches = f"{trainer.accumulate} batches of it, " * (trainer.accumulate > 1)
    where, memory = ("the GPU", "the GPU") if torch.cuda.is_available() else ("the CPU", "memory, of this process")
    ranks = f", as one of {processes} processes that wait for nobody" * (processes > 1)
    return [
        f"measured      {step:.3g} s a step: {batches}mean of {made[0].timed} batches on {where}{ranks}",
        f"run time      {time} for {steps:,} steps, without evaluations{limit}",
        f"peak memory   {peak_bytes() / 1e9:.2g} GB of {memory}",
    ]


def peak_bytes() -> float:
    """Most memory that was in use at once: of the GPU, or without one of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
