"""What a run will do, before it does it: size, global batch, learning rate, steps. Needs torch, but not Lightning."""

import os
from dataclasses import dataclass

import torch

from ssl_vit.config.schema import EncoderConfig, PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.data.sources import count
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.run.launch import STARTED


@dataclass(frozen=True)
class Plan:
    """The figures that follow from a config."""

    config: TrainingRun
    patches: PatchGrid
    """The training image and its patches; an EncoderConfig where there is an encoder."""
    parameters: int | None
    """Of the encoder, where there is one."""
    images: int | None
    """For training; None where they cannot be counted cheaply."""
    world_size: int
    global_batch: int
    """Images per optimizer step."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps; images that do not fill a batch wait for the next epoch."""
        if self.images is None:
            return None
        trainer, batch = self.config.trainer, self.config.data.batch_size
        batches = max(1, self.images // self.world_size // batch)
        return max(1, -(-batches // trainer.accumulate))

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run, where no clock ends it."""
        trainer = self.config.trainer
        by_epochs = self.steps_per_epoch and self.steps_per_epoch * trainer.max_epochs
        limits = [limit for limit in (by_epochs, trainer.max_steps) if limit]
        return min(limits, default=None)

    def lines(self) -> list[str]:
        """As a run prints it."""
        config, (h, w) = self.config, self.patches.grid
        height, width = self.patches.height_width
        factors = (self.world_size, config.data.batch_size, config.trainer.accumulate)
        batch = " x ".join(str(factor) for factor in factors if factor > 1) or "1"
        limit = f", at most {config.trainer.max_minutes:g} minutes" if config.trainer.max_minutes else ""
        rate = scaled_lr(config.optim.base_lr, self.global_batch)
        encoder = []
        if isinstance(self.patches, EncoderConfig):
            wide, deep, heads = self.patches.shape
            encoder = [f"encoder       ViT {wide} wide, {deep} deep, {heads} heads: {self.parameters:,} parameters"]
        return [
            *encoder,
            f"image         {height} x {width} pixels, {h} x {w} = {h * w} patches",
            f"images        {_known(self.images)} for training",
            f"global batch  {self.global_batch} = {batch}",
            f"learning rate {rate:.3g} at the peak = base_lr {config.optim.base_lr:g} x {self.global_batch} / 256",
            f"steps         {_known(self.steps)}{limit}; {_known(self.steps_per_epoch)} per epoch",
        ]


def _known(number: int | None) -> str:
    return "not counted before loading" if number is None else f"{number:,}"


def devices_of(trainer: TrainerConfig) -> int:
    """Processes on a machine; auto is what torchrun started, else one for every GPU, or one."""
    if trainer.devices != "auto":
        return trainer.devices
    return int(os.environ.get(STARTED, 0)) or max(1, torch.cuda.device_count())


def make_plan(config: TrainingRun, patches: PatchGrid | None = None) -> Plan:
    """Count parameters (on the meta device), images and steps. ValueError where the data cannot be found.

    Args:
        patches: of a run whose config does not have them, because its encoder does.
    """
    patches, parameters = patches or config.patches, None
    if isinstance(patches, EncoderConfig):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in VisionTransformer(patches).parameters())
    trainer, world_size = config.trainer, devices_of(config.trainer) * config.trainer.num_nodes
    images = count(config.data)
    batch = config.data.batch_size if images is None else min(config.data.batch_size, max(1, images // world_size))
    return Plan(config, patches, parameters, images, world_size, batch * world_size * trainer.accumulate)
