"""What a run will do, before it does it: size, global batch, learning rate, steps. Needs torch, but not Lightning."""

import os
from dataclasses import replace
from itertools import count as count_from
from math import isqrt
from operator import attrgetter
from typing import TypeVar

import torch

from ssl_vit.config.checks import ConfigError, require, shown
from ssl_vit.config.memory import largest_of, training_bytes
from ssl_vit.config.schema import DataConfig, EncoderConfig, PatchGrid, TrainerConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import KMeansRun, TokenizerRun
from ssl_vit.data.held_out import EvalSplits, eval_splits
from ssl_vit.data.sources import count, open_labels
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.run.launch import started_on_machine

Run = TypeVar("Run", bound=TrainingRun)
SPARE = 8  # processes that any machine may have, to try how several work together
FEW_STEPS, MORE_STEPS = 5, 10  # of an epoch: fewer are remarked on, and how many are advised


def devices_of(trainer: TrainerConfig) -> int:
    """Processes on a machine; auto is what torchrun started, else one for every GPU, or one."""
    if trainer.devices != "auto":
        return trainer.devices
    return started_on_machine() or max(1, torch.cuda.device_count())


def settled(config: Run) -> Run:
    """The config with the batch of a process, and the batches of a step, that make data.global_batch on its processes.

    Each process has the largest equal batch of at most data.batch_size images. ConfigError where there is none that is
    at least half as large as could be, or a batch is too small for the method.
    """
    if (wanted := config.data.global_batch) is None:
        return config
    processes, most = devices_of(config.trainer) * config.trainer.num_nodes, config.data.batch_size

    def batch_of(images: int) -> int:
        share, rest = divmod(images, processes)
        small = () if rest else (factor for factor in range(1, isqrt(share) + 1) if share % factor == 0)
        batch = max((size for f in small for size in (f, share // f) if size <= most), default=0)
        return 0 if 2 * batch < min(most, share) else batch

    if not (batch := batch_of(wanted)):
        down, up = range(wanted - 1, 0, -1), count_from(wanted + 1)
        near = [found for numbers in (down, up) if (found := next(filter(batch_of, numbers), 0))]
        fits = min(most, max(1, wanted // processes))
        sizes = f"{-(-fits // 2)} to {fits} images (at most data.batch_size={most})"
        rule = f"{processes} process{'es' * (processes > 1)} x equal batches of {sizes}: {' or '.join(map(str, near))}"
        require(False, "data.global_batch", wanted, rule, ConfigError)
    accumulate = wanted // (processes * batch)
    try:
        data, trainer = replace(config.data, batch_size=batch), replace(config.trainer, accumulate=accumulate)
        return replace(config, data=data, trainer=trainer)
    except ValueError as error:  # of a method that needs larger batches
        raise ConfigError(f"data.global_batch={wanted} on {processes} processes: {error}") from None


def precision_of(trainer: TrainerConfig) -> str:
    """trainer.precision, with auto resolved: bf16-mixed where the machine multiplies matrices in it, else 32-true."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if bf16_unit() else "32-true"


def bf16_unit() -> str:
    """What multiplies matrices in bf16 here, the GPU or without one a part of the CPU; empty where nothing does."""
    if torch.cuda.is_available():
        return "the GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    units = {"AMX": torch.cpu._is_amx_tile_supported, "AVX512-BF16": torch.cpu._is_avx512_bf16_supported}
    return next((unit for unit, is_supported in units.items() if is_supported()), "")


def require_possible(config: TrainingRun) -> None:
    """ConfigError in one line for more devices, or sizes, than this machine has, and for schedules that make no sense.

    What is refused cannot be: sizes are what a training needs at the least, against all memory that there is.
    """
    gpus, processes, cores = torch.cuda.device_count(), devices_of(config.trainer), os.cpu_count() or 1
    most = gpus or max(cores, SPARE)
    rule = f"auto, or at most {most} on this machine, which has {f'{gpus} GPUs' if gpus else f'{cores} cores'}"
    require(processes <= most, "trainer.devices", processes, rule, ConfigError)
    config = settled(config)
    trainer = config.trainer
    require_rate(config, config.data.batch_size * processes * trainer.num_nodes * trainer.accumulate)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if gpus:
        sharded = trainer.strategy in ("fsdp", "deepspeed")
        gpu = torch.cuda.get_device_properties(0).total_memory * (processes * trainer.num_nodes if sharded else 1)
        there = gpu + there * (trainer.strategy == "deepspeed")  # which may keep weights on the CPU
    if training_bytes(config) > there and (images := count(config.data)):
        batch = min(config.data.batch_size, images)  # a step takes what there is
        config = replace(config, data=replace(config.data, batch_size=batch))
    if (needed := training_bytes(config)) > there:
        key = largest_of(config)
        line = f"{key}={shown(attrgetter(key)(config))} is too large: a training needs {needed / 1e9:,.0f} GB at the"
        raise ConfigError(f"{line} least, and there are {there / 1e9:,.0f} GB of memory: make it smaller")


def require_rate(config: TrainingRun, global_batch: int) -> float:
    """The peak learning rate of a global batch; ConfigError where optim.min_lr, to which it falls, is above it."""
    optim, rate = config.optim, scaled_lr(config.optim.base_lr, global_batch)
    rule = f"at most the peak rate {rate:.3g} = base_lr {optim.base_lr:g} x {global_batch} images / 256"
    require(optim.min_lr <= rate, "optim.min_lr", optim.min_lr, rule, ConfigError)
    return rate


def planned_splits(data: DataConfig, seed: int) -> EvalSplits | None:
    """The images of a run and their labels, without reading an image; None where they have to be loaded first."""
    train = open_labels(data, "train")
    return None if train is None else eval_splits(train, open_labels(data, "test"), seed)


def plan_lines(
    config: TrainingRun, patches: PatchGrid | None = None, labeled: bool = False, splits: EvalSplits | None = None
) -> list[str]:
    """What follows from a config: of its data, of its steps. ValueError: no data is found.

    patches: of an encoder where the config has none; labeled: whether it trains on images with a label that are not
    held out; splits: of its data, where that is open.
    """
    config = settled(config)
    patches, trainer, lines = patches or config.patches, config.trainer, [f"data          {config.data.summary}"]
    if isinstance(patches, EncoderConfig):
        embed_dim, depth, num_heads = patches.shape
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in VisionTransformer(patches).parameters())
        lines += [f"encoder       ViT {embed_dim} wide, {depth} deep, {num_heads} heads: {parameters:,} parameters"]
    (height, width), (h, w) = patches.height_width, patches.grid
    lines += [f"image         {height} x {width} pixels, {h} x {w} = {h * w} patches"]
    splits, world_size = splits or planned_splits(config.data, config.seed), devices_of(trainer) * trainer.num_nodes
    if splits is None:
        images = count(config.data)
        lines += [f"images        {_known(images)} for training"]
    else:
        whole = len(splits.train.index if labeled else splits.train.source)
        images = whole if labeled else config.data.epoch_size or whole
        lines += splits.lines(images, len(splits.test.index))
    if isinstance(config, KMeansRun):
        cfg = config.tokenizer
        fitted = f"{cfg.patches:,} patches of {cfg.patch_size} pixels to {cfg.vocab_size:,} tokens"
        return [*lines, f"k-means       {fitted}"]
    batch, per_epoch = config.data.batch_size, None
    if images is not None:
        if wanted := config.data.global_batch:
            rule = f"at most {images:,}, the images of an epoch, or null"
            require(wanted <= images, "data.global_batch", wanted, rule, ConfigError)
        batches = max(1, images // world_size // batch)  # images that do not fill one wait for the next epoch
        rule = f"at most {batches}, the batches of an epoch, at whose end there is a step"
        require(trainer.accumulate <= batches, "trainer.accumulate", trainer.accumulate, rule, ConfigError)
        per_epoch = -(-batches // trainer.accumulate)
        batch = min(batch, max(1, images // world_size))
    given, global_batch = (size * world_size * trainer.accumulate for size in (config.data.batch_size, batch))
    steps = min(filter(None, (per_epoch and per_epoch * trainer.max_epochs, trainer.max_steps)), default=None)
    factors = (world_size, batch, trainer.accumulate)
    product = " x ".join(str(factor) for factor in factors if factor > 1) or "1"
    limit = f", at most {trainer.max_minutes:g} minutes" if trainer.max_minutes else ""
    why = f"{bf16_unit() or 'nothing'} here multiplies matrices in bf16" if trainer.precision == "auto" else "as given"
    base_lr = config.optim.base_lr
    rate = require_rate(config, global_batch)
    lines += [
        f"precision     {precision_of(trainer)}: {why}",
        f"global batch  {global_batch} = {product}",
        f"learning rate {rate:.3g} at the peak = base_lr {base_lr:g} x {global_batch} / 256",
        f"steps         {_known(steps)}{limit}; {_known(per_epoch)} per epoch",
    ]
    if images is not None and per_epoch is not None and per_epoch < FEW_STEPS:
        made = f"{images:,} images make {per_epoch} step{'s' * (per_epoch > 1)} an epoch at a batch of {given}"
        smaller = ["recipe=auto"] * (config.recipe != "auto" and not isinstance(config, TokenizerRun))
        smaller += smaller_batch(config, images // world_size)
        lines += [f"few steps     {made}: {' or '.join(smaller) or 'more images make more'}"]
    return lines


def smaller_batch(config: TrainingRun, images: int) -> list[str]:
    """The settings, if any, that let so many images of a process make MORE_STEPS an epoch, with 8 or more a batch."""
    batch, accumulate, wanted = config.data.batch_size, config.trainer.accumulate, config.data.global_batch
    size = min(batch, max(8, 2 ** (images // MORE_STEPS).bit_length() // 2))
    if size == batch and accumulate == 1:
        return []
    rest = ["data.global_batch=null"] if wanted else ["trainer.accumulate=1"] * (accumulate > 1)
    return [" ".join([*rest, *[f"data.batch_size={size}"] * (size < batch)])]


def _known(number: int | None) -> str:
    return "not counted before loading" if number is None else f"{number:,}"
